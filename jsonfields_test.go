package redistore

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/sessions"
)

type (
	jsonBase  struct{ Seen time.Time }
	seenAgain struct {
		jsonBase
		Seen string
	}
	numbered      struct{ N json.Number }
	numberedAgain struct {
		*numbered
		N int
	}
	lockedCart struct {
		sync.Mutex
		Items []string
	}
	says     struct{ Zero, More int }
	omitsOne struct {
		S says `json:",omitzero"`
	}
	inside struct {
		partial `json:"in,omitempty"`
	}
	outside struct {
		inside
		In string `json:"in"`
	}
	spelled  int
	holdsOne struct {
		L spelled `json:",string"`
	}
)

func (s *says) IsZero() bool                    { return s.Zero == 0 }
func (s *spelled) MarshalJSON() ([]byte, error) { return []byte(`"three"`), nil }

// TestJSONRefusesShadowedFieldsOfAllTypes: also of those whose text it takes at their word.
func TestJSONRefusesShadowedFieldsOfAllTypes(t *testing.T) {
	text, number := reflect.TypeFor[string](), reflect.TypeFor[int]()
	tagged := reflect.New(reflect.StructOf([]reflect.StructField{
		{Name: "A", Type: number, Tag: `json:",string"`}, {Name: "B", Type: number, Tag: `json:"A"`}, {Name: "C", Type: text},
	})).Elem()
	tagged.Field(0).SetInt(1)
	for _, c := range []struct {
		value any
		want  string
	}{
		{seenAgain{jsonBase{time.Now()}, "b"}, "jsonBase: Seen: another field has its name"},
		{seenAgain{jsonBase{time.Now()}, ""}, "jsonBase: Seen: another field has its name"},
		{seenAgain{jsonBase{}, "b"}, ""},
		{numberedAgain{&numbered{"5"}, 6}, "numbered: N: another field has its name"},
		{numberedAgain{nil, 6}, ""},
		{tagged.Interface(), "A: another field has its name"},
		{&lockedCart{Items: []string{"a"}}, ""}, // what is empty is not lost
		{omitsOne{says{0, 1}}, ""},
		{&omitsOne{says{0, 1}}, ""},
		{&holdsOne{3}, ""},
		{outside{inside{partial{"a", ""}}, "b"}, "inside: partial: another field has its name"},
	} {
		s := sessions.NewSession(nil, "s")
		s.Values["key"] = c.value
		data, err := JSONSerializer{}.Serialize(s)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%T: %v", c.value, err)
		case c.want != "" && err == nil:
			t.Errorf("%T became %s", c.value, data)
		case c.want != "":
			wantText(t, err, c.want)
		}
	}
}

// TestJSONLosesNoField makes structs at random whose fields share names, and counts what
// encoding/json wrote of those that are accepted.
func TestJSONLosesNoField(t *testing.T) {
	accepted := 0
	for seed := range uint64(5000) {
		g := fieldMaker{rand.New(rand.NewPCG(seed, 7)), new(int)}
		v := reflect.New(g.structType(0)).Elem()
		g.fill(v)
		s := sessions.NewSession(nil, "s")
		s.Values["key"] = v.Interface()
		data, err := JSONSerializer{}.Serialize(s)
		if err != nil {
			continue
		}
		accepted++
		var back any
		must(t, json.Unmarshal(data, &back))
		if got := leaves(back); got < *g.set {
			t.Fatalf("seed %d: %d of %d fields of %+v are in %s", seed, got, *g.set, v.Interface(), data)
		}
	}
	if accepted < 500 {
		t.Errorf("only %d were accepted", accepted)
	}
}

// A fieldMaker counts the fields that it sets.
type fieldMaker struct {
	*rand.Rand
	set *int
}

func (g fieldMaker) structType(depth int) reflect.Type {
	types := []reflect.Type{
		reflect.TypeFor[int](), reflect.TypeFor[*bool](), reflect.TypeFor[string](), reflect.TypeFor[json.Number](), reflect.TypeFor[time.Time](),
	}
	var fields []reflect.StructField
	for i := range 1 + g.IntN(4) {
		f := reflect.StructField{Name: string(rune('A' + i)), Type: types[g.IntN(len(types))]}
		if depth < 3 && g.IntN(3) == 0 {
			f.Type = g.structType(depth + 1)
			f.Anonymous = g.IntN(2) == 0
		}
		name := []string{"", "", "", "", "A", "B", "x", "☂"}[g.IntN(8)]
		option := []string{"", "", ",string", ",omitempty", ",omitzero"}[g.IntN(5)]
		f.Tag = reflect.StructTag(fmt.Sprintf("json:%q", name+option))
		fields = append(fields, f)
	}
	return reflect.StructOf(fields)
}

func (g fieldMaker) fill(v reflect.Value) {
	if v.Kind() == reflect.Struct && v.Type() != reflect.TypeFor[time.Time]() {
		for i := range v.NumField() {
			g.fill(v.Field(i))
		}
		return
	}
	if g.IntN(3) > 0 {
		return
	}
	*g.set++
	switch v.Interface().(type) {
	case int:
		v.SetInt(1 + g.Int64N(1<<50))
	case *bool:
		v.Set(reflect.ValueOf(new(true)))
	case string, json.Number:
		v.SetString(fmt.Sprint(1 + g.Int64N(1<<50)))
	case time.Time:
		v.Set(reflect.ValueOf(time.Unix(g.Int64N(1<<31), 0).UTC()))
	}
}

// leaves counts what does not stand for nothing.
func leaves(v any) (n int) {
	switch v := v.(type) {
	case map[string]any:
		for _, e := range v {
			n += leaves(e)
		}
		return n
	case nil:
		return 0
	}
	if v == 0.0 || v == "" || v == "0" || v == `""` || v == "0001-01-01T00:00:00Z" {
		return 0
	}
	return 1
}
