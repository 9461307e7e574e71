package redistore

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"errors"

	"github.com/redistore/redistore/internal/redisserver"
)

func TestFlashesSurvive(t *testing.T) {
	for _, z := range []Serializer{GobSerializer{}, JSONSerializer{}} {
		store := New(startMini(t).client(t), hashKey)
		store.Serializer = z
		dropIn["flashes are read once"](t, store, nil)
	}
}

// TestJSONGivesBackWhatItTook shows which values change their type, and that the
// others are refused.
func TestJSONGivesBackWhatItTook(t *testing.T) {
	type named string
	type inner struct{ Raw []byte }
	type skipped struct {
		Shown  int
		Hidden []byte `json:"-"`
		inner  int
	}
	when := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var nowhere *inner
	loop := map[string]any{}
	loop["loop"] = loop
	deep := any("deep")
	for range 10_001 {
		deep = []any{deep}
	}
	for _, c := range []struct {
		key, value, want any // want is the value that comes back, or an error with the text
	}{
		{"k", "text <&> \u2028 ü", "text <&> \u2028 ü"},
		{"k", nil, nil},
		{"k", true, true},
		{"k", 42, 42.0},
		{"k", 1.5, 1.5},
		{"k", int64(1 << 53), float64(1 << 53)},
		{"k", uint8(7), 7.0},
		{"k", named("text"), "text"},
		{"k", []string{"a", "b"}, []any{"a", "b"}},
		{"k", [2]byte{1, 2}, []any{1.0, 2.0}},
		{"k", map[string]int{"a": 1}, map[string]any{"a": 1.0}},
		{"k", skipped{Shown: 1, Hidden: []byte("its tag says so")}, map[string]any{"Shown": 1.0}},
		{"k", nowhere, nil},
		{"k", when, "2026-01-02T03:04:05Z"},
		{"ü", "key", "key"},

		{42, "v", fmt.Errorf("Values[42]: the key is int")},
		{named("k"), "v", fmt.Errorf(`Values["k"]: the key is redistore.named`)},
		{"\xff", "v", fmt.Errorf(`Values["\xff"]: the key is not valid UTF-8`)},
		{"k", "\xff", fmt.Errorf(`Values["k"]: the text is not valid UTF-8`)},
		{"k", []byte("raw"), fmt.Errorf(`Values["k"]: []byte`)},
		{"k", math.NaN(), fmt.Errorf(`Values["k"]: json: unsupported value: NaN`)},
		{"k", math.Inf(1), fmt.Errorf(`Values["k"]: json: unsupported value: +Inf`)},
		{"k", int64(1<<53 + 1), fmt.Errorf(`Values["k"]: 9007199254740993 is beyond 2^53`)},
		{"k", int64(math.MinInt64), fmt.Errorf(`Values["k"]: -9223372036854775808 is beyond`)},
		{"k", uint64(math.MaxUint64), fmt.Errorf(`Values["k"]: 18446744073709551615 is beyond`)},
		{"k", make(chan int), fmt.Errorf(`Values["k"]: json: unsupported type: chan int`)},
		{"k", func() {}, fmt.Errorf(`Values["k"]: json: unsupported type`)},
		{"k", loop, fmt.Errorf(`Values["k"]: json: unsupported value: encountered a cycle`)},
		{"k", deep, fmt.Errorf(`exceeded max depth`)},
		{"k", json.RawMessage("1e400"), fmt.Errorf(`Values["k"]: json: cannot unmarshal number 1e400`)},
		{"k", io.EOF, fmt.Errorf(`Values["k"]: errors.errorString has no exported field`)},
		{"k", map[int]string{1: "a"}, fmt.Errorf(`Values["k"]: map[int]string has keys that are not strings`)},
		{"k", map[string]string{"\xff": "a"}, fmt.Errorf(`Values["k"]: the text is not valid UTF-8`)},
		{"k", []any{1, []any{"\xff"}}, fmt.Errorf(`Values["k"]: the text is not valid UTF-8`)},
		{"k", [1]string{"\xff"}, fmt.Errorf(`Values["k"]: the text is not valid UTF-8`)},
		{"k", skipped{Shown: 1, inner: 2}, fmt.Errorf(`Values["k"]: inner: it is not exported`)},
		{"k", &inner{[]byte("raw")}, fmt.Errorf(`Values["k"]: Raw: []byte`)},
	} {
		s := sessions.NewSession(nil, "s")
		s.Values["other"] = "fine"
		s.Values[c.key] = c.value
		data, err := JSONSerializer{}.Serialize(s)
		if want, ok := c.want.(error); ok {
			if err == nil || !strings.Contains(err.Error(), want.Error()) {
				t.Errorf("%T: got %.100s, error %.200v, want %q in it", c.value, data, err, want)
			}
			continue
		}
		must(t, err)
		got := sessions.NewSession(nil, "s")
		must(t, JSONSerializer{}.Deserialize(data, got))
		equal(t, "Values", fmt.Sprintf("%#v", got.Values), fmt.Sprintf("%#v", map[any]any{"other": "fine", c.key: c.want}))
	}
}

