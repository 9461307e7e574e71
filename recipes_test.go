package redistore_test

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"expvar"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	"github.com/gorilla/securecookie"
	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore"
	"github.com/redistore/redistore/redistoretest"
)

// The recipes of docs/recipes.md, each with a test.

// keepAlive is a middleware that lets the cookie live on while it is used: it touches the
// session when a tenth of MaxAge has passed since it last did.
func keepAlive(store *redistore.Store, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		session, err := store.Get(r, "session") // which the handler's Get returns too
		age := cmp.Or(session.Options.MaxAge, store.DefaultMaxAge)
		var last int64 // a cookie that anybody may forge: all that this does is to touch
		if c, err := r.Cookie("touched"); err == nil {
			last, _ = strconv.ParseInt(c.Value, 10, 64)
		}
		if now := time.Now().Unix(); now-last > int64(age/10) {
			if err == nil && !session.IsNew && store.Touch(r, w, session) == nil {
				http.SetCookie(w, &http.Cookie{Name: "touched", Value: strconv.FormatInt(now, 10), Path: "/", MaxAge: age, Secure: true, HttpOnly: true})
			}
		}
		next.ServeHTTP(w, r)
	})
}

func TestRecipeKeepAlive(t *testing.T) {
	redis := redistoretest.New(t)
	store := redis.Store()
	store.MaxAge(1000)
	handler := keepAlive(store, http.NotFoundHandler())
	ann := redis.Cookie(store, "session", func(s *sessions.Session) { s.Values["user"] = "ann" })
	redis.Forward(900 * time.Second)
	set := redis.Serve(handler, redis.Request("GET", "/", nil, ann)).Result().Cookies()
	if len(set) != 2 || set[0].Name != "session" || set[1].Name != "touched" {
		t.Fatalf("set %v", set)
	}
	if again := redis.Serve(handler, redis.Request("GET", "/", nil, ann, set[1])).Result().Cookies(); len(again) > 0 {
		t.Errorf("touched again: %v", again)
	}
	redis.Forward(900 * time.Second)
	if s, _ := store.Get(redis.Request("GET", "/", nil, ann), "session"); s.IsNew {
		t.Error("it has ended")
	}
}

// TestRecipeKeepAliveOfOneSession has a session whose own MaxAge is shorter than the store's.
func TestRecipeKeepAliveOfOneSession(t *testing.T) {
	redis := redistoretest.New(t)
	store := redis.Store()
	handler := keepAlive(store, http.NotFoundHandler())
	ann := redis.Cookie(store, "session", func(s *sessions.Session) { redistore.SetMaxAge(s, 3600) })
	touched := &http.Cookie{Name: "touched", Value: strconv.FormatInt(time.Now().Unix()-1200, 10)} // 20 minutes ago
	for range 4 {
		redis.Forward(20 * time.Minute)
		redis.Serve(handler, redis.Request("GET", "/", nil, ann, touched))
	}
	if s, _ := store.Get(redis.Request("GET", "/", nil, ann), "session"); s.IsNew {
		t.Error("it has ended although it was used every 20 minutes")
	}
}

// TestRecipeKeepAliveOfTheBrowsersSession has Redis told in time, and not by each request.
func TestRecipeKeepAliveOfTheBrowsersSession(t *testing.T) {
	redis := redistoretest.New(t)
	store := redis.Store()
	store.MaxAge(0) // Redis keeps it for 20 minutes
	handler := keepAlive(store, http.NotFoundHandler())
	ann := redis.Cookie(store, "session", func(s *sessions.Session) { s.Values["user"] = "ann" })
	for age, want := range map[int64]int{1: 0, 110: 0, 130: 2} {
		touched := &http.Cookie{Name: "touched", Value: strconv.FormatInt(time.Now().Unix()-age, 10)}
		if set := redis.Serve(handler, redis.Request("GET", "/", nil, ann, touched)).Result().Cookies(); len(set) != want {
			t.Errorf("after %d seconds: set %v", age, set)
		}
	}
}

