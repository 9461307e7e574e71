package gobvalues

import (
	"bytes"
	"encoding"
	"encoding/binary"
	"encoding/gob"
	"errors"
	"fmt"
	"math"
	"reflect"
	"sync"
)

// The bounds of what is left to encoding/gob, which has none of its own that a process
// survives. Save and Get keep the same ones.
const (
	MaxDepth       = 1000    // slices, maps, arrays and structs in one another
	maxDefinitions = 1 << 12 // of types, in one stream
	memoryBase     = 4 << 20 // bytes of memory, 4 MiB
	memoryPerByte  = 64      // and so many for each byte of the stream
)

var errCorrupt = errors.New("the gob is corrupt: no encoder writes it")

// Scan returns data as encoding/gob may safely decode it, or says why it may not. It
// believes no size and no count: each element that is claimed has to be there, values
// nest MaxDepth deep at most, and what the registered types make of them has to fit into
// memoryBase and memoryPerByte. What it returns has all definitions first, and true sizes:
// the decoder then skips exactly what Scan has seen.
func Scan(data []byte) (out []byte, err error) {
	s := &scanner{
		decoder: decoder{rest: data}, types: make(map[int64]*shape), plans: make(map[pair][]reflect.Type),
		named: make(map[string]reflect.Type), budget: memoryBase + memoryPerByte*int64(len(data)),
	}
	defer func() {
		switch p := recover().(type) {
		case nil:
		case scanError:
			out, err = nil, p.error
		default:
			panic(p)
		}
	}()
	id := s.sequence(false)
	s.emitInt(id)
	s.single(id, reflect.TypeFor[map[any]any]())
	if len(s.msg)+len(s.rest) > 0 {
		return nil, fmt.Errorf("%d bytes after the value", len(s.msg)+len(s.rest))
	}
	return appendMessage(s.defs, s.out), nil
}

type scanError struct{ error }

// A shape is a type as the stream defines it.
type shape struct {
	kind      uint64
	key, elem int64
	length    int64
	names     []string
	fields    []int64
}

const (
	arrayKind  = 1
	structKind = 3
)

type pair struct {
	id int64
	t  reflect.Type // nil: the value is skipped
}

type scanner struct {
	decoder
	types  map[int64]*shape
	plans  map[pair][]reflect.Type // of a struct's fields
	named  map[string]reflect.Type
	defs   []byte
	out    []byte
	budget int64
	level  int
}

func (s *scanner) fail(err error) { panic(scanError{err}) }

func (s *scanner) must(ok bool) {
	if !ok || s.failed {
		s.fail(errCorrupt)
	}
}

func (s *scanner) charge(n, size int64) {
	if size > 0 && n > s.budget/size {
		s.fail(fmt.Errorf("the gob takes more memory than %d bytes and %d for each byte of it", memoryBase, memoryPerByte))
	}
	s.budget -= n * size
}

// number copies one.
func (s *scanner) number() uint64 {
	n := s.uint()
	s.must(true)
	s.out = appendUint(s.out, n)
	return n
}

// chunk copies a length and as many bytes.
func (s *scanner) chunk() []byte {
	text := s.text()
	s.must(true)
	s.out = append(appendUint(s.out, uint64(len(text))), text...)
	return text
}

func (s *scanner) emitInt(x int64) { s.out = appendUint(s.out, uint64(x<<1)^uint64(x>>63)) }

func appendMessage(to, message []byte) []byte {
	return append(appendUint(to, uint64(len(message))), message...)
}

// sequence reads definitions, and the ID of the value that follows.
func (s *scanner) sequence(inside bool) int64 {
	for {
		if len(s.msg) == 0 {
			if len(s.rest) == 0 {
				s.fail(errors.New("unexpected EOF"))
			}
			s.message()
			if s.failed {
				s.fail(errors.New("unexpected EOF"))
			}
		}
		start := s.msg
		id := s.int()
		s.must(true)
		if id >= 0 {
			return id
		}
		s.definition(-id)
		s.must(true)
		s.defs = appendMessage(s.defs, start[:len(start)-len(s.msg)])
		if len(s.msg) > 0 {
			s.must(inside)
			s.uint() // the size of what follows
		}
	}
}

