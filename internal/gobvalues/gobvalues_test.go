package gobvalues

import (
	"bytes"
	"encoding/binary"
	"encoding/gob"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

type custom struct{ A int }

// The program that TestTimeHasToBeRegistered starts registers time.Time in its own way.
const registration = "TEST_REGISTRATION"

func init() {
	gob.Register(custom{})
	gob.Register(map[string]any{})
	if os.Getenv(registration) == "" {
		gob.Register(time.Time{})
	}
}

func encode(t testing.TB, values map[any]any) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := gob.NewEncoder(&buf).Encode(values); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// decode is what redistore does with what is not decoded here.
func decode(data []byte) (values map[any]any, err error) {
	values = make(map[any]any)
	r := bytes.NewReader(data)
	err = gob.NewDecoder(r).Decode(&values)
	if err == nil && r.Len() > 0 {
		err = fmt.Errorf("%d bytes after the value", r.Len())
	}
	return values, err
}

// show tells apart all that can be told apart, and NaN is like NaN.
func show(v any) string {
	switch v := v.(type) {
	case map[any]any:
		lines := []string{fmt.Sprint(v == nil)}
		for key, value := range v {
			lines = append(lines, show(key)+": "+show(value))
		}
		slices.Sort(lines)
		return strings.Join(lines, "\n")
	case []any:
		elements := fmt.Sprintf("[]any %t", v == nil)
		for _, e := range v {
			elements += " (" + show(e) + ")"
		}
		return elements
	case float32:
		return fmt.Sprintf("float32 %x", math.Float32bits(v))
	case float64:
		return fmt.Sprintf("float64 %x", math.Float64bits(v))
	case complex64:
		return "complex64 " + show(real(v)) + show(imag(v))
	case complex128:
		return "complex128 " + show(real(v)) + show(imag(v))
	case time.Time:
		return fmt.Sprintf("%#v %[1]s", v)
	}
	return fmt.Sprintf("%T %#[1]v", v)
}

// check wants the values back that went through encoding/gob alone, whichever side is
// replaced by this package.
func check(t *testing.T, values map[any]any) {
	t.Helper()
	ours, ok := Encode(values)
	var buf bytes.Buffer
	if err := gob.NewEncoder(&buf).Encode(values); err != nil {
		if ok {
			t.Errorf("%q of what encoding/gob refuses: %v", ours, err)
		}
		return
	}
	data := buf.Bytes()
	want, err := decode(data)
	if err != nil {
		t.Fatal(err)
	}
	got, decoded := Decode(data)
	if !decoded || show(got) != show(want) {
		t.Errorf("decoded here: %t, %s\nof %q, want\n%s", decoded, show(got), data, show(want))
	}
	if len(want) < len(values) {
		return // keys differed in the name of a time zone, and it is chance which one is left
	}
	got, err = decode(ours)
	if !ok || err != nil || show(got) != show(want) {
		t.Errorf("encoded here: %t, %s\nof %q, want\n%s, %v", ok, show(got), ours, show(want), err)
	}
	got, ok = Decode(ours)
	if !ok || show(got) != show(want) {
		t.Errorf("there and back here: %t, %s\nof %q, want\n%s", ok, show(got), ours, show(want))
	}
	// The ids are others, but as long; the definition of time.Time goes without a name.
	if len(values) < 2 && len(ours) != len(data) && !bytes.Contains(data, []byte("time.Time")) {
		t.Errorf("%d bytes, %q\nwant %d, %q", len(ours), ours, len(data), data)
	}
}

var (
	berlin, _ = time.LoadLocation("Europe/Berlin")
	when      = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

	// common is what sessions hold.
	common = []any{
		nil, true, false, "", "ann@example.com", "ü\xff\x00", strings.Repeat("long", 1000),
		0, 1, -1, 63, 64, -64, -65, math.MaxInt, math.MinInt,
		int8(math.MaxInt8), int8(math.MinInt8), int16(math.MaxInt16), int16(math.MinInt16),
		int32(math.MaxInt32), int32(math.MinInt32), int64(math.MaxInt64), int64(math.MinInt64),
		uint(127), uint(128), uint(math.MaxUint), uint8(math.MaxUint8), uint16(math.MaxUint16),
		uint32(math.MaxUint32), uint64(math.MaxUint64), uintptr(math.MaxUint32),
		float32(1.5), float32(math.MaxFloat32), float32(math.SmallestNonzeroFloat32), float32(math.Inf(1)), float32(math.NaN()),
		0.0, math.Copysign(0, -1), 17.0, math.Pi, -math.MaxFloat64, math.Inf(-1), math.NaN(),
		complex64(1 + 2i), complex(math.Inf(1), math.NaN()),
		[]byte{}, []byte("raw"), make([]byte, 1000), []int{}, []int{1, -1, math.MaxInt},
		[]string{}, []string{"", "admin"}, make([]string, 1000),
		time.Time{}, when, when.Add(1).Local(), when.Add(2).In(berlin), when.Add(3).In(time.FixedZone("", 3600)), when.Add(4).In(time.FixedZone("CET", 3601)),
		[]any{}, []any{"flash"}, []any{nil, 1, when, []string{"a"}, []any{[]any{"deep"}, []int{1}, when}, []string{"b"}},
		slices.Repeat([]any{"flash"}, 1000), slices.Repeat([]any{[]any{"list"}}, 2*maxDepth),
	}
)

func TestCommonValuesAreDecoded(t *testing.T) {
	check(t, nil)
	check(t, map[any]any{})
	all := make(map[any]any)
	for i, v := range common {
		check(t, map[any]any{"key": v})
		all[i] = v
		switch v.(type) {
		case []byte, []int, []string, []any:
		default:
			check(t, map[any]any{v: "value"})
			all[v] = i
		}
	}
	check(t, all)
	// boj/redistore and gorilla/csrf, say
	check(t, map[any]any{"user": "ann", "id": 42, "_flash": []any{"saved"}, "token": []byte("token"), "seen": int64(1700000000)})
}

func TestStrings(t *testing.T) {
	for _, text := range []string{"", "id", "ü\xff\x00", strings.Repeat("x", 200), strings.Repeat("x", 1000)} {
		var buf bytes.Buffer
		if err := gob.NewEncoder(&buf).Encode(text); err != nil {
			t.Fatal(err)
		}
		data := buf.Bytes()
		if ours := EncodeString(text); !bytes.Equal(ours, data) {
			t.Errorf("%q, want %q", ours, data)
		}
		if got, ok := DecodeString(data); !ok || got != text {
			t.Errorf("%t, %q, want %q", ok, got, text)
		}
		for n := range data {
			if _, ok := DecodeString(data[:n]); ok {
				t.Errorf("%d of %d bytes were enough", n, len(data))
			}
		}
	}
	for _, data := range []string{"\x03\x04\x00\x02", "\x04\x0c\x01\x01a", "\x04\x0c\x00\x01a\x00", "\x05\x0c\x00\x01a\x00", "\x04\x0a\x00\x01a"} {
		if got, ok := DecodeString([]byte(data)); ok {
			t.Errorf("%q: %q", data, got)
		}
	}
}

func TestTheRestIsLeft(t *testing.T) {
	type key string
	gob.Register(key(""))
	deep := any("deep")
	for range maxDepth + 1 {
		deep = []any{deep}
	}
	endless := []any{1, 2}
	endless[0], endless[1] = endless, endless
	for _, values := range []map[any]any{
		{"k": custom{1}},
		{"k": map[string]any{"a": 1}},
		{"k": []any{custom{1}}},
		{"k": []float64{1}},
		{key("k"): 1},
		{custom{1}: 1},
		{"k": deep},
	} {
		if got, ok := Decode(encode(t, values)); ok {
			t.Errorf("%v came back as %v", values, got)
		}
		if data, ok := Encode(values); ok {
			t.Errorf("%v: %q", values, data)
		}
	}
	for what, v := range map[string]any{
		"a type that is not registered":  struct{}{},
		"a channel":                      make(chan int),
		"a pointer to nothing":           (*custom)(nil),
		"a slice in itself":              endless,
		"a time that cannot be encoded":  when.In(time.FixedZone("", -60)),
		"more than a stream should have": make([]byte, maxSize),
	} {
		if data, ok := Encode(map[any]any{"k": []any{v, when}}); ok {
			t.Errorf("%s: %.100q", what, data)
		}
	}
}

// mapDefinition is that of map[any]any, with the id 64; message gives what comes after
// it its size.
const mapDefinition = "\x0d\x7f\x04\x01\x02\xff\x80\x00\x01\x10\x01\x10\x00\x00"

func message(value string) string {
	if len(value) > math.MaxUint8 {
		panic("too long")
	}
	return "\xff" + string([]byte{byte(len(value))}) + value
}

// TestOtherStreams decodes what encoding/gob does not write.
func TestOtherStreams(t *testing.T) {
	const (
		one   = "\xff\x80\x00\x01" // the start of a map with one key
		key   = "\x06string\x0c\x03\x00\x01a"
		true_ = "\x04bool\x02\x02\x00\x01"
		anys  = "\x0e[]interface {}"
	)
	for what, c := range map[string]struct {
		data string
		ok   bool
	}{
		"nil":            {mapDefinition + message(one+"\x00\x00"), true},
		"a named type":   {"\x10\x7f\x04\x01\x01\x01m\x01\xff\x80\x00\x01\x10\x01\x10\x00\x00" + message(one+"\x00\x00"), true},
		"a long number":  {mapDefinition + message(one+"\xff\x06string\xfe\x00\x0c\x03\xf8\x00\x00\x00\x00\x00\x00\x00\x00\x01a\x00"), true},
		"a wrong size":   {mapDefinition + message(one+"\x06string\x0c\x7f\x00\x01a\x00"), true},
		"another true":   {mapDefinition + message(one+key+"\x04bool\x02\x02\x00\x07"), true},
		"a key twice":    {mapDefinition + message("\xff\x80\x00\x02"+key+true_+key+key), true},
		"types up front": {mapDefinition + message(one+key+anys+"\xff\x83\x02\x01\x02\xff\x84\x00\x01\x10\x00\x00") + message("\xff\x81\x02\x01\x02\xff\x82\x00\x01\x10\x00\x00") + message("\xff\x84\x03\x00\x01\x00"), true},

		"nothing":               {"", false},
		"an empty message":      {"\x00", false},
		"only a definition":     {mapDefinition, false},
		"no definition":         {message(one + "\x00\x00"), false},
		"another id":            {mapDefinition + message("\xff\x82\x00\x01\x00\x00"), false},
		"an id of encoding/gob": {"\x0c\x01\x04\x01\x02\x02\x00\x01\x10\x01\x10\x00\x00" + message("\x02\x00\x00"), false},
		"an id too large":       {"\x15\xfc\xff\xff\xff\xff\x04\x01\x02\xfb\x01\x00\x00\x00\x00\x00\x01\x10\x01\x10\x00\x00" + message("\xfb\x01\x00\x00\x00\x00\x00\x01\x00\x00"), false},
		"a slice defined twice": {mapDefinition + message(one+key+anys+"\xff\x81\x02\x01\x02\xff\x82\x00\x01\x10\x00\x00") + message("\xff\x81\x02\x01\x02\xff\x82\x00\x01\x10\x00\x00") + message("\xff\x82\x03\x00\x01\x00"), false},
		"two ids":               {"\x0d\x7f\x04\x01\x02\xff\x82\x00\x01\x10\x01\x10\x00\x00" + message(one+"\x00\x00"), false},
		"string keys":           {"\x0d\x7f\x04\x01\x02\xff\x80\x00\x01\x0c\x01\x10\x00\x00" + message(one+"\x00\x00"), false},
		"a slice":               {"\x0b\x7f\x02\x01\x02\xff\x80\x00\x01\x10\x00\x00" + message("\xff\x80\x00\x00"), false},
		"an unfinished type":    {"\x0c\x7f\x04\x01\x02\xff\x80\x00\x01\x10\x01\x10\x00" + message(one+"\x00\x00"), false},
		"a kind of nothing":     {mapDefinition + message(one+key+"\x04bool\xff\x81\x00\x01\x02\xff\x82\x00\x00\x00") + message("\x02\x02\x00\x01"), false},
		"a kind unheard of":     {mapDefinition + message(one+key+"\x04bool\xff\x81\x08\x01\x02\xff\x82\x00\x00\x00") + message("\x02\x02\x00\x01"), false},
		"defined twice":         {mapDefinition + mapDefinition + message(one+"\x00\x00"), false},
		"more in a definition":  {"\x0e" + mapDefinition[1:] + "\x00" + message(one+"\x00\x00"), false},
		"more in the message":   {mapDefinition + message(one+"\x00\x00\x00"), false},
		"more after it":         {mapDefinition + message(one+"\x00\x00") + "\x00", false},
		"a struct's field":      {mapDefinition + message("\xff\x80\x01\x01\x00\x00"), false},
		"a field in a value":    {mapDefinition + message(one+key+"\x04bool\x02\x02\x01\x01"), false},
		"a number of 9 bytes":   {mapDefinition + message("\xff\x80\x00\xf7\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00"), false},
		"a negative count":      {mapDefinition + message("\xff\x80\x00\xf8\x80\x00\x00\x00\x00\x00\x00\x01\x00\x00"), false},
		"an unknown name":       {mapDefinition + message(one+key+"\x04boot\x02\x02\x00\x01"), false},
		"a string called bool":  {mapDefinition + message(one+key+"\x04bool\x0c\x02\x00\x01"), false},
		"an undefined type":     {mapDefinition + message(one+key+anys+"\xff\x82\x02\x00\x00"), false},
		"strings called any":    {mapDefinition + message(one+key+anys+"\xff\x81\x02\x01\x02\xff\x82\x00\x01\x0c\x00\x00") + message("\xff\x82\x02\x00\x00"), false},
		"the map's id again":    {mapDefinition + message(one+key+anys+"\x7f\x02\x01\x02\xff\x80\x00\x01\x10\x00\x00") + message("\xff\x80\x02\x00\x00"), false},
		"an int8 of 128":        {mapDefinition + message(one+key+"\x04int8\x04\x04\x00\xfe\x01\x00"), false},
		"a uint8 of 256":        {mapDefinition + message(one+key+"\x05uint8\x06\x04\x00\xfe\x01\x00"), false},
		"too much a float32":    {mapDefinition + message(one+key+"\x07float32\x08\x09\x00\xf8\xff\xff\xff\xff\xff\xff\xef\x7f"), false},
		"a slice as a key":      {mapDefinition + message(one+"\x07[]uint8\x0a\x02\x00\x00\x00"), false},
		"no time":               {mapDefinition + message(one+key+"\x09time.Time\xff\x81\x05\x01\x02\xff\x82\x00\x00\x00") + message("\xff\x82\x03\x00\x01\x09"), false},
	} {
		got, ok := Decode([]byte(c.data))
		if ok != c.ok {
			t.Errorf("%s: %t, %s", what, ok, show(got))
		}
		if !c.ok {
			continue
		}
		want, err := decode([]byte(c.data))
		if err != nil || show(got) != show(want) {
			t.Errorf("%s: %s, want %s, %v", what, show(got), show(want), err)
		}
	}
}

// TestCutShort also shows that the data may change afterwards.
func TestCutShort(t *testing.T) {
	data := encode(t, map[any]any{"a": []byte("raw"), "b": "text", "c": common})
	for n := range data {
		if _, ok := Decode(data[:n]); ok {
			t.Errorf("%d of %d bytes were enough", n, len(data))
		}
	}
	got, _ := Decode(data)
	before := show(got)
	clear(data)
	if show(got) != before {
		t.Error("the values are still in the data")
	}
}

func TestCountsMayLie(t *testing.T) {
	const most = "\xf8\x7f\xff\xff\xff\xff\xff\xff\xff" // MaxInt64
	const start = mapDefinition + "\xff\x50\xff\x80\x00\x01\x00"
	nested := mapDefinition + "\xfe\x7f\xff\xff\x80\x00\x01\x00\x0e[]interface {}\xff\x81\x02\x01\x02\xff\x82\x00\x01\x10\x00\x00" +
		"\xfe\x7f\xff\xff\x82\x02\x00" + most + strings.Repeat("\x0e[]interface {}\xff\x82\x02\x00"+most, 2*maxDepth)
	for what, data := range map[string]string{
		"values":  mapDefinition + "\xff\x0b\xff\x80\x00" + most,
		"some":    mapDefinition + "\xff\x07\xff\x80\x00\xfd\x10\x00\x00", // 1 << 20
		"name":    start + most,
		"string":  start + "\x06string\x0c\x03\x00" + most,
		"bytes":   start + "\x07[]uint8\x0a\x03\x00" + most,
		"message": mapDefinition + most,
		"nested":  nested + strings.Repeat("\x00", 0x7fff),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, ok := Decode([]byte(data))
		runtime.ReadMemStats(&after)
		if took := after.TotalAlloc - before.TotalAlloc; ok || took > 1<<18 {
			t.Errorf("%s: %t, with %d bytes for %d", what, ok, took, len(data))
		}
	}
}

// TestTimeHasToBeRegistered shows that where encoding/gob fails, nothing is decoded here.
func TestTimeHasToBeRegistered(t *testing.T) {
	stream := os.Getenv(registration + "_STREAM")
	if stream == "" {
		data := encode(t, map[any]any{"k": when})
		for _, how := range []string{"late", "as something else", "as a pointer", "not as time.Time"} {
			cmd := exec.Command(os.Args[0], "-test.run=^TestTimeHasToBeRegistered$")
			cmd.Env = append(os.Environ(), registration+"="+how, registration+"_STREAM="+fmt.Sprintf("%x", data))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v, %s", how, err, out)
			}
		}
		return
	}
	var data []byte
	fmt.Sscanf(stream, "%x", &data)
	if got, ok := Decode(data); ok {
		t.Errorf("decoded before it is registered: %v", got)
	}
	if data, ok := Encode(map[any]any{"k": when}); ok {
		t.Errorf("encoded before it is registered: %q", data)
	}
	switch os.Getenv(registration) {
	case "late":
		gob.Register(time.Time{})
	case "as something else":
		gob.RegisterName("time.Time", custom2{})
	case "as a pointer":
		gob.RegisterName("time.Time", &time.Time{})
	case "not as time.Time":
		gob.RegisterName("the time.Time", time.Time{})
	}
	want, err := decode(data)
	got, ok := Decode(data)
	same := err == nil && show(got) == show(want)
	registered := os.Getenv(registration) == "late"
	if ok != registered || registered && !same {
		t.Errorf("%t, %v; encoding/gob: %v, %v", ok, got, want, err)
	}
	if _, ok := Encode(map[any]any{"k": when}); ok != registered {
		t.Errorf("encoded: %t", ok)
	}
}