// TestRecipePeek reads without extending an idle session, for a page that polls.
func TestRecipePeek(t *testing.T) {
	redis := redistoretest.New(t)
	store := redis.Store()
	store.IdleTimeout = time.Minute
	peeking := redistore.New(redis.Client, testKey)
	store.Codecs = peeking.Codecs
	ann := redis.Cookie(store, "session", func(s *sessions.Session) { s.Values["user"] = "ann" })
	for range 3 {
		redis.Forward(25 * time.Second)
		_, _ = peeking.Get(redis.Request("GET", "/", nil, ann), "session")
	}
	if s, _ := store.Get(redis.Request("GET", "/", nil, ann), "session"); !s.IsNew {
		t.Error("the page that polls has kept it alive")
	}
}

var testKey = []byte("another key that is good for tests")

// inHeader lets clients without cookies send the session in a header, and get it there.
func inHeader(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Del("Cookie") // this API knows no other way, so that no browser can be used against it
		if token := r.Header.Get("X-Session"); token != "" {
			r.AddCookie(&http.Cookie{Name: "session", Value: token})
		}
		next.ServeHTTP(headerWriter{w}, r)
		headerWriter{w}.move() // a handler need not write
	})
}

type headerWriter struct{ http.ResponseWriter }

func (w headerWriter) move() {
	for _, line := range w.Header()["Set-Cookie"] {
		if c, err := http.ParseSetCookie(line); err == nil && c.Name == "session" {
			w.Header().Set("X-Session", c.Value)        // empty: it has ended
			w.Header().Set("Cache-Control", "no-store") // what Save has set keeps caches from Set-Cookie only
		}
	}
	w.Header().Del("Set-Cookie")
}

func (w headerWriter) WriteHeader(code int) {
	w.move()
	w.ResponseWriter.WriteHeader(code)
}

func (w headerWriter) Write(b []byte) (int, error) {
	w.move()
	return w.ResponseWriter.Write(b)
}

func TestRecipeHeader(t *testing.T) {
	redis := redistoretest.New(t)
	store := redis.Store()
	handler := inHeader(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60") // which Save bounds, for those who have cookies
		session, err := store.Get(r, "session")
		n, _ := session.Values["n"].(int)
		session.Values["n"] = n + 1
		if err == nil {
			err = session.Save(r, w)
		}
		w.WriteHeader(redistore.Status(err))
		_ = n
	}))
	first := redis.Serve(handler, redis.Request("GET", "/", nil))
	token := first.Header().Get("X-Session")
	if token == "" || len(first.Header()["Set-Cookie"]) > 0 || first.Header().Get("Cache-Control") != "no-store" {
		t.Fatalf("the headers are %v", first.Header())
	}
	r := redis.Request("GET", "/", nil)
	r.Header.Set("X-Session", token)
	redis.Serve(handler, r)
	r = httptest.NewRequest("GET", "/", nil)
	r.AddCookie(&http.Cookie{Name: "session", Value: token})
	if s, _ := store.Get(r, "session"); s.Values["n"] != 2 {
		t.Errorf("the session has %v", s.Values)
	}
}

// TestRecipeHeaderWhateverIsWritten: nothing, or a status and a text.
func TestRecipeHeaderWhateverIsWritten(t *testing.T) {
	store := redistoretest.New(t).Store()
	for _, write := range []func(http.ResponseWriter){
		func(http.ResponseWriter) {},
		func(w http.ResponseWriter) { http.Error(w, "no", http.StatusTeapot) },
	} {
		var said bytes.Buffer
		srv := httptest.NewUnstartedServer(inHeader(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			session, _ := store.Get(r, "session")
			_ = session.Save(r, w)
			write(w)
		})))
		srv.Config.ErrorLog = log.New(&said, "", 0)
		srv.Start()
		response, err := http.Get(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		srv.Close()
		if response.Header.Get("X-Session") == "" || response.Header.Get("Set-Cookie") != "" || said.Len() > 0 {
			t.Errorf("the headers are %v, and net/http says %q", response.Header, &said)
		}
	}
}

// atMostThree ends the oldest sessions of whoever has just logged in.
func atMostThree(store *redistore.Store, w http.ResponseWriter, r *http.Request, session *sessions.Session) error {
	redistore.SetOwner(session, "user:42")
	if err := store.Renew(r, w, session); err != nil {
		return err
	}
	_, err := store.Limit(r.Context(), "user:42", 3, session.ID)
	return err
}

