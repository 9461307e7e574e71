package redistore

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// without returns a client whose user loses a right while it is at work.
func (s *server) without(t *testing.T, right string) (client *redis.Client, lose func()) {
	t.Helper()
	acl := func(rules ...any) {
		t.Helper()
		must(t, s.admin.Do(t.Context(), append([]any{"acl", "setuser", "poor"}, rules...)...).Err())
	}
	acl("reset", "on", ">password", "~*", "&*", "+@all")
	return s.client(t, func(o *redis.Options) { o.Username, o.Password = "poor", "password" }), func() { acl("-" + right) }
}

// TestARefusedSaveLeavesTheSessionItsLife has Redis refuse EXPIRE for a large session, which is
// written under another key at first.
func TestARefusedSaveLeavesTheSessionItsLife(t *testing.T) {
	srv := startRedis(t)
	client, lose := srv.without(t, "expire")
	store := NewLockingStore(New(client, hashKey))
	b := login(t, store)
	s, r := load(t, store, b)
	lose()
	s.Values["large"] = strings.Repeat("x", 32<<10)
	wantText(t, store.Save(r, httptest.NewRecorder(), s), "redistore: save: ")

	now, err := store.Store.New(b.request(t), "s")
	must(t, err)
	equal(t, "it has what was refused", now.Values["large"] != nil, false)
	if ttl := srv.ttl(t, store.key(s.ID)); ttl < time.Hour {
		t.Errorf("the session ends in %v", ttl)
	}
}

// TestARenewThatCannotTidyTheIndexIsDone as it is where there are several servers: readers of the
// index find that the old session is gone.
func TestARenewThatCannotTidyTheIndexIsDone(t *testing.T) {
	srv := startRedis(t)
	client, lose := srv.without(t, "zrem")
	store := New(client, hashKey)
	b := login(t, store)
	s, r, w := b.get(t, store)
	SetOwner(s, "ann")
	must(t, store.Save(r, w, s))
	lose()
	s, r, w = b.get(t, store)
	must(t, store.Renew(r, w, s))
	b.keep(w)
	equal(t, "user", b.user(t, store), "ann")
}
