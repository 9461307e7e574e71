// Package gobvalues reads and writes the gob of a session's values, a map[any]any,
// without the reflection that encoding/gob needs, where it holds only what most sessions
// hold. All else it leaves to encoding/gob, whose documentation describes the format.
package gobvalues

import (
	"encoding/gob"
	"math"
	"math/bits"
	"reflect"
	"strings"
	"sync/atomic"
	"time"
)

// Decode returns what encoding/gob decodes from data, and true; or false where only
// encoding/gob can tell what data holds, or what is wrong with it.
func Decode(data []byte) (map[any]any, bool) {
	d := &decoder{rest: data}
	d.expect(len(data) < maxSize)
	d.message()
	id := -d.int()
	d.define(id)
	d.expect(len(d.msg) == 0 && d.wire(id) == valuesType)
	d.message()
	d.expect(d.int() == id)
	values := d.values()
	return values, !d.failed && len(d.msg)+len(d.rest) == 0
}

// DecodeString is Decode for the gob of a string.
func DecodeString(data []byte) (string, bool) {
	d := &decoder{rest: data}
	d.message()
	d.expect(d.int() == stringID)
	d.fixed(0)
	text := d.string()
	return text, !d.failed && len(d.msg)+len(d.rest) == 0
}

const (
	maxSize  = 1 << 26 // bytes, 64 MiB; encoding/gob has limits too, beyond this one
	maxDepth = 100     // slices in slices
	maxTypes = 8       // that a stream defines; one that is read has no need of more
	ahead    = 64      // elements to take memory for before they are seen: a count may lie
)

// The ids of the types that no stream has to define.
const (
	boolID    = 1
	intID     = 2
	uintID    = 3
	floatID   = 4
	bytesID   = 5
	stringID  = 6
	complexID = 7
	anyID     = 8
	firstID   = 64 // of the others
)

// wireType is what a stream says of a type.
type wireType struct {
	kind      uint64
	key, elem int64 // ids
}

// The kinds are the fields of encoding/gob's wireType, counted from one.
const (
	sliceKind      = 2
	mapKind        = 4
	gobEncoderKind = 5
)

var (
	valuesType = wireType{mapKind, anyID, anyID}
	timeType   = wireType{kind: gobEncoderKind}
)

func basic(id int64) wireType   { return wireType{elem: id} }
func sliceOf(id int64) wireType { return wireType{kind: sliceKind, elem: id} }

// A goType is one that can be read and written.
type goType struct {
	name  string // in a stream
	wire  wireType
	read  func(*decoder) any
	write func(*encoder, any)
}

// encoding/gob knows these by their names in every program; time.Time only where it has
// been registered.
var (
	byName = make(map[string]*goType)
	byType = make(map[reflect.Type]*goType)
)

func init() {
	gob.Register([]any(nil)) // flashes; gorilla/sessions does the same
	add(basic(boolID), (*decoder).bool, (*encoder).bool)
	add(basic(intID), signed[int], putSigned)
	add(basic(intID), signed[int8], putSigned)
	add(basic(intID), signed[int16], putSigned)
	add(basic(intID), signed[int32], putSigned)
	add(basic(intID), signed[int64], putSigned)
	add(basic(uintID), unsigned[uint], putUnsigned)
	add(basic(uintID), unsigned[uint8], putUnsigned)
	add(basic(uintID), unsigned[uint16], putUnsigned)
	add(basic(uintID), unsigned[uint32], putUnsigned)
	add(basic(uintID), unsigned[uint64], putUnsigned)
	add(basic(uintID), unsigned[uintptr], putUnsigned)
	add(basic(floatID), (*decoder).float32, (*encoder).float32)
	add(basic(floatID), (*decoder).float64, (*encoder).float64)
	add(basic(complexID), (*decoder).complex64, (*encoder).complex64)
	add(basic(complexID), (*decoder).complex128, (*encoder).complex128)
	add(basic(stringID), (*decoder).string, (*encoder).string)
	add(basic(bytesID), (*decoder).bytes, (*encoder).bytes)
	add(sliceOf(intID), slice(signed[int]), putSlice(putSigned[int]))
	add(sliceOf(stringID), slice((*decoder).string), putSlice((*encoder).string))
	add(sliceOf(anyID), slice((*decoder).any), putSlice((*encoder).any))
	add(timeType, (*decoder).time, (*encoder).time)
}

func add[T any](wire wireType, read func(*decoder) T, write func(*encoder, T)) {
	t := reflect.TypeFor[T]()
	byType[t] = &goType{
		name: t.String(), wire: wire,
		read:  func(d *decoder) any { return read(d) },
		write: func(e *encoder, v any) { write(e, v.(T)) },
	}
	byName[t.String()] = byType[t]
}

type (
	signedInt interface {
		int | int8 | int16 | int32 | int64
	}
	unsignedInt interface {
		uint | uint8 | uint16 | uint32 | uint64 | uintptr
	}
)

// decoder reads a stream. Once it has failed it reads nothing but zeros.
type decoder struct {
	msg     []byte // what is left of the message
	rest    []byte // the messages after it
	defined []definition
	depth   int
	failed  bool
}

type definition struct {
	id int64
	wireType
}

func (d *decoder) expect(ok bool) {
	if !ok {
		d.failed, d.msg, d.rest = true, nil, nil
	}
}

// fixed expects these numbers.
func (d *decoder) fixed(numbers ...uint64) {
	for _, n := range numbers {
		d.expect(d.uint() == n)
	}
}