func TestRecipeAtMostThree(t *testing.T) {
	redis := redistoretest.New(t)
	store := redis.Store()
	for range 5 {
		r := redis.Request("GET", "/", nil)
		session, _ := store.Get(r, "session")
		if err := atMostThree(store, httptest.NewRecorder(), r, session); err != nil {
			t.Fatal(err)
		}
		redis.Forward(time.Second)
	}
	n := 0
	for range store.Sessions(t.Context(), "user:42") {
		n++
	}
	if n != 3 {
		t.Errorf("%d sessions", n)
	}
}

// newStates makes a store for what lasts from the redirect to a provider until the callback:
// for a few minutes, on one path, and with a cookie that comes with a provider's POST too.
func newStates(client redis.UniversalClient, key []byte) *redistore.Store {
	states := redistore.New(client, key)
	states.KeyPrefix = "oauth_"
	states.Options = &sessions.Options{Path: "/auth", MaxAge: 10 * 60, Secure: true, HttpOnly: true, SameSite: http.SameSiteNoneMode}
	return states
}

func TestRecipeStates(t *testing.T) {
	redis := redistoretest.New(t)
	states := newStates(redis.Client, testKey)
	set := func(s *sessions.Session) { s.Values["state"] = "x" }
	c := redis.Cookie(states, "state", set)
	if c.Path != "/auth" || c.SameSite != http.SameSiteNoneMode || !c.Secure {
		t.Errorf("the cookie is %v", c)
	}
	redis.Forward(9 * time.Minute)
	if s, err := states.Get(redis.Request("POST", "/auth", nil, c), "state"); err != nil || s.Values["state"] != "x" {
		t.Errorf("after 9 minutes: %v, %v", s.Values, err)
	}
	redis.Forward(2 * time.Minute)
	if s, err := states.Get(redis.Request("POST", "/auth", nil, c), "state"); err != nil || !s.IsNew {
		t.Errorf("after 11 minutes: %v, %v", s.Values, err)
	}
}

// backChannelLogout ends what a provider says is over (OpenID Connect Back-Channel Logout
// 1.0). verified returns the token's issuer and subject; at the login, they were the owner.
func backChannelLogout(store *redistore.Store, verified func(token string) (issuer, subject string, err error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		issuer, subject, err := verified(r.FormValue("logout_token"))
		if err != nil {
			http.Error(w, "invalid token", http.StatusBadRequest)
			return
		}
		if _, err := store.Revoke(r.Context(), issuer+" "+subject); err != nil {
			http.Error(w, "please try again", redistore.Status(err))
		}
	}
}

func TestRecipeBackChannelLogout(t *testing.T) {
	redis := redistoretest.New(t)
	store := redis.Store()
	handler := backChannelLogout(store, func(token string) (string, string, error) {
		if token != "good" {
			return "", "", errors.New("not signed")
		}
		return "https://id.example.com", "ann", nil
	})
	ann := redis.Cookie(store, "session", func(s *sessions.Session) { redistore.SetOwner(s, "https://id.example.com ann") })
	for token, want := range map[string]int{"bad": http.StatusBadRequest, "good": http.StatusOK} {
		if w := redis.Serve(handler, redis.Request("POST", "/?logout_token="+token, nil)); w.Code != want {
			t.Errorf("%s: got %d", token, w.Code)
		}
	}
	if s, _ := store.Get(redis.Request("GET", "/", nil, ann), "session"); !s.IsNew {
		t.Error("the session lives")
	}
	redis.Cookie(store, "session", func(s *sessions.Session) { redistore.SetOwner(s, "https://id.example.com ann") })
	redis.Fail(errors.New("redis is down"))
	if w := redis.Serve(handler, redis.Request("POST", "/?logout_token=good", nil)); w.Code != http.StatusServiceUnavailable {
		t.Errorf("while Redis is down: %d", w.Code)
	}
}

