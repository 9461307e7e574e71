package redistore

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/gorilla/sessions"

	"github.com/redistore/redistore/internal/gobvalues"
)

// JSONSerializer stores session.Values as one JSON object, which other languages
// can read. Values come back as encoding/json's own types: numbers as float64,
// slices as []any, structs and maps as map[string]any. A number that no float64 gives back
// digit for digit, as other programs may write it, comes as [json.Number], and Save writes
// it as it was; one beyond the range of float64, as 1e400, is an error.
//
// Beyond that change of type nothing is lost: Serialize reads back what it made, and
// refuses, with an error that names the key and the field, what came back as another value
// or not at all. These are keys that are not strings, text that is not valid UTF-8, []byte,
// NaN and infinities, integers beyond ±2^53, values that hold themselves, nest more than
// 10,000 deep or hold more than 512 MiB, and fields that are not empty and that JSON leaves out: unexported,
// ambiguous, shadowed by another, or of one name with another. Four things are taken at
// their word: types with their own MarshalJSON or MarshalText, such as time.Time, fields
// with the tag "-", what omitempty leaves out, and an empty json.Number, which becomes 0.
type JSONSerializer struct{}

// Serialize encodes session.Values as one JSON object.
func (JSONSerializer) Serialize(session *sessions.Session) ([]byte, error) {
	object := make(map[string]any, len(session.Values))
	for k, v := range session.Values {
		key, ok := k.(string)
		if !ok {
			return nil, fmt.Errorf("JSONSerializer: Values[%s]: the key is %T, JSON has only string keys", keyName(k), k)
		}
		if !utf8.ValidString(key) {
			return nil, fmt.Errorf("JSONSerializer: Values[%q]: the key is not valid UTF-8", key)
		}
		if excess := jsonForm.Excess(v); excess != "" { // encoding/json would overflow the stack
			return nil, fmt.Errorf("JSONSerializer: Values[%q]: json: unsupported value: %s", key, excess)
		}
		object[key] = v
	}
	data, err := json.Marshal(object)
	var back map[string]any
	if err == nil {
		back, err = parseJSON(data)
	}
	for key, v := range object {
		if err == nil {
			if lost := jsonLoses(reflect.ValueOf(v), back[key]); lost != "" {
				return nil, fmt.Errorf("JSONSerializer: Values[%q]: %s", key, lost)
			}
			continue
		}
		one, err := json.Marshal(map[string]any{key: v})
		if err == nil {
			_, err = parseJSON(one)
		}
		if err != nil {
			return nil, fmt.Errorf("JSONSerializer: Values[%q]: %w", key, err)
		}
	}
	return data, err
}

const maxJSONDepth = 10_000 // encoding/json's

// Deserialize decodes what Serialize made. On an error session.Values is as it was.
func (JSONSerializer) Deserialize(data []byte, session *sessions.Session) error {
	object, err := parseJSON(data)
	if err != nil {
		return fmt.Errorf("JSONSerializer: %w", err)
	}
	values := make(map[any]any, len(object))
	for k, v := range object {
		values[k] = v
	}
	session.Values = values
	return nil
}

func parseJSON(data []byte) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var object map[string]any
	if err := d.Decode(&object); err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("there is more after the object")
	}
	if object == nil {
		return nil, errors.New("null is not an object")
	}
	for key, v := range object {
		number, err := exactNumbers(v)
		if err != nil {
			return nil, err
		}
		object[key] = number
	}
	return object, nil
}

// exactNumbers replaces each number by its float64, if that is the same one.
func exactNumbers(v any) (_ any, err error) {
	switch v := v.(type) {
	case json.Number:
		f, err := v.Float64()
		if err != nil {
			return nil, fmt.Errorf("json: cannot unmarshal number %.100s into a float64", v)
		}
		if digits(string(v)) != digits(strconv.FormatFloat(f, 'e', -1, 64)) {
			return v, nil
		}
		return f, nil
	case []any:
		for i := range v {
			if v[i], err = exactNumbers(v[i]); err != nil {
				return nil, err
			}
		}
	case map[string]any:
		for key := range v {
			if v[key], err = exactNumbers(v[key]); err != nil {
				return nil, err
			}
		}
	}
	return v, nil
}

// A decimal is 0.text * 10^exponent, and text has no zeros at its ends.
type decimal struct {
	negative bool
	text     string
	exponent int
}

