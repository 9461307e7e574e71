package redistore

import (
	"testing"
	"time"

	"github.com/gorilla/sessions"
)

// wrapped is a Serializer of the application's own around Encrypt.
type wrapped struct{ Serializer }

func TestEncryptBindsTheKeyPrefixToo(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		for _, z := range []Serializer{
			Encrypt(GobSerializer{}, secret), wrapped{Encrypt(GobSerializer{}, secret)},
			Encrypt(Encrypt(GobSerializer{}, secret), oldSecret),
		} {
			one, _ := srv.store(t)
			one.Serializer = z
			two, _ := srv.store(t)
			two.Serializer, two.KeyPrefix = z, "session_another_"
			b := login(t, one)
			id := idOf(t, one, b)
			equal(t, "user", b.user(t, one), "ann")
			value := srv.admin.Get(t.Context(), one.key(id)).Val()
			must(t, srv.admin.Set(t.Context(), two.key(id), value, time.Hour).Err())
			s, err := two.Get(b.request(t), "s")
			wantErr(t, err, ErrNotDecoded)
			equal(t, "Values", len(s.Values), 0)
			// Called by the application, which has no key, it does not decrypt either.
			s.ID = id
			wantText(t, z.Deserialize([]byte(value), s), "only the Store")
		}
	})
}

// TestEncryptReadsWhatWasBoundToTheID: that is what it made before 0.1.0, and what it makes
// for an application that calls it.
func TestEncryptReadsWhatWasBoundToTheID(t *testing.T) {
	onServers(t, func(t *testing.T, srv *server) {
		store, _ := srv.store(t)
		store.Serializer = Encrypt(GobSerializer{}, secret)
		b := login(t, store)
		s := sessions.NewSession(nil, "s")
		s.ID = idOf(t, store, b)
		s.Values["user"] = "bob"
		old, err := store.Serializer.Serialize(s)
		must(t, err)
		must(t, store.Serializer.Deserialize(old, s))
		must(t, srv.admin.Set(t.Context(), store.key(s.ID), old, time.Hour).Err())
		equal(t, "user", b.user(t, store), "bob")
		s.ID = "another"
		wantText(t, store.Serializer.Deserialize(old, s), "none of 1 keys decrypts")
	})
}
