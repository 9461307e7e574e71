package redistore

import (
	"bytes"
	"encoding/gob"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/sessions"
)

type (
	bulky struct{ A [1 << 16]byte }
	chain struct {
		Next *chain
		Any  any
	}
	nested []nested

	// labelled has a text, which is nothing to encoding/gob.
	labelled struct {
		Next *labelled
		All  []bulky
	}
)

func (labelled) MarshalText() ([]byte, error) { return []byte("label"), nil }

func init() {
	gob.Register(bulky{})
	gob.Register([]bulky{})
	gob.Register(map[int]bulky{})
	gob.Register(&chain{})
	gob.Register(nested{})
	gob.Register(labelled{})
	gob.Register(map[string]any{})
	gob.Register([][][]int{})
}

const plantedDepth = 700_000

func gobUint(n uint64) []byte {
	if n < 128 {
		return []byte{byte(n)}
	}
	return []byte{0xf8, byte(n >> 56), byte(n >> 48), byte(n >> 40), byte(n >> 32), byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
}

func gobMessage(parts ...string) string {
	all := strings.Join(parts, "")
	return string(gobUint(uint64(len(all)))) + all
}

// plantedGobs are values that no Save made: the last part of a map[any]any with one key.
var plantedGobs = map[string]func() string{
	"slices in slices": func() string {
		return gobMessage("\xff\x81\x02\x01\x02\xff\x82\x00\x01\x10\x00\x00") +
			gobMessage("\xff\x80\x00\x01\x06string\x0c\x03\x00\x01a", strings.Repeat("\x0e[]interface {}\xff\x82\x01\x00\x01", plantedDepth), "\x00")
	},
	"a type in itself": func() string {
		return gobMessage("\xff\x81\x02\x01\x02\xff\x82\x00\x01\xff\x82\x00\x00") +
			gobMessage("\xff\x80\x00\x01\x06string\x0c\x03\x00\x01a", string(gobUint(uint64(len("github.com/redistore/redistore.nested")))),
				"github.com/redistore/redistore.nested\xff\x82\x01\x00", strings.Repeat("\x01", plantedDepth), "\x00")
	},
	"a map that claims to be large": func() string {
		return gobMessage("\xff\x81\x04\x01\x02\xff\x82\x00\x01\x0c\x01\x10\x00\x00") +
			gobMessage("\xff\x80\x00\x01\x06string\x0c\x03\x00\x01a\x16map[string]interface {}\xff\x82\x01\x00\xfc\x3f\xff\xff\xff")
	},
	"a map of large structs that are empty": func() string {
		entries := ""
		for i := range 1000 {
			entries += string(gobUint(uint64(2*i))) + "\x00"
		}
		return gobMessage("\xff\x81\x03\x01\x02\xff\x82\x00\x00\x00") +
			gobMessage("\xff\x83\x04\x01\x02\xff\x84\x00\x01\x04\x01\xff\x82\x00\x00") +
			gobMessage("\xff\x80\x00\x01\x06string\x0c\x03\x00\x01a", string(gobUint(uint64(len("map[int]redistore.bulky")))),
				"map[int]redistore.bulky\xff\x84\x01\x00", string(gobUint(1000)), entries)
	},
	"large structs that are empty, in one that has a text": func() string {
		const n, name = 2000, "github.com/redistore/redistore.labelled"
		return gobMessage("\xff\x81\x03\x01\x02\xff\x82\x00\x00\x00") +
			gobMessage("\xff\x83\x02\x01\x02\xff\x84\x00\x01\xff\x82\x00\x00") +
			gobMessage("\xff\x85\x03\x01\x02\xff\x86\x00\x01\x01\x01\x03All\x01\xff\x84\x00\x00\x00") +
			gobMessage("\xff\x80\x00\x01\x06string\x0c\x03\x00\x01a", string(gobUint(uint64(len(name)))),
				name+"\xff\x86\x01\x01", string(gobUint(n)), strings.Repeat("\x00", n), "\x00")
	},
	"large structs that are empty": func() string {
		return gobMessage("\xff\x81\x03\x01\x02\xff\x82\x00\x00\x00") +
			gobMessage("\xff\x83\x02\x01\x02\xff\x84\x00\x01\xff\x82\x00\x00") +
			gobMessage("\xff\x80\x00\x01\x06string\x0c\x03\x00\x01a", string(gobUint(uint64(len("[]redistore.bulky")))),
				"[]redistore.bulky\xff\x84\x01\x00", string(gobUint(100_000)), strings.Repeat("\x00", 100_000))
	},
}

// TestPlantedNamesTakeNoTime: a gob of many definitions and as many names that nobody has
// registered, of types that encode themselves.
func TestPlantedNamesTakeNoTime(t *testing.T) {
	const types, names, long = 4000, 20_000, 100
	id := func(n int) string { return string(gobUint(uint64(n) << 1)) }
	var definitions, entries strings.Builder
	for i := range types {
		definitions.WriteString(gobMessage(string(gobUint(uint64(99+i)<<1|1)), "\x05\x01\x01", string(gobUint(long)), strings.Repeat("n", long), "\x01", id(100+i), "\x00\x00\x00"))
	}
	for i := range names {
		name := fmt.Sprintf("name%06d", i)
		entries.WriteString("\x03int\x04\x04\x00" + id(i) + string(gobUint(uint64(len(name)))) + name + id(100) + "\x02\x00\x00")
	}
	data := []byte(mapOfAny + definitions.String() + gobMessage("\xff\x80\x00", string(gobUint(names)), entries.String()))
	failed := make(chan error, 1)
	go func() { failed <- GobSerializer{}.Deserialize(data, sessions.NewSession(nil, "s")) }()
	select {
	case err := <-failed:
		wantText(t, err, "name not registered")
	case <-time.After(10 * time.Second):
		t.Errorf("%d bytes took more than 10 s", len(data))
	}
}

const mapOfAny = "\x0d\x7f\x04\x01\x02\xff\x80\x00\x01\x10\x01\x10\x00\x00"

// TestWhateverIsPlantedIsAnError runs each kind in a process of its own: a stack overflow
// cannot be recovered from.
func TestWhateverIsPlantedIsAnError(t *testing.T) {
	const kind = "REDISTORE_TEST_PLANTED"
	given := map[string]func() any{
		"Save: a cycle":                             func() any { v := []any{nil}; v[0] = v; return v },
		"Save: a cycle of structs":                  func() any { v := &chain{}; v.Next = v; return v },
		"Save: a cycle of structs that have a text": func() any { v := &labelled{}; v.Next = v; return []any{v, make(chan int)} },
		"Save: a cycle of maps":                     func() any { v := map[string]any{}; v["a"] = v; return v },
		"Save: lists that share their parts": func() any { // 2^60 of them, if all are written out
			v := []any{1}
			for range 60 {
				v = []any{v, v}
			}
			return v
		},
		"Save: structs that share their parts": func() any {
			v := &chain{}
			for range 60 {
				v = &chain{v, v}
			}
			return v
		},
		"Save: a long text that is there often": func() any {
			text, v := strings.Repeat("x", 1<<20), make([]any, 4096)
			for i := range v {
				v[i] = text
			}
			return v
		},
		"Save: a deep value": func() any {
			v := any(1)
			for range 3_000_000 {
				v = []any{v}
			}
			return v
		},
	}
	name := os.Getenv(kind)
	if name == "" {
		t.Parallel()
		names := slices.Concat([]string{"JSON"}, slices.Collect(maps.Keys(plantedGobs)), slices.Collect(maps.Keys(given)))
		for _, name := range names {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				runPlanted(t, kind, name)
			})
		}
		return
	}
	s := sessions.NewSession(nil, "s")
	var before, after runtime.MemStats
	switch make, planted := plantedGobs[name]; {
	case planted:
		data := []byte(mapOfAny + make())
		runtime.ReadMemStats(&before)
		err := GobSerializer{}.Deserialize(data, s)
		runtime.ReadMemStats(&after)
		wantText(t, err, "GobSerializer: ")
		t.Log(err)
		if took, most := after.TotalAlloc-before.TotalAlloc, uint64(8<<20+64*len(data)); took > most {
			t.Errorf("%d bytes took %d of memory", len(data), took)
		}
	case name == "JSON":
		wantText(t, JSONSerializer{}.Deserialize([]byte(`{"a":`+strings.Repeat("[", 10_000_000)), s), "JSONSerializer: ")
	default:
		s.Values["the key"] = given[name]()
		for _, z := range []Serializer{GobSerializer{}, JSONSerializer{}} {
			_, err := z.Serialize(s)
			wantText(t, err, `Values["the key"]`)
		}
	}
	fmt.Println("survived")
}

