package redistore

import (
	"bytes"
	"encoding"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"unicode/utf8"

	"github.com/gorilla/sessions"

	"github.com/redistore/redistore/internal/gobvalues"
)

// Serializer turns a session's Values into bytes and back. It has the methods that
// boj/redistore and rbcervilla/redisstore ask for, so one written for those works
// here.
//
// Deserialize sets session.Values, and returns an error for any bytes that
// Serialize did not make. Both may be called by many goroutines at once. session.ID
// is the ID under which the bytes are stored.
type Serializer interface {
	Serialize(session *sessions.Session) ([]byte, error)
	Deserialize(data []byte, session *sessions.Session) error
}

// GobSerializer is the default: it gives back every value with its own type. Types
// other than the basic ones must be registered with [gob.Register], in every
// program that reads the session, before the first request. To a server that has not
// registered a type, sessions that hold it are [ErrNotLoaded]: deploy the registration
// first, and what stores the type after it.
//
// Whatever stands in Redis gives Values or an error: values nest 1000 deep at most, and
// take at most 4 MiB of memory and 64 bytes for each byte that is stored, beside what an
// application's own GobDecode takes. Save refuses what Get would.
type GobSerializer struct{}

// Serialize encodes session.Values as one gob. A value that cannot be encoded, holds itself
// or nests more than 1000 deep is an error that names its key.
func (GobSerializer) Serialize(session *sessions.Session) ([]byte, error) {
	if data, ok := gobvalues.Encode(session.Values); ok {
		return data, nil
	}
	for k, v := range session.Values { // encoding/gob would overflow the stack
		if gobvalues.TooDeep(k) || gobvalues.TooDeep(v) {
			return nil, fmt.Errorf("GobSerializer: Values[%.100q]: it holds itself, or nests more than %d deep", keyName(k), gobvalues.MaxDepth)
		}
	}
	data, err := encodeGob(session.Values)
	if err == nil {
		return data, nil
	}
	for k, v := range session.Values {
		if _, err := encodeGob(map[any]any{k: v}); err != nil {
			return nil, fmt.Errorf("GobSerializer: Values[%.100q]: %w", keyName(k), err)
		}
	}
	return nil, fmt.Errorf("GobSerializer: %w", err)
}

// keyName is short, and ends even if the key holds itself.
func keyName(key any) string {
	switch v := reflect.ValueOf(key); v.Kind() {
	case reflect.Pointer, reflect.Struct, reflect.Array:
		return v.Type().String()
	}
	return fmt.Sprint(key)
}

