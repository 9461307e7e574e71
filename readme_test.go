package redistore

import (
	"go/format"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestREADMEIsCompiled shows that every Go snippet in the documents is a whole program
// that passes vet, or stands in a file that the tests compile; and is formatted.
func TestREADMEIsCompiled(t *testing.T) {
	t.Parallel()
	var compiled string
	for _, file := range []string{"example_test.go", "e2e/telemetry_test.go", "e2e/recipes_test.go", "redistoretest/redistoretest_test.go", "recipes_test.go"} {
		code, err := os.ReadFile(file)
		must(t, err)
		compiled += flat(string(code))
	}
	found := 0
	for name, text := range documents(t) {
		for _, snippet := range regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(text, -1) {
			code := snippet[1]
			found++
			formatted, err := format.Source([]byte(code))
			if err != nil || string(formatted) != code {
				t.Errorf("%s: gofmt: %v, would make it\n%s", name, err, formatted)
			}
			if strings.HasPrefix(code, "package ") {
				file := filepath.Join(t.TempDir(), "main.go")
				must(t, os.WriteFile(file, []byte(code), 0o600))
				if out, err := exec.Command("go", "vet", file).CombinedOutput(); err != nil {
					t.Errorf("%s: %s\n%s", name, out, code)
				}
				continue
			}
			if !strings.Contains(compiled, flat(code)) {
				t.Errorf("%s: in no file that is compiled:\n%s", name, code)
			}
		}
	}
	if found < 5 {
		t.Fatalf("only %d snippets found", found)
	}
}

// flat removes the indentation, which differs.
func flat(code string) string {
	return regexp.MustCompile(`(?m)^\s+`).ReplaceAllString(code, "")
}

// documents are the repository's Markdown files, by path.
func documents(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for path, text := range repository(t, ".md") {
		all[path] = text
	}
	for _, name := range []string{"README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"} {
		if all[name] == "" {
			t.Errorf("%s is missing", name)
		}
	}
	return all
}

// repository reads the files whose names end like this, in all modules.
func repository(t *testing.T, suffix string) map[string]string {
	t.Helper()
	files := map[string]string{}
	must(t, filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && path != "." && strings.HasPrefix(entry.Name(), "."):
			return filepath.SkipDir
		case entry.IsDir() || !strings.HasSuffix(path, suffix):
			return nil
		}
		text, err := os.ReadFile(path)
		files[filepath.ToSlash(path)] = string(text)
		return err
	}))
	return files
}

// TestLinks shows that what the documents link to within the repository exists, headings
// too, and that all other links are https. It does not follow those.
func TestLinks(t *testing.T) {
	t.Parallel()
	docs := documents(t)
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	for name, text := range docs {
		for _, found := range link.FindAllStringSubmatch(prose(text), -1) {
			target := found[1]
			if strings.Contains(target, ":") {
				if !strings.HasPrefix(target, "https://") {
					t.Errorf("%s: %s is not https", name, target)
				}
				continue
			}
			file, anchor, _ := strings.Cut(target, "#")
			path := filepath.Join(filepath.Dir(name), file)
			if file == "" {
				path = name
			}
			if _, err := os.Stat(path); err != nil {
				t.Errorf("%s: %s: %v", name, target, err)
			}
			if anchor != "" && !slices.Contains(anchors(docs[filepath.ToSlash(path)]), anchor) {
				t.Errorf("%s: %s: there is no such heading", name, target)
			}
		}
	}
}

// prose is a document without its code blocks, which have brackets and # too.
func prose(text string) string {
	return regexp.MustCompile("(?ms)^```.*?^```$").ReplaceAllString(text, "")
}

var heading = regexp.MustCompile(`(?m)^#+ (.*)$`)

// anchors are the names that GitHub gives a document's headings.
func anchors(text string) (names []string) {
	for _, h := range heading.FindAllStringSubmatch(prose(text), -1) {
		name := regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(h[1]), "")
		names = append(names, strings.ReplaceAll(name, " ", "-"))
	}
	return names
}

// TestNamedTestsExist looks up every test that the documents name.
func TestNamedTestsExist(t *testing.T) {
	t.Parallel()
	defined := map[string]bool{}
	for _, code := range repository(t, "_test.go") {
		for _, f := range regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark|Example)\w*)\(`).FindAllStringSubmatch(code, -1) {
			defined[f[1]] = true
		}
	}
	for name, text := range documents(t) {
		for _, test := range regexp.MustCompile(`\b(?:Test|Fuzz|Benchmark|Example)[A-Z]\w*`).FindAllString(text, -1) {
			if !defined[test] {
				t.Errorf("%s: there is no %s", name, test)
			}
		}
	}
}

// TestFiguresNameTheirCommand shows that whoever doubts a figure is told how to measure it:
// in the same section.
func TestFiguresNameTheirCommand(t *testing.T) {
	t.Parallel()
	figure := regexp.MustCompile(`\d\s?(?:µs|ms|s|KB|MB|GB|KiB|MiB|GiB|bytes|×|%)(?:\W|$)`)
	command := regexp.MustCompile("`(?:cd [a-z0-9/]+ && )?go (?:run|test) [^`]+`|(?m)^(?:cd [a-z0-9/]+ && )?go (?:run|test) ")
	docs := documents(t)
	for name, title := range map[string]string{"docs/performance.md": "Performance", "docs/production.md": "Sizing", "docs/proof.md": "Under fault"} {
		found := false
		for _, section := range regexp.MustCompile(`(?m)^##? `).Split(docs[name], -1) {
			heading, text, _ := strings.Cut(section, "\n")
			if heading != title {
				continue
			}
			found = true
			if figure.MatchString(text) && !command.MatchString(text) {
				t.Errorf("%s, %s has figures such as %q, and no command that makes them", name, title, figure.FindString(text))
			}
		}
		if !found {
			t.Errorf("%s has no section %q", name, title)
		}
	}
}

// TestTheREADMEIsShort enough to be read.
func TestTheREADMEIsShort(t *testing.T) {
	t.Parallel()
	readme := documents(t)["README.md"]
	if n := strings.Count(readme, "\n"); n > 200 {
		t.Errorf("it has %d lines", n)
	}
	if n := len(strings.Fields(readme)); n > 2000 {
		t.Errorf("it has %d words", n)
	}
}

// TestNoTestFileIsLong, so that a newcomer finds the test of a promise.
func TestNoTestFileIsLong(t *testing.T) {
	t.Parallel()
	for path, code := range repository(t, "_test.go") {
		if n := strings.Count(code, "\n"); n > 700 {
			t.Errorf("%s has %d lines: what is of another subject gets a file of its own", path, n)
		}
	}
}
