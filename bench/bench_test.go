package main

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestEveryContenderWorks runs the whole comparison, for a moment each.
func TestEveryContenderWorks(t *testing.T) {
	if _, err := exec.LookPath("redis-server"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("redis-server is not on PATH: CI tests the real thing")
		}
		t.Skip("redis-server is not on PATH; to run this test: apt-get install redis-server, or brew install redis")
	}
	*rounds, *slice, *clients = 1, 5*time.Millisecond, "1,4"
	var out bytes.Buffer
	if err := run(&out); err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(out.String(), "\n"); lines != 1+3*2*7 {
		t.Errorf("%d lines:\n%s", lines, &out)
	}
	*clients = "none"
	if err := run(&out); err == nil {
		t.Error("no error for a concurrency that is not a number")
	}
}

// BenchmarkStores runs each contender under go test -bench.
func BenchmarkStores(b *testing.B) {
	addr, stop, err := startRedis()
	if err != nil {
		b.Skip(err)
	}
	defer stop()
	all, err := contenders(addr)
	if err != nil {
		b.Fatal(err)
	}
	for _, work := range []string{"read", "read+save", "new"} {
		for _, c := range all {
			b.Run(work+"/"+c.name, func(b *testing.B) {
				cookie, err := c.request["new"]("")
				b.ReportAllocs()
				for b.Loop() {
					if work == "new" {
						cookie = ""
					}
					if err == nil {
						cookie, err = c.request[work](cookie)
					}
				}
				if err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}
