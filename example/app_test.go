package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/redistore/redistore/redistoretest"
)

// start starts the whole example.
func start(t *testing.T) (d *demo, address string) {
	t.Helper()
	redis := redistoretest.New(t)
	d = newDemo(redis.Client, redis.Mini, make([]byte, 32))
	for _, s := range d.Servers {
		if err := s.start(); err != nil {
			t.Fatal(err)
		}
	}
	front := httptest.NewServer(d.balance())
	d.Host = front.Listener.Addr().String()
	t.Cleanup(func() {
		front.Close()
		for _, s := range d.Servers {
			s.stop()
		}
	})
	return d, front.URL
}

// browser follows redirects and keeps cookies.
type browser struct {
	*testing.T
	http.Client
	address string
}

func open(t *testing.T, address string) *browser {
	jar, _ := cookiejar.New(nil)
	return &browser{t, http.Client{Jar: jar}, address}
}

// get and post return the page, in one line, with its status in front.
func (b *browser) get(path string) string { return b.send("GET", path, nil, nil) }

func (b *browser) post(path string, form url.Values) string { return b.send("POST", path, form, nil) }

func (b *browser) send(method, path string, form url.Values, header http.Header) string {
	b.Helper()
	r, err := http.NewRequest(method, b.address+path, strings.NewReader(form.Encode()))
	if err != nil {
		b.Fatal(err)
	}
	for name, values := range header {
		r.Header[name] = values
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("User-Agent", "Mozilla/5.0 (X11; Linux x86_64) Firefox/150.0")
	response, err := b.Do(r)
	if err != nil {
		b.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		b.Fatal(err)
	}
	text := regexp.MustCompile(`</?(b|bdi|small|code|span|tr|td|th)\b[^>]*>`).ReplaceAllString(string(body), "")
	return response.Status + " " + strings.Join(strings.Fields(text), " ")
}

func (b *browser) login(name string) string { return b.post("/login", url.Values{"name": {name}}) }

func (b *browser) want(page string, want ...string) {
	b.Helper()
	for _, w := range want {
		if !strings.Contains(page, w) {
			b.Errorf("%q is not on the page: %s", w, page)
		}
	}
}

func (b *browser) wantNot(page string, not ...string) {
	b.Helper()
	for _, n := range not {
		if strings.Contains(page, n) {
			b.Errorf("%q is on the page: %s", n, page)
		}
	}
}

// answered is the server that did.
func answered(page string) string {
	found := regexp.MustCompile(`aria-current="true"> (Server \d)`).FindStringSubmatch(page)
	if found == nil {
		return "none"
	}
	return found[1]
}

func TestTheSessionFollows(t *testing.T) {
	d, address := start(t)
	b := open(t, address)
	servers := map[string]int{}
	for visit := 1; visit <= 6; visit++ {
		page := b.get("/")
		b.want(page, "200 OK", fmt.Sprintf("visit number %d.", visit))
		servers[answered(page)]++
	}
	if len(servers) != 3 || servers["Server 1"] != 2 {
		t.Errorf("pages by server: %v", servers)
	}
	b.want(b.post("/basket", url.Values{"item": {"tea"}}), "put tea into your basket", "Basket</h3> <p>tea.</p>")

	before := records(d)
	page := b.login(" Ann ")
	b.want(page, "Hello, Ann!", "gave your session a new ID", "logged in as Ann.", "<p>tea.</p>", "Firefox on Linux", "this browser")
	if d.mini.Exists(before[0]) {
		t.Error("the session before the login is still there")
	}
	id := regexp.MustCompile(`Before the login it was (\S+)…`).FindStringSubmatch(page)
	if id == nil || !strings.HasPrefix(before[0], "redistore_example_"+id[1]) {
		t.Errorf("the old ID was %s; page: %s", before[0], page)
	}
	b.wantNot(b.get("/"), "Hello") // a flash is shown once

	for range maxBasket - 1 {
		b.post("/basket", url.Values{"item": {"bread"}})
	}
	b.want(b.post("/basket", url.Values{"item": {"cheese"}}), "The basket is full")

	b.want(b.post("/logout", nil), "200 OK", "visit number 1.", "Your name", "Empty.")
	if keys := records(d); len(keys) != 1 {
		t.Errorf("after the logout there is more than the new session: %v", keys)
	}
}

// records are Redis's keys but for the notes that a renewal and the lock leave for a
// minute or two.
func records(d *demo) []string {
	return slices.DeleteFunc(d.mini.Keys(), func(key string) bool {
		return strings.HasSuffix(key, ":replaced") || strings.HasSuffix(key, ":version")
	})
}

func TestALookChangesNothing(t *testing.T) {
	d, address := start(t)
	b := open(t, address)
	b.want(b.get("/look"), "visit number 1.") // there was nothing to look at
	b.want(b.get("/"), "Expires in</dt><dd>30m0s")
	d.mini.FastForward(65e9)
	for range 3 {
		b.want(b.get("/look"), "Visits so far: 2.", "Expires in</dt><dd>28m55s", "Lock</dt><dd>free", "visits2")
	}
	key := records(d)[0]
	d.mini.Set("{"+key+"}:lock", "somebody's")
	d.mini.SetTTL("{"+key+"}:lock", 9e9)
	b.want(b.get("/look"), "held, for 9s at most")
}

func TestVisitsAreCountedOneByOne(t *testing.T) {
	_, address := start(t)
	b := open(t, address)
	b.get("/")
	var all sync.WaitGroup
	for range 30 {
		all.Go(func() { b.want(b.get("/"), "200 OK") })
	}
	all.Wait()
	b.want(b.get("/"), "visit number 32.")
}

func TestServersStopAndStart(t *testing.T) {
	_, address := start(t)
	b := open(t, address)
	b.login("Ann")
	stop, start := url.Values{"do": {"stop"}}, url.Values{"do": {"start"}}
	for range 2 { // the second changes nothing
		b.want(b.post("/servers/2", stop), "200 OK", "logged in as Ann", "Server 2 stopped")
	}
	for range 6 {
		if page := b.get("/"); answered(page) == "Server 2" {
			t.Errorf("a stopped server answered: %s", page)
		}
	}
	b.post("/servers/1", stop)
	b.want(b.post("/servers/3", stop), "503", "All three servers are stopped", "Start")
	b.want(b.login("Bob"), "503", "All three servers are stopped")
	b.want(b.post("/servers/2", start), "200 OK", "logged in as Ann")
	if page := b.post("/servers/2", start); answered(page) != "Server 2" {
		t.Errorf("not Server 2, the only one: %s", page)
	}
	for _, number := range []string{"0", "4", "-1", "x", "99999999999999999999"} {
		b.want(b.post("/servers/"+number, stop), "404")
	}
}

func TestLogins(t *testing.T) {
	_, address := start(t)
	here, there, bob := open(t, address), open(t, address), open(t, address)
	bob.login("Bob")
	here.login("Ann")
	there.login("Ann")
	handle := regexp.MustCompile(`name="login" value="(\w+)"`)
	page := here.get("/")
	other := handle.FindStringSubmatch(page)
	if other == nil || len(handle.FindAllString(page, -1)) != 1 {
		t.Fatalf("not one other login: %s", page)
	}
	bob.want(bob.post("/logout-there", url.Values{"login": {other[1]}}), "That login is over already")
	there.want(there.get("/"), "logged in as Ann")
	here.want(here.post("/logout-there", url.Values{"login": {other[1]}}), "logged out Firefox on Linux", "logged in as Ann")
	there.want(there.get("/"), "Your name")
	here.want(here.post("/logout-there", url.Values{"login": {other[1]}}), "That login is over already")

	there.login("Ann")
	open(t, address).login("Ann")
	here.want(here.post("/logout-elsewhere", nil), "everywhere else: 2.", "logged in as Ann")
	there.want(there.get("/"), "Your name")
	there.want(there.post("/logout-elsewhere", nil), "everywhere else: 0.", "Your name")
	bob.want(bob.get("/"), "logged in as Bob")
	here.want(here.get("/"), "logged in as Ann")
}

func TestTheRace(t *testing.T) {
	d, address := start(t)
	b := open(t, address)
	b.login("Ann")
	// Without the lock, all meet: each has loaded before any saves.
	var clicked atomic.Int32
	var met sync.WaitGroup
	met.Add(clicks)
	d.work = func() {
		if clicked.Add(1) <= clicks {
			met.Done()
			met.Wait()
		}
	}
	b.want(b.post("/race", nil), "1 kept, 59 lost, 0 refused", "60 kept, 0 lost, 0 refused", "logged in as Ann")
	d.work = func() {}
	b.want(b.post("/race", nil), "60 kept, 0 lost, 0 refused")
	if keys := len(records(d)); keys != 2 {
		t.Errorf("%d keys are left, not a session and its owner's index", keys)
	}
}

func TestTheLogoutRace(t *testing.T) {
	_, address := start(t)
	b := open(t, address)
	b.login("Bob")
	b.want(b.post("/logout-race", nil),
		"saves, and the session is back.", "The next page: Ann is logged in again.",
		"It saves nothing.", "The next page: nobody is logged in.", "logged in as Bob")
}

func TestTheLoginRace(t *testing.T) {
	_, address := start(t)
	b := open(t, address)
	b.login("Bob")
	b.want(b.post("/login-race", nil),
		"Of the five late requests, 0 were refused.", "The next page: nobody is logged in.",
		"Of the five late requests, 5 were refused.", "The next page: Ann is logged in.", "logged in as Bob")
}

func TestWhoeverLogsOutIsToldSo(t *testing.T) {
	_, address := start(t)
	b := open(t, address)
	b.login("Ann")
	page := b.post("/logout", nil)
	b.want(page, "Goodbye!", "ended your session.", "Your name")
	b.wantNot(b.get("/"), "Goodbye!", "logged in as")
}

// TestADoubleClickIsOneLogin sends the form twice at once, as a hurried visitor does.
func TestADoubleClickIsOneLogin(t *testing.T) {
	for range 10 {
		_, address := start(t)
		b := open(t, address)
		b.get("/")
		var both sync.WaitGroup
		for range 2 {
			both.Go(func() { b.login("Ann") })
		}
		both.Wait()
		page := b.get("/")
		b.want(page, "logged in as Ann", "this browser")
		b.wantNot(page, "Log out there")
	}
}

func TestRedisIsLostAndComesBack(t *testing.T) {
	d, address := start(t)
	b := open(t, address)
	b.login("Ann")
	b.want(b.post("/redis", url.Values{"do": {"stop"}}), "503", "Redis cannot be reached", "Redisstopped")
	for _, path := range []string{"/", "/look"} {
		b.want(b.get(path), "503", "Redis cannot be reached", "Try again")
	}
	for _, path := range []string{"/login?name=Bob", "/basket?item=tea", "/logout-there?login=x", "/logout-elsewhere", "/race", "/logout-race", "/login-race"} {
		b.want(b.post(path, nil), "503", "Redis cannot be reached")
	}
	b.want(b.post("/redis", url.Values{"do": {"stop"}}), "503")
	b.want(b.post("/redis", url.Values{"do": {"start"}}), "200 OK", "logged in as Ann")
	b.want(b.post("/redis", url.Values{"do": {"start"}}), "200 OK", "logged in as Ann")

	d.mini.SetError("ERR out of order")
	b.want(b.get("/"), "503")
	b.want(b.post("/logout", nil), "503", "You are logged out in this browser", "Redis could not be told")
	d.mini.SetError("")
	b.want(b.get("/"), "200 OK", "Your name")

	d.mini = nil // the user's own Redis is not ours to stop
	b.want(b.post("/redis", url.Values{"do": {"stop"}}), "404")
	b.want(b.get("/"), "200 OK", "Redisyours")
}

func TestNobodyGetsIn(t *testing.T) {
	_, address := start(t)
	b := open(t, address)
	b.login("Ann")
	for _, path := range []string{"/login", "/basket", "/logout", "/logout-there", "/logout-elsewhere", "/race", "/logout-race", "/login-race", "/servers/1", "/redis"} {
		b.want(b.send("POST", path, nil, http.Header{"Sec-Fetch-Site": {"cross-site"}}), "403")
		b.want(b.send("POST", path, nil, http.Header{"Origin": {"http://elsewhere.example"}}), "403")
		b.want(b.send("GET", path, nil, nil), "40") // 404 or 405
	}
	same := http.Header{"Sec-Fetch-Site": {"same-origin"}, "Origin": {address}}
	b.want(b.send("POST", "/basket", url.Values{"item": {"tea"}}, same), "200 OK", "<p>tea.</p>")
	old := http.Header{"Origin": {address}} // a browser, or an address, without Sec-Fetch-Site
	b.want(b.send("POST", "/basket", url.Values{"item": {"tea"}}, old), "200 OK", "<p>tea, tea.</p>")

	b.want(b.login(`"><script>alert(1)</script>`), "&lt;script&gt;")
	b.wantNot(b.get("/"), "<script")
	for _, name := range []string{"", " ", strings.Repeat("x", 41), strings.Repeat("x", 70000), "\xff"} {
		b.want(b.login(name), "400", "Please give a name")
	}
	b.want(b.login(strings.Repeat("ü", 40)), "200 OK")
	b.want(b.post("/basket", url.Values{"item": {"a yacht"}}), "400", "The shop does not have that")
	b.want(b.get("/nothing"), "404")

	for _, value := range []string{"x", strings.Repeat("x", 5000), "MTc5NTQyOTk0NnxQZ3dBTzNS"} {
		stranger := open(t, address)
		forged := http.Header{"Cookie": {cookieName + "=" + value}}
		stranger.want(stranger.send("GET", "/look", nil, forged), "200 OK", "visit number 1.")
		stranger.want(stranger.send("GET", "/", nil, forged), "200 OK", "Your name")
		stranger.want(stranger.send("POST", "/logout-elsewhere", nil, forged), "200 OK", "Your name")
	}
}

func TestHeaders(t *testing.T) {
	d, address := start(t)
	check := func(path string) {
		t.Helper()
		response, err := http.Get(address + path)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		h := response.Header
		if csp := h["Content-Security-Policy"]; len(csp) != 1 || !strings.Contains(csp[0], "default-src 'none'") {
			t.Errorf("%s: Content-Security-Policy: %q", path, csp)
		}
		if h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %v", path, h)
		}
	}
	check("/")
	check("/nothing")
	check("/style.css")
	check("/icon.svg")
	for _, s := range d.Servers {
		s.stop()
	}
	check("/")
}

func TestDevice(t *testing.T) {
	for agent, want := range map[string]string{
		"": "something on something",
		"Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X) Version/19.0 Mobile/15E148 Safari/604.1": "Safari on iPhone",
		"Mozilla/5.0 (Windows NT 10.0) Chrome/150.0.0.0 Safari/537.36 Edg/150.0.0.0":                     "Edge on Windows",
		"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) Chrome/150.0.0.0 Safari/537.36":                 "Chrome on Mac OS",
		"curl/8.0": "curl on something",
	} {
		if got := device(agent); got != want {
			t.Errorf("%q: %q, want %q", agent, got, want)
		}
	}
}

// TestALostLoginIsNoEndlessRedirect: the browser still has the cookie from before.
func TestALostLoginIsNoEndlessRedirect(t *testing.T) {
	_, address := start(t)
	b := open(t, address)
	b.get("/")
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	old, _ := cookiejar.New(nil)
	old.SetCookies(u, b.Jar.Cookies(u))
	b.login("Ann")
	b.Jar = old
	r, err := b.Get(address + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusUnauthorized {
		t.Errorf("got %s", r.Status)
	}
}
