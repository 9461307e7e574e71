package redistore

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// quotes finds what the documents take from bench/RESULTS.md: what stands under a
// heading, or the table whose title begins so.
var quotes = regexp.MustCompile(`(?s)<!-- bench/RESULTS\.md: (.+?) -->\n\n(.*?)\n\n`)

// TestFiguresAreTheResults shows that documents and bench/RESULTS.md cannot disagree. To take
// the figures over, after a new run of the benchmark:
//
//	go test -run TestFiguresAreTheResults . -update
func TestFiguresAreTheResults(t *testing.T) {
	text, err := os.ReadFile("bench/RESULTS.md")
	must(t, err)
	results, found := string(text), 0
	for path, doc := range documents(t) {
		updated := quotes.ReplaceAllStringFunc(doc, func(quote string) string {
			found++
			parts := quotes.FindStringSubmatch(quote)
			figures := result(t, results, parts[1])
			if figures != parts[2] && !*rewrite {
				t.Errorf("%s: %s is not as in bench/RESULTS.md: go test -run TestFiguresAreTheResults . -update", path, parts[1])
			}
			return "<!-- bench/RESULTS.md: " + parts[1] + " -->\n\n" + figures + "\n\n"
		})
		if *rewrite && updated != doc {
			must(t, os.WriteFile(path, []byte(updated), 0o644))
		}
	}
	if found < 4 {
		t.Errorf("only %d quotes found", found)
	}
}

// result is what stands under a heading of the results, or under a table's title, without
// the padding.
func result(t *testing.T, results, title string) string {
	t.Helper()
	title = regexp.QuoteMeta(title)
	at := regexp.MustCompile(`(?m)^(?:# ` + title + `|\*\*` + title + `.*\*\*)\n\n`).FindStringIndex(results)
	if at == nil {
		t.Fatalf("bench/RESULTS.md has no %q", title)
	}
	figures, _, _ := strings.Cut(results[at[1]:], "\n\n")
	figures = regexp.MustCompile(`-+:`).ReplaceAllString(figures, "---")
	return strings.TrimSpace(regexp.MustCompile(` +`).ReplaceAllString(figures, " "))
}
