package redistore

import (
	"encoding/json"
	"fmt"
	"reflect"
	"testing"

	"github.com/gorilla/sessions"
)

type (
	jsonLeft  struct{ Both, Left string }
	jsonRight struct{ Both, Right string }
	ambiguous struct {
		jsonLeft
		jsonRight
	}
	shadowed struct {
		jsonLeft
		Both string
	}
	partial struct {
		Shown  string
		hidden string
	}
	dropsOut struct {
		text
		Shown string
	}
	text   string
	quoted struct {
		N int64   `json:",string"`
		P *uint64 `json:"p,string"`
		S string  `json:"s,string"`
	}
	ownJSON  struct{ secret int }
	holdsOwn struct{ Own ownJSON }
	upward   struct {
		Up   *upward `json:"-"`
		Kids []*upward
	}
	below struct{ Next *above }
	above struct{ *below }
	named struct {
		partial `json:"in"`
		B       string `json:"☂"` // no name to encoding/json
	}
	omits struct {
		A string `json:",omitempty"`
		B []int  `json:"b,omitempty"`
		c int
	}
)

// doubled has two fields of one tag, which vet would find in a type of its own.
func doubled(a, b string) any {
	text := reflect.TypeFor[string]()
	v := reflect.New(reflect.StructOf([]reflect.StructField{
		{Name: "A", Type: text, Tag: `json:"x"`}, {Name: "B", Type: text, Tag: `json:"x"`},
	})).Elem()
	v.Field(0).SetString(a)
	v.Field(1).SetString(b)
	return v.Interface()
}

func (o *ownJSON) MarshalJSON() ([]byte, error) { return fmt.Appendf(nil, "%d", o.secret), nil }

func TestJSONRefusesWhatWouldComeBackWithLess(t *testing.T) {
	root, deep := &upward{}, &above{}
	root.Kids = []*upward{{Up: root}}
	for range 15_000 {
		deep = &above{&below{deep}}
	}
	big := uint64(1<<64 - 1)
	for _, c := range []struct {
		value any
		want  string // in the error; "": it is accepted
	}{
		{ambiguous{jsonLeft{"a", "b"}, jsonRight{"c", "d"}}, "jsonLeft: Both: "},
		{ambiguous{jsonLeft{"", "b"}, jsonRight{"", "d"}}, ""},
		{shadowed{jsonLeft{"a", "b"}, "c"}, "jsonLeft: Both: "},
		{shadowed{jsonLeft{"", "b"}, "c"}, ""},
		{doubled("a", ""), "A: "},
		{doubled("", "b"), "B: "},
		{partial{"a", "b"}, "hidden: it is not exported"},
		{partial{"a", ""}, ""},
		{[]any{map[string]any{"in": &partial{"a", "b"}}}, "hidden: it is not exported"},
		{dropsOut{"a", "b"}, "text: "},
		{dropsOut{"", "b"}, ""},
		{named{partial{"a", ""}, "b"}, ""},
		{named{partial{"", "b"}, ""}, "partial: hidden: "},
		{omits{"", []int{}, 0}, ""},
		{omits{"", nil, 1}, "c: "},
		{quoted{1<<62 + 1, &big, `"<ü`}, ""},
		{&ownJSON{1}, ""},
		{[]ownJSON{{1}}, ""},
		{&holdsOwn{ownJSON{1}}, ""},
		{ownJSON{1}, "ownJSON has no exported field"},
		{holdsOwn{ownJSON{1}}, "Own: "},
		{json.Number("1234567890123456789"), ""},
		{float32(0.1), ""},
		{[]float32{1e-45, 3.4e38}, ""},
		{root, ""},
		{deep, "levels"},
	} {
		s := sessions.NewSession(nil, "s")
		s.Values["key"] = c.value
		data, err := JSONSerializer{}.Serialize(s)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%+v: %v", c.value, err)
		case c.want != "" && err == nil:
			t.Errorf("%+v became %s", c.value, data)
		case c.want != "":
			wantText(t, err, `Values["key"]: `)
			wantText(t, err, c.want)
		}
	}
}

// TestJSONKeepsOtherProgramsNumbers: what is read and saved is the same number.
func TestJSONKeepsOtherProgramsNumbers(t *testing.T) {
	for number, want := range map[string]any{
		"1234567890123456789":    json.Number("1234567890123456789"),
		"0.12345678901234567890": json.Number("0.12345678901234567890"),
		"1e-400":                 json.Number("1e-400"),
		"42":                     42.0, "-0.5": -0.5, "1.50": 1.5, "100": 100.0, "1e21": 1e21, "0.001e3": 1.0, "9007199254740994": 9007199254740994.0, "0.0": 0.0, "0e9": 0.0,
	} {
		s := sessions.NewSession(nil, "s")
		data := []byte(`{"id":` + number + `,"in":[{"a":` + number + `}]}`)
		must(t, JSONSerializer{}.Deserialize(data, s))
		equal(t, number, s.Values["id"], want)
		inner := s.Values["in"].([]any)[0].(map[string]any)["a"]
		equal(t, number+" inside", inner, want)
		data, err := JSONSerializer{}.Serialize(s)
		must(t, err)
		must(t, JSONSerializer{}.Deserialize(data, s))
		equal(t, number+" again", s.Values["id"], want)
	}
	err := JSONSerializer{}.Deserialize([]byte(`{"id":1e400}`), sessions.NewSession(nil, "s"))
	wantText(t, err, "number 1e400")
}

func TestJSONIsCheckedQuickly(t *testing.T) {
	s := sessions.NewSession(nil, "s")
	for k, v := range map[string]any{"user": "ann", "id": 42, "admin": true, "lang": "en-GB", "in": []string{"a"}} {
		s.Values[k] = v
	}
	allocs := testing.AllocsPerRun(10, func() { _, _ = JSONSerializer{}.Serialize(s) })
	if allocs > 100 {
		t.Errorf("%.0f allocations", allocs)
	}
}

func BenchmarkJSONFiveFields(b *testing.B) {
	s := sessions.NewSession(nil, "s")
	for k, v := range map[string]any{"user": "ann", "id": 42, "admin": true, "lang": "en-GB", "in": []string{"a"}} {
		s.Values[k] = v
	}
	for b.Loop() {
		_, err := JSONSerializer{}.Serialize(s)
		if err != nil {
			b.Fatal(err)
		}
	}
}
