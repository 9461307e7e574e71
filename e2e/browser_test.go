package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"github.com/redistore/redistore/e2e/topology"
)

// TestTheExampleInABrowser drives the example in Chromium, with its own Redis and with
// real ones. It takes screenshots, which a folder of yours gets if you name one. The
// README's is made by
//
//	SCREENSHOTS=/tmp go test -count=1 -run TestTheExampleInABrowser/memory . && cp /tmp/all-desktop-light.png ../example/screenshot.png
func TestTheExampleInABrowser(t *testing.T) {
	open := startBrowser(t)
	example := filepath.Join(t.TempDir(), "example")
	build := exec.Command("go", "build", "-o", example, "./example")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for name, args := range map[string]func(t *testing.T) []string{
		"memory": func(t *testing.T) []string { return nil },
		"server": func(t *testing.T) []string { return []string{"-redis", "redis://" + topology.Start(t).Addr} },
		"cluster": func(t *testing.T) []string {
			return []string{"-cluster", "-redis", "redis://" + topology.Cluster(t, 3, 0)[1].Addr}
		},
		"sentinel": func(t *testing.T) []string {
			_, sentinels := topology.Sentinels(t, 1)
			return []string{"-redis", "redis://" + sentinels[0].Addr + "?master_name=" + topology.MasterName}
		},
	} {
		t.Run(name, func(t *testing.T) {
			look := func(tab, string) {} // the pages are the same
			if name == "memory" {
				axe := loadAxe(t)
				look = func(page tab, what string) { page.examine(axe, what) }
			}
			tour(t, open, look, startExample(t, example, args(t)...))
		})
	}
}

func tour(t *testing.T, open func(*testing.T, string) tab, look func(tab, string), url string) {
	here := open(t, url)

	seen := map[string]int{}
	for range 6 {
		here.click(`#servers a.button`) // Reload
		seen[here.text(`[aria-current] b`)]++
	}
	equal(t, "pages by server", seen, map[string]int{"Server 1": 2, "Server 2": 2, "Server 3": 2})
	here.has(`#session`, "visit number 7")

	here.click(`button[value=bread]`)
	before := here.text(`#session p code`)
	here.login("Ann")
	here.has(`.flashes`, "Hello, Ann!", "a new ID")
	here.has(`#session`, "logged in as Ann", "Before the login it was "+before, "bread")
	if id := here.text(`#session p code`); id == before {
		t.Errorf("the session ID is still %s", id)
	}
	here.click(`button[value=tea]`)

	here.click(`#redis a.button`)
	here.has(`#session`, "This look was not counted")
	here.has(`#redis`, "free", "[bread tea]")
	here.click(`#redis a.button`) // which is on the same page, and loads it

	for n := 1; n <= 2; n++ {
		here.click(fmt.Sprintf(`form[action="/servers/%d"] button`, n))
		here.has(`#session`, "logged in as Ann", "bread, tea.")
		equal(t, "the server that answers", here.text(`[aria-current] b`) != fmt.Sprintf("Server %d", n), true)
	}
	here.click(`form[action="/servers/3"] button`)
	here.has(`.problem`, "All three servers are stopped")
	for n := 1; n <= 3; n++ {
		here.click(fmt.Sprintf(`form[action="/servers/%d"] button`, n))
		here.has(`#session`, "logged in as Ann", "bread, tea.")
	}

	here.click(`#race button`)
	results := regexp.MustCompile(`(\d+) kept, (\d+) lost, (\d+) refused`).FindAllStringSubmatch(here.text(`#race`), -1)
	if len(results) != 2 {
		t.Fatalf("the race has no two results: %s", here.text(`#race`))
	}
	var kept, lost int
	fmt.Sscan(results[0][1], &kept)
	fmt.Sscan(results[0][2], &lost)
	if t.Log("without the lock:", results[0][0]); kept+lost != 60 || kept == 0 {
		t.Errorf("without the lock: %s of 60", results[0][0])
	}
	equal(t, "with the lock", results[1][0], "60 kept, 0 lost, 0 refused")

	here.click(`#logout-race button`)
	here.has(`#logout-race`, "Ann is logged in again", "nobody is logged in")

	here.click(`#login-race button`)
	here.has(`#login-race`, "nobody is logged in", "Ann is logged in", "5 were refused")

	there := open(t, url)
	there.login("Ann")
	there.has(`#logins`, "this browser", "Log out there")
	here.click(`#servers a.button`)
	look(here, "all")
	here.click(`#logins li button`) // Log out there
	here.has(`.flashes`, "logged out Chrome on Linux")
	there.click(`#servers a.button`)
	there.has(`#session`, "Your name", "visit number 1")

	there.login("Ann")
	here.click(`form[action="/logout-elsewhere"] button`)
	here.has(`.flashes`, "logged you out everywhere else: 1")
	there.click(`#servers a.button`)
	there.has(`#session`, "Your name")
	here.has(`#session`, "logged in as Ann")

	if here.is(`form[action="/redis"]`) {
		here.click(`form[action="/redis"] button`)
		here.has(`.problem`, "Redis cannot be reached")
		look(here, "lost")
		here.click(`form[action="/redis"] button`)
		here.has(`#session`, "logged in as Ann", "bread, tea.")
	}
	here.click(`form[action="/logout"] button`)
	here.has(`#session`, "Your name", "visit number 1")
	look(here, "anonymous")
}