// definition reads a wireType, as encoding/gob documents it.
func (s *scanner) definition(id int64) {
	s.must(id >= firstID && id <= math.MaxInt32 && s.types[id] == nil && len(s.types) < maxDefinitions)
	t := &shape{kind: s.uint()}
	s.must(t.kind >= 1 && t.kind <= 7)
	s.fieldsOf(func(field uint64) {
		switch {
		case field == 1:
			s.common()
		case field == 2 && t.kind == structKind:
			n := s.uint()
			s.must(n <= uint64(len(s.msg)))
			for ; n > 0; n-- {
				name, fieldID := s.common()
				s.must(name != "")
				t.names, t.fields = append(t.names, name), append(t.fields, fieldID)
			}
		case field == 2 && t.kind == mapKind:
			t.key = s.int()
		case field == 2 && (t.kind == sliceKind || t.kind == arrayKind), field == 3 && t.kind == mapKind:
			t.elem = s.int()
		case field == 3 && t.kind == arrayKind:
			t.length = s.int()
			s.must(t.length >= 0)
		default:
			s.must(false)
		}
	})
	s.must(s.uint() == 0)
	s.types[id] = t
}

// common reads a CommonType or a fieldType: a name and an ID.
func (s *scanner) common() (name string, id int64) {
	s.fieldsOf(func(field uint64) {
		switch field {
		case 1:
			name = string(s.text())
		case 2:
			id = s.int()
		default:
			s.must(false)
		}
	})
	return name, id
}

func (s *scanner) fieldsOf(read func(field uint64)) {
	field := uint64(0)
	for {
		delta := s.uint()
		s.must(delta < 8)
		if delta == 0 {
			return
		}
		field += delta
		read(field)
	}
}

// single reads what is not part of another value.
func (s *scanner) single(id int64, t reflect.Type) {
	if shape := s.types[id]; shape == nil || shape.kind != structKind {
		s.must(s.number() == 0)
	}
	s.value(id, t)
}

func (s *scanner) value(id int64, t reflect.Type) {
	for t != nil && t.Kind() == reflect.Pointer && !encodes(t) {
		t = t.Elem()
		s.charge(1, int64(t.Size()))
	}
	switch id {
	case boolID, intID, uintID, floatID:
		s.number()
		return
	case complexID:
		s.number()
		s.number()
		return
	case bytesID, stringID:
		s.chunk()
		return
	case anyID:
		s.inside(t)
		return
	}
	shape := s.types[id]
	s.must(shape != nil)
	s.level++
	if s.level > MaxDepth {
		s.fail(fmt.Errorf("values nest more than %d deep", MaxDepth))
	}
	switch shape.kind {
	case sliceKind, arrayKind:
		n := s.count(1)
		s.must(shape.kind == sliceKind || n == shape.length)
		elem := elemOf(t, reflect.Slice, reflect.Array)
		if elem != nil && shape.kind == sliceKind {
			s.charge(n, 2*int64(elem.Size())) // it grows
		}
		for ; n > 0; n-- {
			s.value(shape.elem, elem)
		}
	case mapKind:
		n := s.count(2)
		elem, key := elemOf(t, reflect.Map), reflect.Type(nil)
		if elem != nil {
			key = t.Key()
			s.charge(n, 4*int64(elem.Size()+key.Size()+1)) // tables are half full
			s.charge(1, 64)
		}
		for ; n > 0; n-- {
			s.value(shape.key, key)
			s.value(shape.elem, elem)
		}
	case structKind:
		if t != nil && (t.Kind() != reflect.Struct || encodes(t)) {
			t = nil // encoding/gob refuses it
		}
		plan := s.plan(id, t)
		field := uint64(0)
		for {
			delta := s.number()
			if delta == 0 {
				break
			}
			s.must(delta <= uint64(len(plan))-field)
			field += delta
			s.value(shape.fields[field-1], plan[field-1])
		}
	default:
		s.chunk() // what a GobEncoder made
	}
	s.level--
}

// count reads how many elements there are, of so many bytes at least.
func (s *scanner) count(size uint64) int64 {
	n := s.number()
	s.must(n <= uint64(len(s.msg)+len(s.rest))/size)
	return int64(n)
}