// message goes on to the next one.
func (d *decoder) message() {
	d.msg, d.rest = d.rest, nil
	msg := d.text()
	d.msg, d.rest = msg, d.msg
}

// define reads a definition in the one form in which encoding/gob writes it.
func (d *decoder) define(id int64) {
	d.expect(firstID <= id && id <= math.MaxInt32 && d.wire(id) == basic(id) && len(d.defined) < maxTypes)
	t := wireType{kind: d.uint()}
	d.fixed(1) // the first field: what all kinds have
	field := d.uint()
	if field == 1 { // a name, which says nothing
		d.text()
		field += d.uint()
	}
	d.expect(field == 2 && d.int() == id)
	d.fixed(0)
	switch t.kind {
	case mapKind:
		d.fixed(1)
		t.key = d.int()
		fallthrough
	case sliceKind:
		d.fixed(1)
		t.elem = d.int()
	case gobEncoderKind:
	default:
		d.expect(false)
	}
	d.fixed(0, 0)
	d.defined = append(d.defined, definition{id, t})
}

func (d *decoder) wire(id int64) wireType {
	for _, t := range d.defined {
		if t.id == id {
			return t.wireType
		}
	}
	return basic(id)
}

func (d *decoder) values() map[any]any {
	d.fixed(0) // stands before whatever is not a struct
	n := d.uint()
	values := make(map[any]any, min(n, ahead))
	for ; n > 0 && !d.failed; n-- {
		key := d.any()
		d.expect(key == nil || reflect.TypeOf(key).Comparable())
		if value := d.any(); !d.failed {
			values[key] = value
		}
	}
	return values
}

// any reads what is in an interface: the name of the type, definitions, the type's id,
// the value's size, which is for whoever skips it, and the value.
func (d *decoder) any() any {
	name := d.text()
	if len(name) == 0 {
		return nil
	}
	id := d.int()
	for id < 0 {
		d.define(-id)
		if len(d.msg) > 0 {
			d.uint() // the size of what follows
		} else {
			d.message()
		}
		id = d.int()
	}
	d.uint()
	d.fixed(0)
	t := byName[string(name)]
	d.expect(t != nil && t.wire == d.wire(id))
	if d.failed {
		return nil
	}
	return t.read(d)
}

// slice reads slices. It leaves an empty one nil, as encoding/gob does.
func slice[T any](element func(*decoder) T) func(*decoder) []T {
	return func(d *decoder) (s []T) {
		d.depth++
		d.expect(d.depth <= maxDepth)
		n := d.uint()
		if n > 0 {
			s = make([]T, 0, min(n, ahead))
		}
		for ; n > 0 && !d.failed; n-- {
			s = append(s, element(d))
		}
		d.depth--
		return s
	}
}

func (d *decoder) time() (t time.Time) {
	d.expect(knowsTime() && t.GobDecode(d.text()) == nil)
	return t
}

func (d *decoder) string() string { return string(d.text()) }
func (d *decoder) bytes() []byte  { return append([]byte(nil), d.text()...) }
func (d *decoder) bool() bool     { return d.uint() != 0 }

func (d *decoder) complex64() complex64   { return complex(d.float32(), d.float32()) }
func (d *decoder) complex128() complex128 { return complex(d.float64(), d.float64()) }

func (d *decoder) float64() float64 { return math.Float64frombits(bits.ReverseBytes64(d.uint())) }

// float32 refuses what encoding/gob refuses: more than there is, short of infinity.
func (d *decoder) float32() float32 {
	f := d.float64()
	d.expect(!(math.Abs(f) > math.MaxFloat32) || math.IsInf(f, 0))
	return float32(f)
}

func signed[T signedInt](d *decoder) T {
	x := d.int()
	d.expect(int64(T(x)) == x)
	return T(x)
}

func unsigned[T unsignedInt](d *decoder) T {
	x := d.uint()
	d.expect(uint64(T(x)) == x)
	return T(x)
}

// int has its sign in the lowest bit.
func (d *decoder) int() int64 {
	x := d.uint()
	return int64(x>>1) ^ -int64(x&1)
}

// uint is one byte below 128, or a count of bytes, negated, and these.
func (d *decoder) uint() (x uint64) {
	if len(d.msg) > 0 && d.msg[0] < 128 {
		x, d.msg = uint64(d.msg[0]), d.msg[1:]
		return x
	}
	for _, count := range d.take(1) {
		n := 256 - uint64(count)
		d.expect(n <= 8)
		for _, b := range d.take(n) {
			x = x<<8 | uint64(b)
		}
	}
	return x
}

// text is a part of the data itself, not a copy.
func (d *decoder) text() []byte { return d.take(d.uint()) }

func (d *decoder) take(n uint64) []byte {
	d.expect(n <= uint64(len(d.msg)))
	if d.failed {
		return nil
	}
	taken := d.msg[:n]
	d.msg = d.msg[n:]
	return taken
}

var timeKnown atomic.Bool

// knowsTime reports whether the program has registered time.Time, under this name: one
// that has not gets an error from encoding/gob. What is registered stays so.
func knowsTime() bool {
	if timeKnown.Load() {
		return true
	}
	const zero = "\x16\x10\x00\x09time.Time\xff\x81\x05\x01\x02\xff\x82\x00\x00\x00" + // an any, and a GobEncoder
		"\x14\xff\x82\x11\x00\x0f\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff"
	var v any
	_ = gob.NewDecoder(strings.NewReader(zero)).Decode(&v)
	_, is := v.(time.Time)
	timeKnown.Store(is)
	return is
}