func TestJSONReadsOnlyObjects(t *testing.T) {
	for _, data := range []string{"", "null", "[]", "1", `"text"`, `{"a":1}{`, `{"a":1`} {
		s := sessions.NewSession(nil, "s")
		if err := (JSONSerializer{}).Deserialize([]byte(data), s); err == nil || len(s.Values) != 0 {
			t.Errorf("%s: error %v, Values %v", data, err, s.Values)
		}
	}
}

func TestGobSaysWhatItCannotEncode(t *testing.T) {
	type unregistered struct{ A int }
	s := sessions.NewSession(nil, "s")
	s.Values["k"] = unregistered{1}
	_, err := GobSerializer{}.Serialize(s)
	wantText(t, err, "gob: ")
	wantText(t, err, "unregistered")
	s.Values = nil
	data, err := GobSerializer{}.Serialize(s)
	must(t, err)
	must(t, GobSerializer{}.Deserialize(data, s))
	s.Values["k"] = 1 // not a nil map
}

// TestCommonSessionsAreQuick: encoding/gob would make 250 allocations to read this one,
// and 40 to write it.
func TestCommonSessionsAreQuick(t *testing.T) {
	s := sessions.NewSession(nil, "s")
	s.Values["user"], s.Values["id"], s.Values["admin"], s.Values["token"] = "ann", 42, true, []byte("token")
	s.AddFlash("flash")
	data, err := GobSerializer{}.Serialize(s)
	must(t, err)
	got := sessions.NewSession(nil, "s")
	allocs := testing.AllocsPerRun(10, func() { must(t, GobSerializer{}.Deserialize(data, got)) })
	equal(t, "Values", fmt.Sprintf("%#v", got.Values), fmt.Sprintf("%#v", s.Values))
	if allocs > 50 {
		t.Errorf("%.0f allocations to read it", allocs)
	}
	allocs = testing.AllocsPerRun(10, func() { _, err = GobSerializer{}.Serialize(s) })
	must(t, err)
	if allocs > 10 {
		t.Errorf("%.0f allocations to write it", allocs)
	}
}

// TestGobReadsTheRestToo shows that a value is read, or refused, as ever where a type is
// not a common one or the data is not whole.
func TestGobReadsTheRestToo(t *testing.T) {
	s := sessions.NewSession(nil, "s")
	s.Values["cart"], s.Values["user"] = cart{3}, "ann"
	data, err := GobSerializer{}.Serialize(s)
	must(t, err)
	got := sessions.NewSession(nil, "s")
	must(t, GobSerializer{}.Deserialize(data, got))
	equal(t, "Values", fmt.Sprintf("%#v", got.Values), fmt.Sprintf("%#v", s.Values))

	common := mustGob(t, "user", "ann")
	for want, data := range map[string][]byte{
		"EOF":                      nil,
		"unexpected EOF":           common[:len(common)-1],
		"1 bytes after the value":  append(common[:len(common):len(common)], 0),
		"name not registered":      bytes.Replace(common, []byte("string"), []byte("strong"), 1),
		"received remote type int": []byte("\x03\x04\x00\x02"),
	} {
		got.Values = map[any]any{"as": "before"}
		err := GobSerializer{}.Deserialize(data, got)
		wantText(t, err, "GobSerializer: ")
		wantText(t, err, want)
		equal(t, "Values", fmt.Sprint(got.Values), "map[as:before]")
	}
}

type cart struct{ Items int }

// half can be written, and not read.
type half struct{ A int }

func (h half) MarshalBinary() ([]byte, error) { return []byte{byte(h.A)}, nil }

func TestGobRefusesWhatItCouldNotRead(t *testing.T) {
	gob.Register(half{})
	s := sessions.NewSession(nil, "s")
	for _, v := range []any{half{1}, []any{half{1}}} {
		s.Values["key"] = v
		_, err := GobSerializer{}.Serialize(s)
		wantText(t, err, `Values["key"]: redistore.half has the methods of encoding.BinaryMarshaler, but not those of encoding.BinaryUnmarshaler: it could not be read again`)
	}
}

