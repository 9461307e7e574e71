package gobvalues

import (
	"math"
	"math/bits"
	"reflect"
	"slices"
	"time"
)

// Encode returns a gob of values that encoding/gob reads, and writes but for the order
// and the ids, and true; or false where only encoding/gob can write them, or say why not.
func Encode(values map[any]any) ([]byte, bool) {
	e := &encoder{buf: make([]byte, 0, 256), types: make([]wireType, 0, maxTypes)}
	e.int(e.id(valuesType))
	e.uint(0)
	e.uint(uint64(len(values)))
	for key, value := range values {
		e.any(key)
		e.any(value)
	}
	e.seal()
	return e.buf, !e.failed && len(e.buf) < maxSize
}

// EncodeString returns what encoding/gob makes of a string.
func EncodeString(text string) []byte {
	e := &encoder{buf: make([]byte, 0, len(text)+32)}
	e.int(stringID)
	e.uint(0)
	e.string(text)
	e.seal()
	return e.buf
}

// encoder writes a stream. Once it has failed, it is worth nothing.
type encoder struct {
	buf    []byte
	begun  int        // where the message, or the part of a value, begins that has no size yet
	types  []wireType // that are defined, the first one as firstID
	depth  int
	failed bool
}

// seal puts the size before what was begun, and begins what follows.
func (e *encoder) seal() {
	var room [9]byte
	size := appendUint(room[:0], uint64(len(e.buf)-e.begun))
	e.buf = slices.Insert(e.buf, e.begun, size...)
	e.begun = len(e.buf)
}

// id defines a type that is not yet defined. A definition ends the message, or the part
// of a value.
func (e *encoder) id(t wireType) int64 {
	if t.kind == 0 {
		return t.elem
	}
	known := slices.Index(e.types, t)
	if known >= 0 {
		return firstID + int64(known)
	}
	id := firstID + int64(len(e.types))
	e.types = append(e.types, t)
	e.int(-id)
	e.uint(t.kind, 1, 2)
	e.int(id)
	e.uint(0)
	if t.kind == mapKind {
		e.uint(1)
		e.int(t.key)
	}
	if t.kind == mapKind || t.kind == sliceKind {
		e.uint(1)
		e.int(t.elem)
	}
	e.uint(0, 0)
	e.seal()
	return id
}

func (e *encoder) any(v any) {
	if v == nil {
		e.uint(0)
		return
	}
	t, known := byType[reflect.TypeOf(v)]
	if !known || e.failed || len(e.buf) > maxSize { // parts that are shared may be without end
		e.failed = true
		return
	}
	e.string(t.name)
	e.int(e.id(t.wire))
	outer := e.begun
	e.begun = len(e.buf)
	e.uint(0)
	t.write(e, v)
	e.seal()
	e.begun = outer
}

func putSlice[T any](element func(*encoder, T)) func(*encoder, []T) {
	return func(e *encoder, s []T) {
		e.depth++
		if e.depth > maxDepth { // it may contain itself
			e.failed = true
			return
		}
		e.uint(uint64(len(s)))
		for _, v := range s {
			element(e, v)
		}
		e.depth--
	}
}

func (e *encoder) time(t time.Time) {
	data, err := t.GobEncode()
	if err != nil || !knowsTime() {
		e.failed = true
	}
	e.bytes(data)
}

func (e *encoder) string(s string) {
	e.uint(uint64(len(s)))
	e.buf = append(e.buf, s...)
}

func (e *encoder) bytes(b []byte) {
	e.uint(uint64(len(b)))
	e.buf = append(e.buf, b...)
}

func (e *encoder) bool(b bool) {
	if b {
		e.uint(1)
	} else {
		e.uint(0)
	}
}

func (e *encoder) complex64(c complex64)   { e.complex128(complex128(c)) }
func (e *encoder) complex128(c complex128) { e.float64(real(c)); e.float64(imag(c)) }
func (e *encoder) float32(f float32)       { e.float64(float64(f)) }
func (e *encoder) float64(f float64)       { e.uint(bits.ReverseBytes64(math.Float64bits(f))) }

func putSigned[T signedInt](e *encoder, x T)     { e.int(int64(x)) }
func putUnsigned[T unsignedInt](e *encoder, x T) { e.uint(uint64(x)) }

func (e *encoder) int(x int64) { e.uint(uint64(x<<1) ^ uint64(x>>63)) }

func (e *encoder) uint(numbers ...uint64) {
	for _, x := range numbers {
		e.buf = appendUint(e.buf, x)
	}
}

func appendUint(b []byte, x uint64) []byte {
	if x < 128 {
		return append(b, byte(x))
	}
	n := (bits.Len64(x) + 7) / 8
	b = append(b, byte(-n))
	for ; n > 0; n-- {
		b = append(b, byte(x>>(8*n-8)))
	}
	return b
}
