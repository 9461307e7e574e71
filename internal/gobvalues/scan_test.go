package gobvalues

import (
	"bytes"
	"encoding/gob"
	"fmt"
	"runtime"
	"strings"
	"testing"
)

type tree struct {
	Name  string
	Kids  []tree
	Any   any
	Table map[string]int
	Four  [4]int
	Next  *tree
}

func init() {
	gob.Register(tree{})
	gob.Register(map[string]int{})
	gob.Register([4]int{})
	gob.Register([]float64{})
}

// nest makes values that nest, of types that only encoding/gob reads.
func (s *source) nest(depth int) any {
	n := s.number()
	if depth > 12 || len(*s) == 0 {
		return s.basic()
	}
	switch n % 9 {
	case 0:
		return custom{int(n)}
	case 1:
		return map[string]any{"a": s.nest(depth + 1), "b": s.nest(depth + 1)}
	case 2:
		return tree{Name: "t", Any: s.nest(depth + 1), Kids: make([]tree, n>>8%4), Table: map[string]int{"a": int(n)}}
	case 3:
		return tree{Four: [4]int{int(n)}, Next: &tree{Any: s.nest(depth + 1)}}
	case 4:
		return [4]int{1, 2, 3, int(n)}
	case 5:
		return []any{s.nest(depth + 1), s.nest(depth + 1)}
	case 6:
		return make([]float64, n>>8%100)
	case 7:
		return map[string]int{"n": int(n)}
	}
	return s.basic()
}

// FuzzScan makes nested values, and then changes a few bytes, such as sizes and depths.
// What encoding/gob wrote, it reads again after Scan; what was changed is either refused or
// takes memory within the bound.
func FuzzScan(f *testing.F) {
	for i := range 100 {
		f.Add(bytes.Repeat([]byte{byte(i), byte(7 * i), 3}, i), uint16(i), byte(i*3))
	}
	f.Fuzz(func(t *testing.T, data []byte, at uint16, b byte) {
		if len(data) > 1<<12 {
			return
		}
		s := source(data)
		values := make(map[any]any)
		for i := 0; len(s) > 0; i++ {
			values[i] = s.nest(0)
		}
		var buf bytes.Buffer
		if gob.NewEncoder(&buf).Encode(values) != nil {
			return
		}
		stream := buf.Bytes()
		want, err := decode(stream)
		if err != nil {
			return
		}
		scanned, err := Scan(stream)
		if err != nil {
			t.Fatalf("refused: %v", err)
		}
		got, err := decode(scanned)
		if err != nil || text(got) != text(want) {
			t.Fatalf("%v, %s\nwant %s", err, text(got), text(want))
		}
		if len(stream) == 0 {
			return
		}
		planted := bytes.Clone(stream)
		planted[int(at)%len(planted)] ^= b
		if b%4 == 0 { // a large count
			i := int(at) % len(planted)
			planted = append(planted[:i:i], append([]byte{0xfc, 0x3f, 0xff, 0xff, b}, planted[i:]...)...)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if scanned, err = Scan(planted); err == nil {
			_, _ = decodeSafely(scanned)
		}
		runtime.ReadMemStats(&after)
		if took, most := after.TotalAlloc-before.TotalAlloc, uint64(16<<20+100*len(planted)); took > most {
			t.Errorf("%d bytes took %d: %q", len(planted), took, planted)
		}
	})
}

// text is the same for the same values: maps are sorted, and pointers followed.
func text(v map[any]any) string {
	var lines []string
	for i := range len(v) {
		lines = append(lines, deref(v[i]))
	}
	return strings.Join(lines, "\n")
}

func deref(v any) string {
	switch v := v.(type) {
	case tree:
		next := ""
		if v.Next != nil {
			next = deref(*v.Next)
		}
		return fmt.Sprint(v.Name, len(v.Kids), deref(v.Any), v.Table, v.Four, next)
	case map[string]any:
		return deref(v["a"]) + deref(v["b"])
	case []any:
		all := ""
		for _, e := range v {
			all += deref(e) + ","
		}
		return all
	}
	return show(v)
}

func decodeSafely(data []byte) (values map[any]any, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	return decode(data)
}