func digits(number string) decimal {
	number, negative := strings.CutPrefix(number, "-")
	mantissa, exponent := number, 0
	if i := strings.IndexAny(number, "eE"); i >= 0 {
		mantissa = number[:i]
		exponent, _ = strconv.Atoi(number[i+1:]) // too large: then a zero, or no float64
	}
	whole, fraction, _ := strings.Cut(mantissa, ".")
	text := strings.TrimLeft(whole+fraction, "0")
	exponent += len(whole) - (len(whole+fraction) - len(text))
	if text = strings.TrimRight(text, "0"); text == "" {
		exponent = 0
	}
	return decimal{negative, text, exponent}
}

var (
	jsonMarshaler = reflect.TypeFor[json.Marshaler]()
	textMarshaler = reflect.TypeFor[encoding.TextMarshaler]()
	jsonNumber    = reflect.TypeFor[json.Number]()
)

var jsonForm = gobvalues.Form{Levels: 2 * maxJSONDepth, Whole: jsonWhole, Sent: jsonSent}

// jsonWhole tells types that make their own JSON.
func jsonWhole(t reflect.Type) bool {
	return t.Implements(jsonMarshaler) || t.Implements(textMarshaler)
}

// jsonOwn tells values that make their own JSON: those with an address may do so by pointer.
func jsonOwn(v reflect.Value) bool {
	return jsonWhole(v.Type()) || v.CanAddr() && jsonWhole(reflect.PointerTo(v.Type()))
}

// jsonSent tells fields into which encoding/json looks.
func jsonSent(f reflect.StructField) bool {
	return (f.IsExported() || f.Anonymous) && f.Tag.Get("json") != "-"
}

// jsonLoses says what of a value is not in what came back, or nothing.
func jsonLoses(v reflect.Value, back any) string {
	const exact = 1 << 53 // the integers up to here are float64s too
	switch {
	case !v.IsValid() || jsonOwn(v) || v.Type() == jsonNumber:
		return ""
	}
	same := true
	switch v.Kind() {
	case reflect.String:
		if !utf8.ValidString(v.String()) {
			return "the text is not valid UTF-8"
		}
		same = back == v.String()
	case reflect.Bool:
		same = back == v.Bool()
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n := v.Int()
		if n > exact || n < -exact {
			return fmt.Sprintf("%d is beyond 2^53 and would be rounded", n)
		}
		same = back == float64(n)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		n := v.Uint()
		if n > exact {
			return fmt.Sprintf("%d is beyond 2^53 and would be rounded", n)
		}
		same = back == float64(n)
	case reflect.Float32: // its text is the shortest that a float32 needs
		f, is := back.(float64)
		same = is && float32(f) == float32(v.Float())
	case reflect.Float64:
		same = back == v.Float()
	case reflect.Pointer, reflect.Interface:
		return jsonLoses(v.Elem(), back)
	case reflect.Slice, reflect.Array:
		if v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8 && !jsonWhole(reflect.PointerTo(v.Type().Elem())) {
			return "[]byte would come back as base64 text"
		}
		list, _ := back.([]any)
		if len(list) != v.Len() {
			return "it would come back with other elements"
		}
		for i := range list {
			if lost := jsonLoses(v.Index(i), list[i]); lost != "" {
				return lost
			}
		}
	case reflect.Map:
		return jsonLosesEntry(v, back)
	case reflect.Struct:
		object, _ := back.(map[string]any)
		return jsonLosesField(v, object)
	}
	if !same {
		return fmt.Sprintf("it would come back as %.100v", back)
	}
	return ""
}

func jsonLosesEntry(v reflect.Value, back any) string {
	if v.Type().Key().Kind() != reflect.String {
		return fmt.Sprintf("%s has keys that are not strings", v.Type())
	}
	object, _ := back.(map[string]any)
	for entries := v.MapRange(); entries.Next(); {
		key := entries.Key().String()
		if !utf8.ValidString(key) {
			return "the text is not valid UTF-8"
		}
		if lost := jsonLoses(entries.Value(), object[key]); lost != "" {
			return lost
		}
	}
	return ""
}

// jsonLosesField looks for each field where encoding/json would put it: what stands there
// is another one's if they share a name.
func jsonLosesField(v reflect.Value, object map[string]any) string {
	hidden := 0
	for field := range v.Fields() {
		if _, _, sent := jsonName(field); !sent {
			hidden++
		}
	}
	if n := v.NumField(); n > 0 && hidden == n { // an error, say
		return fmt.Sprintf("%s has no exported field and would come back empty", v.Type())
	}
	ranks := make(map[string]int, v.NumField())
	rankJSON(v, 0, ranks)
	return jsonLosesRanked(v, object, 0, ranks)
}

