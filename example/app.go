package main

import (
	"crypto/rand"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gorilla/sessions"

	"github.com/redistore/redistore"
)

const (
	// cookieName is not just "session": on localhost, all ports share their cookies.
	cookieName = "redistore_example"
	maxName    = 40 // characters
	maxBasket  = 12
)

var goods = []string{"tea", "bread", "cheese"}

// app is the application, with a store of its own on each server. It keeps nothing
// that the next request needs: that is in the session.
type app struct {
	store  *redistore.LockingStore
	number int   // of the server
	demo   *demo // what an application would not have
}

func (a *app) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", a.home)
	mux.HandleFunc("GET /look", a.look)
	mux.HandleFunc("POST /login", a.login)
	mux.HandleFunc("POST /basket", a.basket)
	mux.HandleFunc("POST /logout", a.logout)
	mux.HandleFunc("POST /logout-there", a.logoutThere)
	mux.HandleFunc("POST /logout-elsewhere", a.logoutElsewhere)
	a.demo.routes(mux, a)
	return protect(mux)
}

// protect guards against forged requests, framing, scripts and huge forms.
func protect(h http.Handler) http.Handler {
	h = http.NewCrossOriginProtection().Handler(http.MaxBytesHandler(h, 64<<10)) // 64 KiB
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Referrer-Policy", "same-origin") // none at all would make Origin null, which is refused
		w.Header().Set("Cache-Control", "no-store")      // what a session shows is nobody else's
		h.ServeHTTP(w, r)
	})
}

// home changes the session, so it goes through the lock. Update holds that for just
// as long as the function runs.
func (a *app) home(w http.ResponseWriter, r *http.Request) {
	var session *sessions.Session
	var flashes []any
	err := a.store.Update(r, w, cookieName, func(s *sessions.Session) error {
		visits, _ := s.Values["visits"].(int)
		s.Values["visits"] = visits + 1
		flashes = s.Flashes() // which takes them out: they are shown once
		session = s
		return nil
	})
	if err != nil {
		a.fail(w, r, err)
		return
	}
	a.show(w, r, session, flashes)
}

// look only reads.
func (a *app) look(w http.ResponseWriter, r *http.Request) {
	session, err := a.read(r)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	if session.IsNew { // there is nothing to look at
		http.Redirect(w, r, "/", http.StatusSeeOther)
		return
	}
	a.show(w, r, session, nil)
}

// read takes no lock and waits for none: it is the embedded Store's Get.
func (a *app) read(r *http.Request) (*sessions.Session, error) {
	session, err := a.store.Store.Get(r, cookieName)
	if redistore.Status(err) == http.StatusOK { // a cookie that proves nothing got a new session
		err = nil
	}
	return session, err
}

func (a *app) login(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimSpace(r.FormValue("name"))
	if name == "" || utf8.RuneCountInString(name) > maxName || !utf8.ValidString(name) {
		a.problem(w, http.StatusBadRequest, fmt.Sprintf("Please give a name of 1 to %d characters.", maxName))
		return
	}
	session, err := a.store.Get(r, cookieName)
	if redistore.Status(err) != http.StatusOK {
		a.fail(w, r, err)
		return
	}
	if user := session.Values["user"]; user != nil && user != name {
		clear(session.Values) // what Ann had in her basket is none of Bob's business
	}
	session.Values["user"] = name
	session.Values["old ID"] = fmt.Sprintf("%.12s…", session.ID) // to be seen on the page
	session.Values["login"] = rand.Text()[:8]                    // what the page calls this session
	session.Values["device"] = device(r.UserAgent())
	session.Values["since"] = time.Now().Unix()
	session.AddFlash(fmt.Sprintf("Hello, %s! %s logged you in and gave your session a new ID.", name, a))
	redistore.SetOwner(session, "user:"+name) // for "your logins" and "log out everywhere"
	// Renew, not Save: an ID from before the login is worth nothing after it.
	err = a.store.Renew(r, w, session)
	slog.Info("login", "server", a.number, "user", name, "err", err)
	a.finish(w, r, err, "/#session")
}