// ready answers an orchestrator's readiness probe.
func ready(store *redistore.LockingStore) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := store.Ping(r.Context()); err != nil {
			log.Print(err) // it says what to change; a visitor need not know
			http.Error(w, "not ready", redistore.Status(err))
		}
	}
}

func TestRecipeReady(t *testing.T) {
	redis := redistoretest.New(t)
	handler := ready(redistore.NewLockingStore(redis.Store()))
	if w := redis.Serve(handler, redis.Request("GET", "/ready", nil)); w.Code != http.StatusOK {
		t.Errorf("got %d", w.Code)
	}
	log.SetOutput(t.Output())
	defer log.SetOutput(log.Default().Writer())
	redis.Fail(errors.New("redis is down"))
	if w := redis.Serve(handler, redis.Request("GET", "/ready", nil)); w.Code != http.StatusServiceUnavailable {
		t.Errorf("while Redis is down: %d", w.Code)
	}
}

// events is a stream that may last for hours, and ends with its session.
func events(store *redistore.LockingStore, news <-chan string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		session, err := store.Store.Get(r, "session") // without the lock
		if err == nil && session.IsNew {
			err = redistore.ErrGone
		}
		if status := redistore.Status(err); status != http.StatusOK {
			http.Error(w, "please log in, or try again", status)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		for {
			select {
			case <-r.Context().Done():
				return
			case text := <-news:
				err := store.Update(r, w, "session", func(session *sessions.Session) error {
					session.Values["seen"] = text
					return nil
				})
				if err != nil { // ErrGone: logged out meanwhile. The browser asks again, and is told
					return
				}
				fmt.Fprintf(w, "data: %s\n\n", text)
				_ = http.NewResponseController(w).Flush()
			}
		}
	}
}