// encodeGob encodes what decodeGob will read again, or says why it would not.
func encodeGob(values map[any]any) (data []byte, err error) {
	defer func() { // the application's GobEncode, say
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	var buf bytes.Buffer
	if err := gob.NewEncoder(&buf).Encode(values); err != nil {
		return nil, err
	}
	_, err = gobvalues.Scan(buf.Bytes())
	return buf.Bytes(), err
}

// Deserialize decodes what Serialize made. On an error session.Values is as it was.
func (GobSerializer) Deserialize(data []byte, session *sessions.Session) error {
	if values, ok := gobvalues.Decode(data); ok {
		session.Values = values
		return nil
	}
	values, err := decodeGob(data)
	if err != nil {
		return fmt.Errorf("GobSerializer: %w", err)
	}
	session.Values = values
	return nil
}

// decodeGob decodes one gob, and nothing after it.
func decodeGob(data []byte) (values map[any]any, err error) {
	defer func() { // what cannot be a key, such as a slice, makes encoding/gob panic
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	if data, err = gobvalues.Scan(data); err != nil {
		return nil, err
	}
	err = gob.NewDecoder(bytes.NewReader(data)).Decode(&values)
	if err != nil {
		return nil, err
	}
	return values, nil
}

// JSONSerializer stores session.Values as one JSON object, which other languages
// can read. Values come back as encoding/json's own types: numbers as float64,
// slices as []any, structs and maps as map[string]any.
//
// Beyond that change of type nothing is lost: Serialize refuses, with an error that
// names the key, what would come back as another value. These are keys that are
// not strings, text that is not valid UTF-8, []byte, NaN and infinities, integers
// beyond ±2^53, and structs without an exported field. Types with their own
// MarshalJSON or MarshalText, such as time.Time, are taken at their word, and so are
// json.Number, which becomes the nearest float64, and struct tags that hide fields.
type JSONSerializer struct{}

// Serialize encodes session.Values as one JSON object.
func (JSONSerializer) Serialize(session *sessions.Session) ([]byte, error) {
	object := make(map[string]any, len(session.Values))
	for k, v := range session.Values {
		key, ok := k.(string)
		if !ok {
			return nil, fmt.Errorf("JSONSerializer: Values[%#v]: the key is %T, JSON has only string keys", k, k)
		}
		if !utf8.ValidString(key) {
			return nil, fmt.Errorf("JSONSerializer: Values[%q]: the key is not valid UTF-8", key)
		}
		object[key] = v
	}
	data, err := json.Marshal(object)
	if err == nil {
		err = json.Unmarshal(data, new(any)) // too deep, say, or a number out of range
	}
	for key, v := range object {
		if err == nil { // so there are no cycles
			if lost := jsonLoses(reflect.ValueOf(v)); lost != "" {
				return nil, fmt.Errorf("JSONSerializer: Values[%q]: %s", key, lost)
			}
			continue
		}
		one, err := json.Marshal(v)
		if err == nil {
			err = json.Unmarshal([]byte("["+string(one)+"]"), new(any))
		}
		if err != nil {
			return nil, fmt.Errorf("JSONSerializer: Values[%q]: %w", key, err)
		}
	}
	return data, err
}

// Deserialize decodes what Serialize made. On an error session.Values is as it was.
func (JSONSerializer) Deserialize(data []byte, session *sessions.Session) error {
	var object map[string]any
	if err := json.Unmarshal(data, &object); err != nil {
		return fmt.Errorf("JSONSerializer: %w", err)
	}
	if object == nil {
		return errors.New("JSONSerializer: null is not an object")
	}
	values := make(map[any]any, len(object))
	for k, v := range object {
		values[k] = v
	}
	session.Values = values
	return nil
}

var (
	jsonMarshaler = reflect.TypeFor[json.Marshaler]()
	textMarshaler = reflect.TypeFor[encoding.TextMarshaler]()
)

// jsonLoses says what of a value JSON would not give back, or nothing. The value
// is one that encoding/json has encoded, so it has no cycles.
func jsonLoses(v reflect.Value) string {
	const exact = 1 << 53 // the integers up to here are float64s too
	if !v.IsValid() || v.Type().Implements(jsonMarshaler) || v.Type().Implements(textMarshaler) {
		return ""
	}
	switch v.Kind() {
	case reflect.String:
		if !utf8.ValidString(v.String()) {
			return "the text is not valid UTF-8"
		}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		if n := v.Int(); n > exact || n < -exact {
			return fmt.Sprintf("%d is beyond 2^53 and would be rounded", n)
		}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		if n := v.Uint(); n > exact {
			return fmt.Sprintf("%d is beyond 2^53 and would be rounded", n)
		}
	case reflect.Pointer, reflect.Interface:
		return jsonLoses(v.Elem())
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return "[]byte would come back as base64 text"
		}
		return jsonLosesAny(v.Seq2())
	case reflect.Array:
		return jsonLosesAny(v.Seq2())
	case reflect.Map:
		if v.Type().Key().Kind() != reflect.String {
			return fmt.Sprintf("%s has keys that are not strings", v.Type())
		}
		return jsonLosesAny(v.Seq2())
	case reflect.Struct:
		hidden := 0
		for field, value := range v.Fields() {
			if field.Tag.Get("json") == "-" || !field.IsExported() && !field.Anonymous {
				hidden++
				continue
			}
			if lost := jsonLoses(value); lost != "" {
				return field.Name + ": " + lost
			}
		}
		if n := v.NumField(); n > 0 && hidden == n { // an error, say
			return fmt.Sprintf("%s has no exported field and would come back empty", v.Type())
		}
	}
	return ""
}

// jsonLosesAny looks at every element, and at every key.
func jsonLosesAny(elements func(func(k, v reflect.Value) bool)) string {
	for k, v := range elements {
		if lost := jsonLoses(k); lost != "" {
			return lost
		}
		if lost := jsonLoses(v); lost != "" {
			return lost
		}
	}
	return ""
}