// rankJSON finds the lowest rank of each name. encoding/json takes the field that is least
// deep in embedded structs, and of those the one whose name is from its tag.
func rankJSON(v reflect.Value, depth int, ranks map[string]int) {
	for field, value := range v.Fields() {
		switch name, rank, sent := jsonName(field); {
		case !sent:
		case name == "":
			if inner := embedded(value); inner.IsValid() {
				rankJSON(inner, depth+1, ranks)
			}
		default:
			lowest, found := ranks[name]
			if rank += 2 * depth; !found || rank < lowest {
				ranks[name] = rank
			}
		}
	}
}

func jsonLosesRanked(v reflect.Value, object map[string]any, depth int, ranks map[string]int) string {
	for field, value := range v.Fields() {
		lost := ""
		switch name, rank, sent := jsonName(field); {
		case !sent:
			if field.Tag.Get("json") != "-" && !value.IsZero() {
				lost = "it is not exported and would be lost"
			}
		case name == "":
			if inner := embedded(value); inner.IsValid() {
				lost = jsonLosesRanked(inner, object, depth+1, ranks)
			}
		default:
			back, found := object[name]
			found = found && rank+2*depth == ranks[name]
			_, options, _ := strings.Cut(field.Tag.Get("json"), ",")
			lost = jsonLosesNamed(value, back, found, options)
		}
		if lost != "" {
			return field.Name + ": " + lost
		}
	}
	return ""
}

// jsonName is a field's name in JSON, "" where the fields of an embedded struct take its
// place, and its rank: 0 for a name from a tag, 1 for its own. sent is false for what
// encoding/json leaves out.
func jsonName(field reflect.StructField) (name string, rank int, sent bool) {
	tag := field.Tag.Get("json")
	name, _, _ = strings.Cut(tag, ",")
	t := field.Type
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	promoted := field.Anonymous && t.Kind() == reflect.Struct
	switch {
	case tag == "-" || !field.IsExported() && !promoted:
		return "", 0, false
	case validJSONName(name):
		return name, 0, true
	case promoted:
		return "", 0, true
	}
	return field.Name, 1, true
}

// embedded is the struct that a field embeds, or invalid for a nil pointer.
func embedded(v reflect.Value) reflect.Value {
	if v.Kind() == reflect.Pointer {
		return v.Elem()
	}
	return v
}

func jsonLosesNamed(v reflect.Value, back any, found bool, options string) string {
	if !found {
		omits := hasOption(options, "omitempty") || hasOption(options, "omitzero")
		zero := v.IsZero()
		switch v.Kind() {
		case reflect.Slice, reflect.Map:
			zero = v.Len() == 0
		}
		if zero || omits && jsonOmits(v) {
			return ""
		}
		return "another field has its name, and it would be lost"
	}
	if v.IsZero() {
		return "" // another's value may stand there: nothing is lost
	}
	if hasOption(options, "string") {
		p := v
		if p.Kind() == reflect.Pointer {
			p = p.Elem()
		}
		switch p.Kind() {
		case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
			reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr,
			reflect.Float32, reflect.Float64, reflect.Bool, reflect.String:
			if text, is := back.(string); is && !jsonOwn(p) && text != jsonText(p) {
				return fmt.Sprintf("it would come back as %.100q", text)
			}
			return jsonLosesText(p)
		}
	}
	return jsonLoses(v, back)
}

// jsonOmits tells values that say themselves that they are zero, be it by pointer.
func jsonOmits(v reflect.Value) bool {
	if !v.CanInterface() {
		return false
	}
	p := reflect.New(v.Type())
	p.Elem().Set(v)
	for _, v := range []reflect.Value{v, p} {
		if z, ok := v.Interface().(interface{ IsZero() bool }); ok {
			return z.IsZero()
		}
	}
	return false
}

func jsonLosesText(v reflect.Value) string {
	if v.Kind() == reflect.String && !utf8.ValidString(v.String()) {
		return "the text is not valid UTF-8"
	}
	return ""
}

// jsonText is what a field with the option "string" holds.
func jsonText(v reflect.Value) string {
	text, _ := json.Marshal(v.Interface())
	return string(text)
}

func hasOption(options, option string) bool {
	for o := range strings.SplitSeq(options, ",") {
		if o == option {
			return true
		}
	}
	return false
}

// validJSONName tells the names that encoding/json takes from a tag.
func validJSONName(name string) bool {
	return name != "" && strings.IndexFunc(name, func(c rune) bool {
		return !unicode.IsLetter(c) && !unicode.IsDigit(c) && !strings.ContainsRune("!#$%&()*+-./:;<=>?@[]^_{|}~ ", c)
	}) < 0
}
