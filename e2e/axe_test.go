package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/chromedp/chromedp"
)

// axe looks for what keeps people out of a page: contrast, labels, landmarks, the sizes of
// targets (WCAG 2.2, A and AA, and axe's best practices).
const axe = "axe-core@4.14.1" // of npm

// loadAxe returns the script.
func loadAxe(t *testing.T) string {
	t.Helper()
	npm, err := exec.LookPath("npm")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("npm is not on the PATH; CI tests the real thing")
		}
		t.Skip("npm is not on the PATH; to run this test: apt-get install npm")
	}
	dir := t.TempDir()
	cmd := exec.Command(npm, "install", "--prefix", dir, "--no-save", "--no-audit", "--no-fund", "--ignore-scripts", axe)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	script, err := os.ReadFile(filepath.Join(dir, "node_modules", "axe-core", "axe.min.js"))
	must(t, err)
	return string(script)
}

// accessible shows that axe finds nothing wrong with the page as it is.
func (b tab) accessible(axe, what string) {
	b.t.Helper()
	b.do("load axe", chromedp.Evaluate[chromedp.Void](axe))
	found, err := chromedp.Run(b.ctx, chromedp.Evaluate[result](`axe.run()`, chromedp.EvalAwaitPromise))
	must(b.t, err)
	if len(found.Passes) < 20 {
		b.t.Errorf("%s: axe looked for %d things: this shows nothing", what, len(found.Passes))
	}
	for _, v := range found.Violations {
		for _, n := range v.Nodes {
			b.t.Errorf("%s: %s, %s: %s\n%s\n%s", what, v.Impact, v.ID, v.Help, n.HTML, n.FailureSummary)
		}
	}
}

// A result is axe's.
type result struct {
	Passes     []struct{ ID string }
	Violations []struct {
		ID, Impact, Help string
		Nodes            []struct{ HTML, FailureSummary string }
	}
}