func elemOf(t reflect.Type, kinds ...reflect.Kind) reflect.Type {
	for _, kind := range kinds {
		if t != nil && t.Kind() == kind {
			return t.Elem()
		}
	}
	return nil
}

// plan says which field of t each one of the stream's becomes. It charges for the
// instructions that encoding/gob compiles, which for a skipped field are those of all it
// may hold.
func (s *scanner) plan(id int64, t reflect.Type) []reflect.Type {
	plan, known := s.plans[pair{id, t}]
	if known {
		return plan
	}
	shape := s.types[id]
	plan = make([]reflect.Type, len(shape.fields))
	skipped := 0
	for i, name := range shape.names {
		if t != nil {
			if field, found := t.FieldByName(name); found && field.IsExported() {
				plan[i] = field.Type
				continue
			}
		}
		skipped++
	}
	s.charge(int64(len(plan)), 128)
	s.charge(int64(skipped)*int64(len(s.types)), 64)
	s.plans[pair{id, t}] = plan
	return plan
}

// inside reads what is in an interface. t is nil where it is skipped.
func (s *scanner) inside(t reflect.Type) {
	name := string(s.chunk())
	if name == "" {
		return
	}
	id := s.sequence(true)
	s.emitInt(id)
	s.uint() // a size that may lie
	s.must(true)
	var local reflect.Type
	if t != nil {
		local = s.typeOf(name, id)
		if local != nil {
			s.charge(1, int64(local.Size()))
		}
	}
	const long = 0x100 - 8 // a number of eight bytes
	at := len(s.out)
	s.out = append(s.out, long, 0, 0, 0, 0, 0, 0, 0, 0)
	s.single(id, local)
	binary.BigEndian.PutUint64(s.out[at+1:], uint64(len(s.out)-at-9))
}

var typesByName sync.Map // string: reflect.Type; what is registered stays so

// typeOf asks encoding/gob, which alone knows what is registered, for a zero value.
func (s *scanner) typeOf(name string, id int64) reflect.Type {
	if t, known := typesByName.Load(name); known {
		return t.(reflect.Type)
	}
	if t, known := s.named[name]; known {
		return t
	}
	zero := &scanner{types: s.types}
	if shape := s.types[id]; shape == nil || shape.kind != structKind {
		zero.out = append(zero.out, 0)
	}
	zero.zero(id, len(s.msg)+len(s.rest)+8)
	probe := append([]byte{anyID << 1, 0}, appendMessage(nil, []byte(name))...)
	probe = appendUint(probe, uint64(id<<1))
	probe = appendMessage(probe, zero.out)
	var v any
	err := decodeAny(appendMessage(bytes.Clone(s.defs), probe), &v)
	t := reflect.TypeOf(v)
	switch shape := s.types[id]; {
	case t != nil:
		typesByName.Store(name, t)
	case shape == nil || shape.kind < gobEncoderKind || err.Error() == fmt.Sprintf("gob: name not registered for interface: %q", name):
		s.fail(err) // at the first one: a stream may have many, and to ask for one takes all definitions
	}
	s.named[name] = t // nil: its GobDecode wants more than nothing, and allocates what it allocates
	return t
}