func init() { gob.Register(cart{}) }

// TestAPlantedGobDoesNotPanic decodes a map whose key is a []byte, as nobody can write
// one, because no map has one: encoding/gob panics on it.
func TestAPlantedGobDoesNotPanic(t *testing.T) {
	s := sessions.NewSession(nil, "s")
	s.Values["key"] = true
	data, err := GobSerializer{}.Serialize(s)
	must(t, err)
	planted := bytes.Replace(data, []byte("\x06string\x0c\x05\x00\x03key"), []byte("\x07[]uint8\x0a\x04\x00\x02ke"), 1)
	s.Values = nil
	wantText(t, GobSerializer{}.Deserialize(planted, s), "GobSerializer: ")
	equal(t, "values", len(s.Values), 0)
}

// TestAPlantedGobTakesNoMemory decodes a map that claims to have a million entries, and
// has none.
func TestAPlantedGobTakesNoMemory(t *testing.T) {
	s := sessions.NewSession(nil, "s")
	none, err := GobSerializer{}.Serialize(s)
	must(t, err)
	planted, found := bytes.CutSuffix(none, []byte("\x04\xff\x80\x00\x00"))
	equal(t, "the end is that of an empty map", found, true)
	planted = append(planted, "\x07\xff\x80\x00\xfd\x10\x00\x00"...)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err = GobSerializer{}.Deserialize(planted, s)
	runtime.ReadMemStats(&after)
	wantText(t, err, "GobSerializer: ")
	if took := after.TotalAlloc - before.TotalAlloc; took > 10<<20 {
		t.Errorf("%d bytes of Redis took %d of memory", len(planted), took)
	}
}

func FuzzGob(f *testing.F) { fuzzDeserialize(f, GobSerializer{}) }

func FuzzJSON(f *testing.F) { fuzzDeserialize(f, JSONSerializer{}) }

// fuzzDeserialize shows that bytes from anywhere give Values that can be stored
// again, or an error and no Values; never a panic.
func fuzzDeserialize(f *testing.F, z Serializer) {
	s := sessions.NewSession(nil, "s")
	s.Values["user"], s.Values["n"] = "ann", 42.0
	s.AddFlash("flash")
	data, err := z.Serialize(s)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte("null"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		s := sessions.NewSession(nil, "s")
		if err := z.Deserialize(data, s); err != nil && len(s.Values) != 0 {
			t.Errorf("half of %q: %v", data, s.Values)
		}
	})
}

// watchful is a serializer that looks at what it is given.
type watchful struct {
	GobSerializer
	ids    []string
	values map[any]any // what Deserialize leaves behind
	err    error
}

func (z *watchful) Serialize(session *sessions.Session) ([]byte, error) {
	z.ids = append(z.ids, session.ID)
	return z.GobSerializer.Serialize(session)
}

func (z *watchful) Deserialize(data []byte, session *sessions.Session) error {
	z.ids = append(z.ids, session.ID)
	session.Values = z.values
	return z.err
}

func TestASerializerOfOnesOwn(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.store(t)
		z := &watchful{}
		store.Serializer = z
		b := login(t, store)
		s, r, w := b.get(t, store)
		if s.Values == nil || s.IsNew {
			t.Errorf("nil Values came out as %+v", s)
		}
		must(t, store.Renew(r, w, s))
		b.keep(w)
		id := idOf(t, store, b)
		equal(t, "IDs", len(z.ids), 3)
		if z.ids[0] == "" || z.ids[0] != z.ids[1] || z.ids[2] != id {
			t.Errorf("it was given the IDs %q; the last one is %q", z.ids, id)
		}

		z.values, z.err = map[any]any{"half": 1}, redis.Nil // whatever the error
		r = b.request(t)
		s, err := store.Get(r, "s")
		wantErr(t, err, ErrNotLoaded)
		equal(t, "Values", len(s.Values), 0)
		wantErr(t, s.Save(r, w), ErrNotLoaded)
	})
}

var (
	secret    = []byte("an encryption key has 32 bytes..")
	oldSecret = []byte("the one before has as many bytes")
)