func (a *app) basket(w http.ResponseWriter, r *http.Request) {
	item := r.FormValue("item")
	if !slices.Contains(goods, item) {
		a.problem(w, http.StatusBadRequest, "The shop does not have that.")
		return
	}
	err := a.store.Update(r, w, cookieName, func(s *sessions.Session) error {
		basket, _ := s.Values["basket"].([]string)
		if len(basket) >= maxBasket {
			s.AddFlash("The basket is full. Log out to leave it here.")
			return nil
		}
		s.Values["basket"] = append(basket, item)
		s.AddFlash(fmt.Sprintf("%s put %s into your basket.", a, item))
		return nil
	})
	a.finish(w, r, err, "/#session")
}

// logout works on what cannot be read, and does not wait for whoever has the lock.
func (a *app) logout(w http.ResponseWriter, r *http.Request) {
	session, _ := a.store.Store.Get(r, cookieName)
	session.Options.MaxAge = -1
	err := a.store.Save(r, w, session)
	slog.Info("logout", "server", a.number, "user", session.Values["user"], "err", err)
	if err != nil {
		a.problem(w, http.StatusServiceUnavailable, "You are logged out in this browser: its cookie is gone. But Redis could not be told, and keeps the session until it expires.")
		return
	}
	// The goodbye is said in a session of its own, which nobody is logged in to.
	next := sessions.NewSession(a.store.Store, cookieName)
	next.IsNew = true
	next.AddFlash(fmt.Sprintf("Goodbye! %s ended your session.", a))
	a.finish(w, r, a.store.Store.Save(r, w, next), "/#session")
}

// logoutThere ends one of the user's other sessions.
func (a *app) logoutThere(w http.ResponseWriter, r *http.Request) {
	session, err := a.read(r)
	list, listErr := a.logins(r, session)
	err = errors.Join(err, listErr)
	said := "That login is over already."
	for _, s := range list {
		if s.Values["login"] == r.FormValue("login") && s.ID != session.ID && err == nil {
			s.Options.MaxAge = -1
			err = s.Save(r, w) // this browser's cookie stays
			said = fmt.Sprintf("%s logged out %v.", a, s.Values["device"])
		}
	}
	a.note(w, r, err, "/#logins", func(s *sessions.Session) { s.AddFlash(said) })
}