func runPlanted(t *testing.T, kind, name string) {
	cmd := exec.Command(os.Args[0], "-test.v", "-test.run=^TestWhateverIsPlantedIsAnError$")
	cmd.Env = append(os.Environ(), kind+"="+name)
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("survived")) {
		t.Errorf("%s: %v: %.3000s", name, err, out)
	}
	if testing.Verbose() {
		t.Logf("%s: %.300s", name, out)
	}
}

// TestWhatSaveAcceptsIsRead: the bound is the same on both sides.
func TestWhatSaveAcceptsIsRead(t *testing.T) {
	for _, depth := range []int{50, 99, 101, 500, 990, 1001} {
		v := any(map[string]any{})
		for range depth {
			v = []any{v, &chain{Any: 1}}
		}
		s := sessions.NewSession(nil, "s")
		s.Values["k"] = v
		data, err := GobSerializer{}.Serialize(s)
		if depth > 1000 {
			wantText(t, err, `Values["k"]`)
			continue
		}
		must(t, err)
		got := sessions.NewSession(nil, "s")
		must(t, GobSerializer{}.Deserialize(data, got))
	}
	s := sessions.NewSession(nil, "s")
	s.Values["k"], s.Values["fine"] = struct{ A int }{1}, 1
	_, err := GobSerializer{}.Serialize(s)
	wantText(t, err, `Values["k"]: gob: `)
}