// custom2 is a GobEncoder too.
type custom2 struct{ time.Time }

func FuzzDecode(f *testing.F) {
	for _, v := range common {
		f.Add(encode(f, map[any]any{"key": v, 1: true}))
	}
	f.Add(encode(f, map[any]any{"a": common[len(common)-3], "b": custom{1}, when: 1.5}))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, ok := Decode(data)
		if !ok {
			return
		}
		want, err := decode(data)
		if err != nil || show(got) != show(want) {
			t.Errorf("%q: %s, want %s, %v", data, show(got), show(want), err)
		}
		check(t, got)
	})
}

func FuzzValues(f *testing.F) {
	for i := range 100 {
		f.Add(bytes.Repeat([]byte{byte(i), byte(7 * i), 3}, i))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s := source(data)
		values := make(map[any]any)
		for len(s) > 0 {
			values[s.basic()] = s.value(0)
		}
		check(t, values)
	})
}

// source makes values of the bytes that it is.
type source []byte

func (s *source) take(n int) []byte {
	n = min(n, len(*s))
	taken := (*s)[:n]
	*s = (*s)[n:]
	return taken
}

func (s *source) number() uint64 {
	var b [8]byte
	n := s.take(1)
	if len(n) > 0 {
		copy(b[:], s.take(int(n[0]%9)))
	}
	return binary.LittleEndian.Uint64(b[:])
}