// logins are the user's sessions, in this browser and in others.
func (a *app) logins(r *http.Request, session *sessions.Session) (list []*sessions.Session, err error) {
	owner := redistore.Owner(session)
	if owner == "" {
		return nil, nil
	}
	for s, err := range a.store.Sessions(r.Context(), owner) {
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	return list, nil
}

// logoutElsewhere ends all of them but this one.
func (a *app) logoutElsewhere(w http.ResponseWriter, r *http.Request) {
	session, err := a.read(r)
	ended := 0
	if owner := redistore.Owner(session); owner != "" {
		ended, err = a.store.Revoke(r.Context(), owner, session.ID)
	}
	said := fmt.Sprintf("%s logged you out everywhere else: %d.", a, ended)
	a.note(w, r, err, "/#logins", func(s *sessions.Session) { s.AddFlash(said) })
}

// note puts what has been done into the session, if it was done without an error.
func (a *app) note(w http.ResponseWriter, r *http.Request, err error, to string, change func(*sessions.Session)) {
	if err == nil {
		err = a.store.Update(r, w, cookieName, func(s *sessions.Session) error {
			change(s)
			return nil
		})
	}
	a.finish(w, r, err, to)
}

// finish sends the browser on to a page that it may reload.
func (a *app) finish(w http.ResponseWriter, r *http.Request, err error, to string) {
	if err != nil {
		a.fail(w, r, err)
		return
	}
	http.Redirect(w, r, to, http.StatusSeeOther)
}

// fail answers what the store refuses.
func (a *app) fail(w http.ResponseWriter, r *http.Request, err error) {
	status := redistore.Status(err)
	if status == http.StatusUnauthorized && r.Method != http.MethodGet { // logged out elsewhere, while this request was running
		http.Redirect(w, r, "/", http.StatusSeeOther)
		return
	}
	slog.Error("session", "server", a.number, "method", r.Method, "path", r.URL.Path, "err", err)
	w.Header().Set("Retry-After", "1")
	a.problem(w, status, sorry[status])
}

var sorry = map[int]string{
	http.StatusUnauthorized:        "Your session has ended, or a login whose answer did not arrive has renewed it. Please reload this page in a minute.",
	http.StatusConflict:            "Another request changed your session meanwhile, so this one changed nothing. Please repeat it.",
	http.StatusServiceUnavailable:  "Redis cannot be reached, or other requests of yours hold the session. Nothing is lost. Please try again in a moment.",
	http.StatusInternalServerError: "This is a fault of the program, and trying again will not help. Nothing is lost.",
}

func (a *app) String() string { return fmt.Sprintf("Server %d", a.number) }

//go:embed page.html style.css icon.svg
var files embed.FS

var page = template.Must(template.ParseFS(files, "page.html"))

// view is what the page shows.
type view struct {
	Demo    *demo
	Server  int    // that answers
	Problem string // instead of all that follows
	Look    bool   // without counting
	Session *sessions.Session
	Flashes []any
	Logins  []*sessions.Session
	Cookie  string
	Record  record
}

func (a *app) show(w http.ResponseWriter, r *http.Request, session *sessions.Session, flashes []any) {
	v := view{Demo: a.demo, Server: a.number, Look: r.URL.Path == "/look", Session: session, Flashes: flashes,
		Cookie: cookie(w, r)}
	var err, err2 error
	v.Logins, err = a.logins(r, session)
	v.Record, err2 = a.demo.record(r.Context(), a.store.KeyPrefix+session.ID)
	if err := errors.Join(err, err2); err != nil {
		a.fail(w, r, err)
		return
	}
	render(w, http.StatusOK, v)
}

func (a *app) problem(w http.ResponseWriter, status int, text string) {
	render(w, status, view{Demo: a.demo, Server: a.number, Problem: text})
}

func render(w http.ResponseWriter, status int, v view) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	if err := page.ExecuteTemplate(w, "page.html", v); err != nil {
		slog.Error("page", "err", err)
	}
}

func (view) Goods() []string { return goods }
func (view) MaxName() int    { return maxName }
func (view) Now() int64      { return time.Now().UnixNano() } // in a link, lest the browser only scrolls

// Ago is how long ago somebody logged in.
func (view) Ago(session *sessions.Session) time.Duration {
	since, _ := session.Values["since"].(int64)
	return time.Since(time.Unix(since, 0)).Truncate(time.Second)
}

// cookie is what the browser holds after this response.
func cookie(w http.ResponseWriter, r *http.Request) string {
	c, _ := r.Cookie(cookieName)
	for _, line := range w.Header()["Set-Cookie"] {
		c, _ = http.ParseSetCookie(line)
	}
	return c.Value // on a page that shows a session there is one
}

// device is the gist of a User-Agent.
func device(userAgent string) string {
	first := func(names ...string) string {
		i := slices.IndexFunc(names, func(name string) bool { return strings.Contains(userAgent, name) })
		if i < 0 {
			return "something"
		}
		return names[i]
	}
	browser := strings.Replace(first("Edg", "Firefox", "Chrome", "Safari", "curl"), "Edg", "Edge", 1)
	return browser + " on " + first("Android", "iPhone", "iPad", "Windows", "Mac OS", "CrOS", "Linux")
}