func TestRecipeEvents(t *testing.T) {
	redis := redistoretest.New(t)
	store := redistore.NewLockingStore(redis.Store())
	news := make(chan string)
	handler := events(store, news)
	if w := redis.Serve(handler, redis.Request("GET", "/", nil)); w.Code != http.StatusUnauthorized {
		t.Errorf("without a session: %d", w.Code)
	}
	ann := redis.Cookie(store, "session", func(s *sessions.Session) { redistore.SetOwner(s, "ann") })
	srv := httptest.NewServer(handler)
	defer srv.Close()
	r, err := http.NewRequestWithContext(t.Context(), "GET", srv.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.AddCookie(ann)
	go func() { news <- "one" }()
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	stream := bufio.NewReader(response.Body)
	if text, err := stream.ReadString('\n'); err != nil || text != "data: one\n" {
		t.Fatalf("the stream begins with %q, %v", text, err)
	}
	if _, err := store.Revoke(t.Context(), "ann"); err != nil {
		t.Fatal(err)
	}
	news <- "two"
	if rest, err := io.ReadAll(stream); err != nil || string(rest) != "\n" {
		t.Errorf("after the logout: %q, %v", rest, err)
	}
}

// both is the store of a first deployment, where servers are replaced one by one: it reads
// what CookieStore and redistore have written, and writes each where it came from. It is the
// way back too, as far as to itself: CookieStore alone cannot read what has moved to Redis.
type both struct {
	cookies *sessions.CookieStore
	redis   *redistore.Store
}

func (b both) Get(r *http.Request, name string) (*sessions.Session, error) {
	return sessions.GetRegistry(r).Get(b, name)
}

func (b both) New(r *http.Request, name string) (*sessions.Session, error) {
	return b.of(r, name).New(r, name)
}

func (b both) Save(r *http.Request, w http.ResponseWriter, session *sessions.Session) error {
	return b.of(r, session.Name()).Save(r, w, session)
}

// of returns the store that has made the request's cookie.
func (b both) of(r *http.Request, name string) sessions.Store {
	var id string
	if c, err := r.Cookie(name); err == nil && securecookie.DecodeMulti(name, c.Value, &id, b.redis.Codecs...) == nil {
		return b.redis
	}
	return b.cookies
}

// TestRecipeServerByServer sends a visitor to servers of all three releases, in any order.
func TestRecipeServerByServer(t *testing.T) {
	redis := redistoretest.New(t)
	cookies := sessions.NewCookieStore(testKey)
	first := both{cookies, redistore.New(redis.Client, testKey)}
	second := redistore.New(redis.Client, testKey) // the second deployment
	second.CookieStoreUntil = time.Now().Add(time.Hour)
	for _, way := range [][]sessions.Store{
		{cookies, first, first, second, first, second, second},
		{cookies, first, cookies, first, second, first}, // and back, before all had the second
	} {
		jar := map[string]*http.Cookie{}
		for n, store := range way {
			r, w := redis.Request("GET", "/", nil), httptest.NewRecorder()
			for _, c := range jar {
				r.AddCookie(c)
			}
			session, err := store.Get(r, "session")
			if err != nil {
				t.Fatalf("server %d: %v", n, err)
			}
			if seen, _ := session.Values["n"].(int); seen != n {
				t.Fatalf("server %d sees %d", n, seen)
			}
			session.Values["n"] = n + 1
			if err := session.Save(r, w); err != nil {
				t.Fatalf("server %d: %v", n, err)
			}
			for _, c := range w.Result().Cookies() {
				jar[c.Name] = c
			}
		}
	}
}

// TestRecipeServerByServerKeepsALogin of the second deployment, when a late request of its page
// comes to a server of the first.
func TestRecipeServerByServerKeepsALogin(t *testing.T) {
	redis := redistoretest.New(t)
	first := both{sessions.NewCookieStore(testKey), redistore.New(redis.Client, testKey)}
	second := redistore.New(redis.Client, testKey)
	old := redis.Cookie(second, "session", func(s *sessions.Session) { s.Values["csrf"] = 1 })
	r := redis.Request("GET", "/", nil, old)
	session, _ := second.Get(r, "session")
	if err := second.Renew(r, httptest.NewRecorder(), session); err != nil {
		t.Fatal(err)
	}
	r, w := redis.Request("GET", "/", nil, old), httptest.NewRecorder()
	session, _ = first.Get(r, "session")
	if err := session.Save(r, w); !errors.Is(err, redistore.ErrGone) || len(w.Result().Cookies()) > 0 {
		t.Errorf("got %v, and cookies %v", err, w.Result().Cookies())
	}
}

// A server stops when its last request has been answered; the client is closed after that.
func TestRecipeShutdown(t *testing.T) {
	redis := redistoretest.New(t)
	store, client := redis.Store(), redis.Client
	serve := func(ctx context.Context, server *http.Server) error {
		stopped := make(chan error, 1)
		go func() {
			<-ctx.Done() // of signal.NotifyContext
			patience, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			stopped <- server.Shutdown(patience)
		}()
		err := server.ListenAndServe()
		if errors.Is(err, http.ErrServerClosed) { // which comes at once; the last requests have until Shutdown returns
			err = <-stopped
		}
		return errors.Join(err, client.Close())
	}
	entered, stopped := make(chan struct{}), make(chan struct{})
	address := make(chan string, 1)
	listens := func(l net.Listener) context.Context {
		address <- l.Addr().String()
		return context.Background()
	}
	server := &http.Server{Addr: "localhost:0", BaseContext: listens, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		session, err := store.Get(r, "session")
		close(entered)
		<-stopped
		time.Sleep(50 * time.Millisecond) // ListenAndServe has returned
		if err == nil {
			err = session.Save(r, w)
		}
		w.WriteHeader(redistore.Status(err))
	})}
	server.RegisterOnShutdown(func() { close(stopped) })
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, server) }()
	go func() { <-entered; stop() }()
	response, err := http.Get("http://" + <-address)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Errorf("the last request: %s", response.Status)
	}
	if err := <-ended; err != nil {
		t.Errorf("it ended with %v", err)
	}
}

// Metrics of the lock and of the connections.
func Example_metrics() {
	store := redistore.NewLockingStore(store)
	expvar.Publish("sessions_lock", expvar.Func(func() any { return store.Stats() }))
	expvar.Publish("sessions_pool", expvar.Func(func() any { return client.PoolStats() }))
}

// Requests that another site makes a browser send are refused, whatever cookie they carry.
func Example_csrf() {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /transfer", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "done") })
	handler := http.NewCrossOriginProtection().Handler(mux)
	_ = handler
}
