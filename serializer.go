package redistore

import (
	"bytes"
	"cmp"
	"encoding/gob"
	"fmt"
	"reflect"

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

// GobSerializer is the default: it gives back every value with its own type, as encoding/gob
// does: of a registered struct, without what is not exported; of a struct or a pointer to it,
// what was registered; nil for empty slices, and in structs for pointers to zero. Types other
// than the basic ones must be registered with [gob.Register], in every program that reads the
// session, before the first request. To a server that has not registered a type, sessions that
// hold it are [ErrNotLoaded]: deploy the registration first, and what stores the type after it.
//
// Whatever stands in Redis gives Values or an error: values nest 1000 deep at most, and
// take at most 4 MiB of memory and 64 bytes for each byte that is stored, beside what an
// application's own GobDecode takes. Save refuses what Get would, but for what a GobDecode
// refuses.
type GobSerializer struct{}

// Serialize encodes session.Values as one gob. A value that cannot be encoded, or that
// encoding/gob could not decode again, holds itself, nests more than 1000 deep or holds more
// than 512 MiB is an error that names its key.
func (GobSerializer) Serialize(session *sessions.Session) ([]byte, error) {
	if data, ok := gobvalues.Encode(session.Values); ok {
		return data, nil
	}
	for k, v := range session.Values { // encoding/gob would overflow the stack
		if excess := cmp.Or(gobvalues.Excess(k), gobvalues.Excess(v)); excess != "" {
			return nil, fmt.Errorf("GobSerializer: Values[%s]: %s", keyName(k), excess)
		}
	}
	data, err := encodeGob(session.Values)
	if err == nil {
		return data, nil
	}
	for k, v := range session.Values {
		if _, err := encodeGob(map[any]any{k: v}); err != nil {
			return nil, fmt.Errorf("GobSerializer: Values[%s]: %w", keyName(k), err)
		}
	}
	return nil, fmt.Errorf("GobSerializer: %w", err)
}

// keyName is short, and ends even if the key holds itself.
func keyName(key any) string {
	switch v := reflect.ValueOf(key); v.Kind() {
	case reflect.String:
		return fmt.Sprintf("%.100q", v.String())
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