func decodeAny(data []byte, v *any) (err error) {
	defer func() { // an application's GobDecode
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	return gob.NewDecoder(bytes.NewReader(data)).Decode(v)
}

// zero writes the smallest value of a type.
func (s *scanner) zero(id int64, room int) {
	s.must(len(s.out) <= room)
	s.out = append(s.out, 0)
	if id == complexID {
		s.out = append(s.out, 0)
	}
	if shape := s.types[id]; shape != nil && shape.kind == arrayKind {
		s.level++
		s.must(s.level <= MaxDepth)
		s.out = appendUint(s.out[:len(s.out)-1], uint64(shape.length))
		for range shape.length {
			s.zero(shape.elem, room)
		}
		s.level--
	}
}

var (
	gobEncoder    = reflect.TypeFor[gob.GobEncoder]()
	gobDecoder    = reflect.TypeFor[gob.GobDecoder]()
	binaryEncoder = reflect.TypeFor[encoding.BinaryMarshaler]()
	binaryDecoder = reflect.TypeFor[encoding.BinaryUnmarshaler]()
)

// encodes tells the types that encode themselves. MarshalText does not count: encoding/gob
// takes those apart like any other.
func encodes(t reflect.Type) bool {
	return has(t, gobEncoder) || has(t, binaryEncoder)
}

// oneWay says what is wrong with a type that encodes itself and does not decode itself.
func oneWay(t reflect.Type) string {
	encoder, decoder := binaryEncoder, binaryDecoder
	if has(t, gobEncoder) {
		encoder, decoder = gobEncoder, gobDecoder
	}
	if has(t, decoder) {
		return ""
	}
	return fmt.Sprintf("%v has the methods of %v, but not those of %v: it could not be read again", t, encoder, decoder)
}

// has tells whether a type, or a pointer to it, has the methods.
func has(t, methods reflect.Type) bool {
	return t.Implements(methods) || reflect.PointerTo(t).Implements(methods)
}

// Excess says why a value cannot be encoded as a gob: it holds itself, nests more than
// MaxDepth deep, is too large, or could not be decoded again; "" if it can.
func Excess(v any) string { return gobForm.Excess(v) }

var gobForm = Form{MaxDepth, encodes, oneWay, reflect.StructField.IsExported}

// A Form says what of a value is encoded.
type Form struct {
	Levels int                            // how deep values may nest
	Whole  func(reflect.Type) bool        // types that are not looked into
	Flaw   func(reflect.Type) string      // what is wrong with one of them; nil: nothing
	Sent   func(reflect.StructField) bool // fields that are looked into
}

// Excess says why a value cannot be encoded, or "".
func (f Form) Excess(v any) string {
	m := measure{left: maxMemory, Form: f}
	switch {
	case m.fits(reflect.ValueOf(v), f.Levels):
		return ""
	case m.flaw != "":
		return m.flaw
	case m.left < 0:
		return fmt.Sprintf("it holds more than %d MiB", maxMemory>>20)
	}
	return fmt.Sprintf("encountered a cycle, or more than %d levels", f.Levels)
}

const (
	maxMemory = 512 << 20 // of a value, in bytes: Redis takes no larger one
	partSize  = 128       // of each part, at least: parts that are shared count each time
)

type measure struct {
	Form
	left int
	flaw string
}

// fits tells a value that nests no deeper than so many levels, in the memory that is left.
func (m *measure) fits(v reflect.Value, levels int) bool {
	m.left -= partSize
	if m.left < 0 || levels < 0 {
		return false
	}
	if !v.IsValid() {
		return true
	}
	if m.Whole(v.Type()) {
		if m.Flaw != nil {
			m.flaw = m.Flaw(v.Type())
		}
		return m.flaw == ""
	}
	if flat(v.Type()) {
		return m.holds(v)
	}
	switch v.Kind() {
	case reflect.Interface:
		return m.fits(v.Elem(), levels)
	case reflect.Pointer:
		return m.fits(v.Elem(), levels-1)
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			if !m.fits(v.Index(i), levels-1) {
				return false
			}
		}
	case reflect.Map:
		for entries := v.MapRange(); entries.Next(); {
			if !m.fits(entries.Key(), levels-1) || !m.fits(entries.Value(), levels-1) {
				return false
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if m.Sent(v.Type().Field(i)) && !m.fits(v.Field(i), levels-1) {
				return false
			}
		}
	}
	return true
}

// holds counts what is flat.
func (m *measure) holds(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.String:
		m.left -= v.Len()
	case reflect.Slice, reflect.Array:
		if v.Type().Elem().Kind() == reflect.String {
			for i := range v.Len() {
				m.left -= v.Index(i).Len()
			}
		}
		m.left -= v.Len() * int(v.Type().Elem().Size())
	}
	return m.left >= 0
}

// flat tells types whose values hold no others that could nest.
func flat(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Slice, reflect.Array:
		return t.Elem().Kind() < reflect.Array || t.Elem().Kind() == reflect.String
	case reflect.Interface, reflect.Pointer, reflect.Map, reflect.Struct:
		return false
	}
	return true
}
