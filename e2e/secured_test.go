package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"iter"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redistore/redistore"
	"github.com/redistore/redistore/e2e/topology"
)

// aclRule is the one that docs/production.md gives.
func aclRule(t *testing.T) []string {
	t.Helper()
	readme, err := os.ReadFile("../docs/production.md")
	must(t, err)
	rule := regexp.MustCompile(`(?m)^ACL SETUSER (.*)$`).FindSubmatch(readme)
	if rule == nil {
		t.Fatal("docs/production.md has no ACL SETUSER")
	}
	return strings.Fields(string(rule[1]))
}

// TestTheACLRuleIsEnoughAndNotMore runs everything as a user who may do what the
// rule in docs/production.md allows, and then without each of its commands, which must be missed.
func TestTheACLRuleIsEnoughAndNotMore(t *testing.T) {
	rule := aclRule(t)
	server := topology.Start(t)
	admin := server.Client()
	as := func(rule []string) *redis.Client {
		t.Helper()
		must(t, admin.ACLSetUser(t.Context(), rule[0], append([]string{"reset"}, rule[1:]...)...).Err())
		client := redis.NewClient(&redis.Options{Addr: server.Addr, Username: rule[0], Password: "password", MaxRetries: -1, ContextTimeoutEnabled: true})
		t.Cleanup(func() { client.Close() })
		return client
	}
	lifeOfASession(t, as(rule))
	client := as(rule)
	idle := redistore.New(client, hashKey)
	idle.IdleTimeout = time.Hour
	s, _, end := (browser{}).get(t, idle)
	end()
	equal(t, "IsNew", s.IsNew, true)
	if err := client.Get(t.Context(), "another application's").Err(); !redis.HasErrorPrefix(err, "NOPERM") {
		t.Errorf("a key of another application: %v", err)
	}

	for i, word := range rule {
		if !strings.HasPrefix(word, "+") || slices.Contains([]string{"+publish", "+subscribe", "+lrem"}, word) {
			continue // without these, servers that wait for one another poll
		}
		client := as(append(append([]string{}, rule[:i]...), rule[i+1:]...))
		if err := everyCommand(t, client); err == nil {
			t.Errorf("%s is in the rule, and not needed", word)
		}
	}
}

// TestTheACLRuleWithOptions adds what docs/production.md says that some of the client's options
// need, and leaves it out.
func TestTheACLRuleWithOptions(t *testing.T) {
	server := topology.Start(t)
	for right, change := range map[string]func(*redis.Options){
		"+select":         func(o *redis.Options) { o.DB = 1 },
		"+client|setname": func(o *redis.Options) { o.ClientName = "app" },
	} {
		for _, rule := range [][]string{aclRule(t), append(aclRule(t), right)} {
			must(t, server.Client().ACLSetUser(t.Context(), rule[0], append([]string{"reset"}, rule[1:]...)...).Err())
			o := &redis.Options{Addr: server.Addr, Username: rule[0], Password: "password", ContextTimeoutEnabled: true}
			change(o)
			client := redis.NewClient(o)
			defer client.Close()
			err := redistore.NewLockingStore(redistore.New(client, hashKey)).Ping(t.Context())
			if granted := slices.Contains(rule, right); granted != (err == nil) {
				t.Errorf("%s is granted: %v, and Ping: %v", right, granted, err)
			}
		}
	}
}

// TestTheACLRuleOnACluster adds what docs/production.md says that a Cluster needs.
func TestTheACLRuleOnACluster(t *testing.T) {
	rule := append(aclRule(t), "+cluster|slots", "+command")
	nodes := topology.Cluster(t, 3, 0)
	for _, n := range nodes {
		must(t, n.Client().ACLSetUser(t.Context(), rule[0], rule[1:]...).Err())
	}
	client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: topology.Addrs(nodes), Username: rule[0], Password: "password", ContextTimeoutEnabled: true})
	defer client.Close()
	lifeOfASession(t, client)
}