// chromium is the program to start.
func chromium(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("CI") != "" {
		t.Fatal("neither chromium nor google-chrome is on the PATH; CI tests the real thing")
	}
	t.Skip("neither chromium nor google-chrome is on the PATH; to run this test: apt-get install chromium")
	return ""
}

// startExample starts the example on a free port and returns its address.
func startExample(t *testing.T, program string, args ...string) (url string) {
	t.Helper()
	cmd := exec.Command(program, append(args, "-addr", "localhost:0")...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the example ended with %v", err)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	url = regexp.MustCompile(`http://\S+`).FindString(line)
	if url == "" {
		t.Fatalf("no address in %q", line)
	}
	return url
}

type tab struct {
	t   *testing.T
	ctx context.Context
}

// startBrowser starts one that ends with the test. Each of its tabs is as good as a
// browser of its own: they do not share their cookies.
func startBrowser(t *testing.T) (open func(t *testing.T, url string) tab) {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(chromium(t)),
		chromedp.UserDataDir(t.TempDir()),
		chromedp.NoSandbox, // which Chromium needs to run as root, as CI does
		chromedp.DisableGPU,
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-quic", true),
	)
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	must(t, chromedp.Do(ctx))
	return func(t *testing.T, url string) tab {
		t.Helper()
		ctx, cancel := chromedp.NewContext(ctx, chromedp.WithNewBrowserContext())
		t.Cleanup(cancel)
		ctx, cancel = context.WithTimeout(ctx, 2*time.Minute)
		t.Cleanup(cancel)
		b := tab{t, ctx}
		b.do("open "+url, chromedp.EmulateViewport(1280, 900), chromedp.Navigate(url))
		return b
	}
}

func (b tab) do(what string, steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, steps...); err != nil {
		b.t.Fatalf("%s: %v", what, err)
	}
}

// click returns when the next page is there.
func (b tab) click(sel string) {
	b.t.Helper()
	if _, err := chromedp.RunResponse(b.ctx, chromedp.Click(chromedp.CSS(sel))); err != nil {
		b.t.Fatalf("click %s: %v\n%s", sel, err, b.text("body"))
	}
}

func (b tab) login(name string) {
	b.t.Helper()
	b.do("type a name", chromedp.SendKeys(chromedp.CSS(`#name`), name))
	b.click(`form[action="/login"] button`)
}

func (b tab) text(sel string) string {
	b.t.Helper()
	text, err := chromedp.Run(b.ctx, chromedp.Evaluate[string](fmt.Sprintf(`document.querySelector(%q)?.innerText ?? "not on the page"`, sel)))
	if err != nil {
		b.t.Fatalf("read %s: %v", sel, err)
	}
	return text
}

func (b tab) is(sel string) bool { return b.text(sel) != "not on the page" }

func (b tab) has(sel string, want ...string) {
	b.t.Helper()
	text := b.text(sel)
	for _, w := range want {
		if !strings.Contains(text, w) {
			b.t.Errorf("%s: %q is not in %q", sel, w, text)
		}
	}
}

// examine looks at the page as it is, large and small, light and dark. Nothing on it may be
// wider than the screen, and axe may find nothing. It takes screenshots.
func (b tab) examine(axe, name string) {
	b.t.Helper()
	for screen, size := range map[string][2]int64{"desktop": {1280, 900}, "phone": {390, 844}} {
		for _, scheme := range []string{"light", "dark"} {
			feature := emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}}
			_, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, feature)
			must(b.t, err)
			b.do("resize", chromedp.EmulateViewport(size[0], size[1]))
			width, err := chromedp.Run(b.ctx, chromedp.Evaluate[int64](`document.documentElement.scrollWidth`))
			must(b.t, err)
			if width > size[0] {
				b.t.Errorf("%s: the page is %d pixels wide", screen, width)
			}
			b.accessible(axe, fmt.Sprintf("%s, %s, %s", name, screen, scheme))
			shot, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
			must(b.t, err)
			if dir := os.Getenv("SCREENSHOTS"); dir != "" {
				file := filepath.Join(dir, fmt.Sprintf("%s-%s-%s.png", name, screen, scheme))
				must(b.t, os.WriteFile(file, small(b.t, shot), 0o644))
			}
		}
	}
	b.do("resize", chromedp.EmulateViewport(1280, 900))
}

// small is the picture in its 256 most frequent colours, a third of the size.
func small(t *testing.T, shot []byte) []byte {
	t.Helper()
	from, err := png.Decode(bytes.NewReader(shot))
	must(t, err)
	bounds, frequency := from.Bounds(), map[color.Color]int{}
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			frequency[from.At(x, y)]++
		}
	}
	var palette color.Palette = slices.SortedFunc(maps.Keys(frequency), func(a, b color.Color) int {
		return frequency[b] - frequency[a]
	})
	palette = palette[:min(256, len(palette))]
	index := map[color.Color]uint8{}
	for c := range frequency {
		index[c] = uint8(palette.Index(c))
	}
	to := image.NewPaletted(bounds, palette)
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			to.SetColorIndex(x, y, index[from.At(x, y)])
		}
	}
	var out bytes.Buffer
	must(t, (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&out, to))
	return out.Bytes()
}