func TestEncrypt(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		for _, inner := range []Serializer{GobSerializer{}, JSONSerializer{}} {
			plain, _ := srv.store(t)
			plain.Serializer = Encrypt(inner, secret)
			lock := NewLockingStore(plain)
			for _, store := range []sessions.Store{plain, lock} {
				const needle = "nobody but the application reads this"
				b := loginAs(t, store, "the owner's name too")
				for _, step := range []func(*http.Request, http.ResponseWriter, *sessions.Session) error{plain.Save, plain.Renew, lock.Save, lock.Renew} {
					over := sessions.Store(plain)
					if store == lock {
						over = lock
					}
					r, end := b.lived(t)
					w := httptest.NewRecorder()
					s, err := over.Get(r, "s")
					must(t, err)
					equal(t, "user", s.Values["user"], any("ann"))
					s.Values[needle] = needle
					err = step(r, w, s)
					if over == plain && err != nil {
						wantErr(t, err, ErrConflict) // the lock's, for what was loaded without it
					} else {
						must(t, err)
						b.keep(w)
					}
					end()
					srv.free(t)
				}
				s, _, _ := b.get(t, plain)
				equal(t, "value", s.Values[needle], any(needle))
				equal(t, "listed", len(listed(t, plain, "the owner's name too")), 1)
				for _, key := range srv.keys(t) {
					dump := srv.admin.Dump(t.Context(), key).Val() + srv.admin.Get(t.Context(), key).Val()
					for _, word := range []string{needle, "user", "ann", "owner's"} {
						if strings.Contains(key+dump, word) {
							t.Errorf("%q is to be read in %q", word, key)
						}
					}
				}
				n, err := plain.Revoke(t.Context(), "the owner's name too")
				must(t, err)
				equal(t, "ended", n, 1)
			}
		}
	})
}

// TestOnlyWhatFIPSApproves runs TestEncrypt, which also locks and has owners, where Go
// panics at any other cryptography. CI runs all tests so.
func TestOnlyWhatFIPSApproves(t *testing.T) {
	t.Parallel()
	redisserver.Need(t)
	cmd := exec.Command(os.Args[0], "-test.v", "-test.run=^TestEncrypt$/^redis-server$")
	cmd.Env = append(os.Environ(), "GODEBUG=fips140=only")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestEncrypt/redis-server") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestEncryptedValuesOfOthersAreRefused(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.store(t)
		store.Serializer = Encrypt(GobSerializer{}, secret)
		for name, spoil := range map[string]func(value string) string{
			"tampered with":            func(v string) string { return v[:len(v)-1] + string(v[len(v)-1]^1) },
			"another version":          func(v string) string { return "\x03" + v[1:] },
			"truncated":                func(v string) string { return v[:20] },
			"truncated to the version": func(v string) string { return v[:1] },
			"empty":                    func(string) string { return "" },
			"plain":                    func(string) string { return string(mustGob(t, "user", "eve")) },
			"of another session": func(string) string {
				return srv.admin.Get(t.Context(), store.key(idOf(t, store, login(t, store)))).Val()
			},
			"of another key": func(string) string {
				z := Encrypt(GobSerializer{}, oldSecret)
				data, err := z.Serialize(sessions.NewSession(nil, "s"))
				must(t, err)
				return string(data)
			},
		} {
			b := login(t, store)
			key := store.key(idOf(t, store, b))
			value := spoil(srv.admin.Get(t.Context(), key).Val())
			must(t, srv.admin.Set(t.Context(), key, value, time.Hour).Err())
			r, w := b.request(t), httptest.NewRecorder()
			s, err := store.Get(r, "s")
			wantErr(t, err, ErrNotLoaded)
			wantText(t, err, "Encrypt: ")
			equal(t, name+": Values", len(s.Values), 0)
			wantErr(t, s.Save(r, w), ErrNotLoaded)
			equal(t, name+": what is stored", srv.admin.Get(t.Context(), key).Val(), value)
		}
	})
}

func TestEncryptionKeysRotate(t *testing.T) {
	store, _ := startMini(t).store(t)
	store.Serializer = Encrypt(GobSerializer{}, oldSecret)
	b := login(t, store)
	store.Serializer = Encrypt(GobSerializer{}, secret, oldSecret)
	b.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) {
		equal(t, "user", s.Values["user"], any("ann"))
		must(t, s.Save(r, w))
	})
	store.Serializer = Encrypt(GobSerializer{}, secret)
	equal(t, "user", b.user(t, store), "ann")
}