// everyCommand uses all that a store can send, and returns the first error.
func everyCommand(t *testing.T, client *redis.Client) error {
	plain := redistore.New(client, hashKey)
	store := redistore.NewLockingStore(plain)
	store.Wait = 0
	b := browser{}
	visit := func(over sessions.Store, do func(s *sessions.Session, r *http.Request, w http.ResponseWriter) error) error {
		ctx, end := context.WithCancel(t.Context())
		defer end()
		r, w := httptest.NewRequestWithContext(ctx, "GET", "/", nil), httptest.NewRecorder()
		for name, value := range b {
			r.AddCookie(&http.Cookie{Name: name, Value: value})
		}
		s, err := over.Get(r, "s")
		if err != nil {
			return err
		}
		err = do(s, r, w)
		b.keep(w)
		return err
	}
	save := func(s *sessions.Session, r *http.Request, w http.ResponseWriter) error { return s.Save(r, w) }
	login := func(s *sessions.Session, r *http.Request, w http.ResponseWriter) error {
		redistore.SetOwner(s, "ann")
		return s.Save(r, w)
	}
	large := func(s *sessions.Session, r *http.Request, w http.ResponseWriter) error {
		s.Values["large"] = strings.Repeat("x", 32<<10) // which the lock writes in a way of its own
		return s.Save(r, w)
	}
	lockedTwice := func(*sessions.Session, *http.Request, http.ResponseWriter) error {
		other := redistore.NewLockingStore(plain) // of another process, as it were
		other.Wait = 20 * time.Millisecond
		err := visit(other, save)
		if errors.Is(err, redistore.ErrLocked) {
			return nil
		}
		return err
	}
	logout := func(s *sessions.Session, r *http.Request, w http.ResponseWriter) error {
		s.Options.MaxAge = -1
		return s.Save(r, w)
	}
	touch := func(s *sessions.Session, r *http.Request, w http.ResponseWriter) error { return plain.Touch(r, w, s) }
	renew := func(s *sessions.Session, r *http.Request, w http.ResponseWriter) error { return plain.Renew(r, w, s) }
	for _, step := range []func() error{
		func() error { return store.Ping(t.Context()) },
		func() error { return visit(plain, login) },
		func() error { return visit(plain, touch) },
		func() error { return visit(plain, renew) },
		func() error { return visit(store, save) },
		func() error { return visit(store, save) },
		func() error { return visit(store, large) },
		func() error { return visit(store, lockedTwice) },
		func() error { return everyError(plain.Sessions(t.Context(), "ann")) },
		func() error { _, err := plain.Revoke(t.Context(), "ann"); return err },
		func() error { return visit(plain, login) },
		func() error { return visit(plain, logout) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// everyError is what a list found wrong.
func everyError(list iter.Seq2[*sessions.Session, error]) (all error) {
	for _, err := range list {
		all = errors.Join(all, err)
	}
	return all
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	cert, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	must(t, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	must(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600))

	server := topology.Start(t, "--port", "0", "--tls-port", "{port}", "--tls-cert-file", cert, "--tls-key-file", keyFile, "--tls-ca-cert-file", cert, "--tls-auth-clients", "no")
	ca, err := x509.ParseCertificate(der)
	must(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	client := redis.NewClient(&redis.Options{Addr: server.Addr, TLSConfig: &tls.Config{RootCAs: pool}, ContextTimeoutEnabled: true})
	defer client.Close()
	lifeOfASession(t, client)

	stranger := redis.NewClient(&redis.Options{Addr: server.Addr, TLSConfig: &tls.Config{}, MaxRetries: -1, DialerRetries: 1})
	defer stranger.Close()
	if err := redistore.New(stranger, hashKey).Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "redistore: ping: ") {
		t.Errorf("a certificate of an unknown authority: %v", err)
	}
}
