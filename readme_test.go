package redistore

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestREADMEIsCompiled shows that every Go snippet in the README is a whole program
// that passes vet, or stands in example_test.go.
func TestREADMEIsCompiled(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("README.md")
	must(t, err)
	examples, err := os.ReadFile("example_test.go")
	must(t, err)
	snippets := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(readme), -1)
	if len(snippets) < 5 {
		t.Fatalf("only %d snippets found", len(snippets))
	}
	for _, snippet := range snippets {
		code := snippet[1]
		if strings.HasPrefix(code, "package ") {
			file := filepath.Join(t.TempDir(), "main.go")
			must(t, os.WriteFile(file, []byte(code), 0o600))
			if out, err := exec.Command("go", "vet", file).CombinedOutput(); err != nil {
				t.Errorf("%s\n%s", out, code)
			}
			continue
		}
		if !strings.Contains(flat(string(examples)), flat(code)) {
			t.Errorf("not in example_test.go:\n%s", code)
		}
	}
}

// flat removes the indentation, which differs.
func flat(code string) string {
	return regexp.MustCompile(`(?m)^\s+`).ReplaceAllString(code, "")
}