func (s *source) value(depth int) any {
	n := s.number()
	switch size := int(n >> 3 % 300); n % 8 {
	case 0:
		return s.take(size)
	case 1:
		return repeat(size, func() int { return int(s.number()) })
	case 2:
		return repeat(size, func() string { return string(s.take(int(s.number() % 10))) })
	case 3:
		if depth < 10 {
			return repeat(min(size, len(*s)), func() any { return s.value(depth + 1) })
		}
	}
	return s.basic()
}

func repeat[T any](n int, element func() T) []T {
	made := make([]T, n)
	for i := range made {
		made[i] = element()
	}
	return made
}

func (s *source) basic() any {
	n := s.number()
	kind := s.number()
	float := math.Float64frombits(n)
	small := math.Float32frombits(uint32(n))
	return []any{
		nil, n%2 == 0, int(n), int8(n), int16(n), int32(n), int64(n), uint(n), uint8(n), uint16(n), uint32(n), n, uintptr(n),
		small, float, complex(small, -small), complex(float, float64(n)),
		string(s.take(int(n % 300))),
		time.Unix(int64(n), int64(n)).In(time.FixedZone("", int(n%86400))), time.Unix(int64(n>>20), 0).UTC(), when.Local(),
	}[kind%21]
}

func BenchmarkDecode(b *testing.B) {
	for name, values := range sized {
		data := encode(b, values)
		compare(b, name, func() bool { _, err := decode(data); return err == nil }, func() bool { _, ok := Decode(data); return ok })
	}
}

func BenchmarkEncode(b *testing.B) {
	for name, values := range sized {
		compare(b, name, func() bool { return encode(b, values) != nil }, func() bool { _, ok := Encode(values); return ok })
	}
}

var sized = map[string]map[any]any{
	"5 fields": {"user": "ann@example.com", "id": 42, "admin": true, "lang": "en-GB", "visits": 1},
	"1 KB":     {"user": "ann@example.com", "data": strings.Repeat("x", 1<<10)},
	"16 KB":    {"user": "ann@example.com", "data": strings.Repeat("x", 16<<10)},
	"256 KB":   {"user": "ann@example.com", "data": strings.Repeat("x", 256<<10)},
}

// compare runs both in turns, as often as -count says.
func compare(b *testing.B, name string, theirs, ours func() bool) {
	for who, do := range map[string]func() bool{"gob": theirs, "gobvalues": ours} {
		b.Run(name+"/"+who, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if !do() {
					b.Fatal("failed")
				}
			}
		})
	}
}