// TestTouchKeepsTheEncryptionKey: so the old key may be dropped after a Save, or when
// AbsoluteTimeout has ended the session, and not after MaxAge.
func TestTouchKeepsTheEncryptionKey(t *testing.T) {
	srv := startMini(t)
	store, _ := srv.store(t)
	store.AbsoluteTimeout = 60 * 24 * time.Hour
	store.Serializer = Encrypt(GobSerializer{}, oldSecret)
	saved, touched := login(t, store), login(t, store)
	store.Serializer = Encrypt(GobSerializer{}, secret, oldSecret)
	saved.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) { must(t, store.Save(r, w, s)) })
	for range 3 {
		srv.forward(t, 15*24*time.Hour)
		for _, b := range []browser{saved, touched} {
			b.visit(t, store, func(r *http.Request, w http.ResponseWriter, s *sessions.Session) { must(t, store.Touch(r, w, s)) })
		}
	}
	store.Serializer = Encrypt(GobSerializer{}, secret)
	equal(t, "user", saved.user(t, store), "ann")
	_, err := store.Get(touched.request(t), "s")
	wantErr(t, err, ErrNotDecoded)
	srv.forward(t, 15*24*time.Hour)
	equal(t, "user", touched.user(t, store), "")
}

func TestEncryptConfiguration(t *testing.T) {
	client := startMini(t).client(t)
	for want, z := range map[string]Serializer{
		"Encrypt: no keys":            Encrypt(GobSerializer{}),
		"inner Serializer is nil":     Encrypt(nil, secret),
		"Encrypt: key 1 has 31 bytes": Encrypt(GobSerializer{}, secret[:31]),
		"Encrypt: key 1 has 16 bytes": Encrypt(GobSerializer{}, secret[:16]),
		"Encrypt: key 2 has 0 bytes":  Encrypt(GobSerializer{}, secret, nil),
		"Encrypt: key 1 has 5 bytes":  Encrypt(Encrypt(GobSerializer{}, secret[:5]), secret),
	} {
		store := New(client, hashKey)
		store.Serializer = z
		wantConfigError(t, store, want)
		if _, err := z.Serialize(sessions.NewSession(nil, "s")); err == nil {
			t.Errorf("%s: Serialize returned no error", want)
		}
		if err := z.Deserialize([]byte{boundToID}, sessions.NewSession(nil, "s")); err == nil {
			t.Errorf("%s: Deserialize returned no error", want)
		}
	}
}

func TestEncryptKeepsTheInnerErrors(t *testing.T) {
	s := sessions.NewSession(nil, "s")
	s.Values["k"] = []byte("raw")
	_, err := Encrypt(JSONSerializer{}, secret).Serialize(s)
	wantText(t, err, `Values["k"]: []byte`)
}

func FuzzEncrypted(f *testing.F) { fuzzDeserialize(f, Encrypt(GobSerializer{}, secret)) }

// foreignGob is a session of another program: two good values, and one of a type
// that this program has not registered.
func foreignGob(t *testing.T) string {
	t.Helper()
	type known struct{ A int }
	gob.RegisterName("redistore.known", known{})
	s := sessions.NewSession(nil, "s")
	s.Values["a"], s.Values["b"], s.Values["c"] = 1, known{1}, 2
	data, err := GobSerializer{}.Serialize(s)
	must(t, err)
	return strings.ReplaceAll(string(data), "redistore.known", "redistore.alien")
}

func TestSerializersLeaveNothingHalfDone(t *testing.T) {
	good := sessions.NewSession(nil, "s")
	good.Values["user"] = "ann"
	for _, z := range []Serializer{GobSerializer{}, JSONSerializer{}} {
		data, err := z.Serialize(good)
		must(t, err)
		for n := range data {
			s := sessions.NewSession(nil, "s")
			if err := z.Deserialize(data[:n], s); err == nil || len(s.Values) != 0 {
				t.Errorf("%T, %d of %d bytes: error %v, Values %v", z, n, len(data), err, s.Values)
			}
		}
	}
}

// TestNotDecoded tells a value that nobody can decode from one that could not be had.
func TestNotDecoded(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, rec := srv.store(t)
		b := login(t, store)
		rec.failOnce("get", errors.New("no network"))
		_, err := store.Get(b.request(t), "s")
		wantErr(t, err, ErrNotLoaded)
		equal(t, "not decoded, no network", errors.Is(err, ErrNotDecoded), false)

		key, _ := srv.only(t)
		must(t, srv.admin.Set(t.Context(), key, "not a gob", time.Hour).Err())
		_, err = store.Get(b.request(t), "s")
		wantErr(t, err, ErrNotLoaded)
		wantErr(t, err, ErrNotDecoded)
	})
}

func mustGob(t *testing.T, k, v any) []byte {
	t.Helper()
	s := sessions.NewSession(nil, "s")
	s.Values[k] = v
	data, err := GobSerializer{}.Serialize(s)
	must(t, err)
	return data
}
