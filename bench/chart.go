package main

import (
	"errors"
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// A style can be told from the others by those who see fewer colors, too.
type style struct {
	color color.RGBA
	shape draw.GlyphDrawer
}

var (
	blue   = style{color.RGBA{0x00, 0x72, 0xb2, 0xff}, draw.TriangleGlyph{}}
	green  = style{color.RGBA{0x00, 0x9e, 0x73, 0xff}, draw.SquareGlyph{}}
	gray   = style{color.RGBA{0x80, 0x80, 0x80, 0xff}, draw.CrossGlyph{}}
	orange = style{color.RGBA{0xd5, 0x5e, 0x00, 0xff}, draw.CircleGlyph{}} // what most readers will use
	pink   = style{color.RGBA{0xcc, 0x79, 0xa7, 0xff}, draw.PlusGlyph{}}
	black  = style{color.RGBA{0x00, 0x00, 0x00, 0xff}, draw.RingGlyph{}}
)

type chart struct {
	title, x, y string
	steep       bool // so that only a logarithmic axis shows all
	ticks       plot.ConstantTicks
	lines       []line
}

type line struct {
	name string
	style
	points plotter.XYs
}

// draw draws what was measured, on white, so that it can be read on any page.
func (b *bench) draw(dir string) error {
	var failed error
	for file, c := range map[string]chart{
		"concurrency.svg": b.readsChart(), "size.svg": b.sizesChart(), "processes.svg": b.waitsChart(),
		"sections.svg": b.scriptsChart(), "cpu.svg": b.cpuChart(),
	} {
		if len(c.lines) > 0 {
			failed = errors.Join(failed, c.write(filepath.Join(dir, file)))
		}
	}
	return failed
}

// line adds one that has a point for each tick, or none.
func (c *chart) line(name string, s style, at func(tick float64) (y float64, measured bool)) {
	l := line{name: name, style: s}
	for _, tick := range c.ticks {
		if y, measured := at(tick.Value); measured {
			l.points = append(l.points, plotter.XY{X: tick.Value, Y: y})
		}
	}
	if len(l.points) > 0 {
		c.lines = append(c.lines, l)
	}
}

// stores are those that the charts of the reads show.
var stores = []struct {
	name  string
	style style
}{{cached, blue}, {pipelined, green}, {limit, gray}, {plain, orange}, {scsStore, pink}, {theirs, black}}

func (b *bench) readsChart() chart {
	c := chart{title: "Throughput of reads: sessions of 5 fields", x: "concurrent requests", y: "requests per second"}
	c.counts(atOnce)
	for _, s := range stores {
		c.line(s.name, s.style, func(n float64) (float64, bool) {
			r := b.find(read, sizes[0], int(n), s.name)
			return r.perSecond(), len(r.samples) > 0
		})
	}
	return c
}

func (c *chart) counts(all []int) {
	for _, n := range all {
		c.ticks = append(c.ticks, plot.Tick{Value: float64(n), Label: fmt.Sprint(n)})
	}
}

// bytesOf is where a size stands on an axis: 5 fields are about 128 bytes, and 0 has no place
// on a logarithmic one.
func bytesOf(s size) float64 { return max(128, float64(s.n)) }

func (c *chart) sizes(all []size) func(tick float64) size {
	for _, s := range all {
		c.ticks = append(c.ticks, plot.Tick{Value: bytesOf(s), Label: s.name})
	}
	return func(tick float64) size {
		return all[slices.IndexFunc(all, func(s size) bool { return bytesOf(s) == tick })]
	}
}

func (b *bench) sizesChart() chart {
	c := chart{title: "Time of a read: one at a time", x: "what the session holds beside 5 fields", y: "µs per request", steep: true}
	at := c.sizes(sizes)
	for _, s := range stores {
		c.line(s.name, s.style, func(n float64) (float64, bool) {
			r := b.find(read, at(n), 1, s.name)
			return us(r.wall()), len(r.samples) > 0
		})
	}
	return c
}

// lockStyles are those of the locks that the charts show.
var lockStyles = []struct {
	name  string
	style style
}{{locking, orange}, {redsyncDefaults, pink}, {redsyncLong, green}, {redislockLong, blue}}

// orderOf finds what was measured without a fault, with one caller in each process.
func (b *bench) orderOf(store string, processes int, hold time.Duration) (orderRow, bool) {
	i := slices.IndexFunc(b.orders, func(r orderRow) bool {
		return r.store == store && r.processes == processes && r.hold == hold && r.callers == 1 && r.fault == ""
	})
	if i < 0 {
		return orderRow{}, false
	}
	return b.orders[i], true
}

func (b *bench) waitsChart() chart {
	hold := orderHolds[len(orderHolds)/2]
	c := chart{title: fmt.Sprintf("Longest wait: processes that want one session, sections of %v", hold), x: "processes", y: "ms", steep: true}
	c.counts(orderProcesses)
	for _, l := range lockStyles {
		c.line(l.name, l.style, func(n float64) (float64, bool) {
			r, found := b.orderOf(l.name, int(n), hold)
			return ms(r.longest), found
		})
	}
	c.line("perfect order", gray, func(n float64) (float64, bool) {
		r, found := b.orderOf(locking, int(n), hold)
		return ms(r.longest) / r.toPerfect(b.roundTrip[hold]), found
	})
	return c
}

func (b *bench) scriptsChart() chart {
	processes := orderProcesses[len(orderProcesses)/2]
	c := chart{title: fmt.Sprintf("Scripts for each section: %d processes that want one session", processes), x: "length of a section", y: "scripts", steep: true}
	for _, hold := range orderHolds {
		c.ticks = append(c.ticks, plot.Tick{Value: ms(hold), Label: hold.String()})
	}
	for _, l := range lockStyles {
		c.line(l.name, l.style, func(n float64) (float64, bool) {
			r, found := b.orderOf(l.name, processes, time.Duration(n*float64(time.Millisecond)))
			return r.scripts, found
		})
	}
	return c
}

func (b *bench) cpuChart() chart {
	c := chart{title: "CPU time of Redis for a read and a save", x: "what the session holds beside 5 fields", y: "µs", steep: true}
	at := c.sizes(largeSizes)
	for _, l := range []struct {
		name  string
		style style
		of    func(largeRow) []float64
	}{{"GET and SET XX", gray, func(r largeRow) []float64 { return r.plain }}, {locking, orange, func(r largeRow) []float64 { return r.locked }}} {
		c.line(l.name, l.style, func(n float64) (float64, bool) {
			i := slices.IndexFunc(b.larger, func(r largeRow) bool { return r.size == at(n) })
			if i < 0 {
				return 0, false
			}
			return us(time.Duration(median(l.of(b.larger[i])))), true
		})
	}
	return c
}

// write draws it, the names of the lines on the right, and the command and the date below.
func (c *chart) write(file string) error {
	plot.DefaultFont = font.Font{Typeface: "Liberation", Variant: "Sans"}
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = c.title, c.x, c.y
	p.Title.TextStyle.Font.Size, p.Title.Padding = vg.Points(15), vg.Points(10)
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, c.ticks
	p.X.Padding, p.Y.Padding = vg.Points(8), vg.Points(8)
	legend := plot.NewLegend()
	legend.Top, legend.Left, legend.ThumbnailWidth, legend.Padding = true, true, vg.Points(24), vg.Points(4)
	grid := plotter.NewGrid()
	grid.Vertical.Width, grid.Horizontal.Color = 0, color.Gray{0xdd}
	p.Add(grid)
	for _, l := range c.lines {
		path, marks, err := plotter.NewLinePoints(l.points)
		if err != nil {
			return err
		}
		path.Color, path.Width = l.color, vg.Points(2)
		marks.Color, marks.Shape, marks.Radius = l.color, l.shape, vg.Points(3)
		p.Add(path, marks)
		legend.Add(l.name, path, marks)
	}
	if p.Y.Min, p.Y.Tick.Marker = 0, plot.TickerFunc(evenly); c.steep {
		p.Y.Min, p.Y.Max = math.Pow(10, math.Floor(math.Log10(lowest(c)))), p.Y.Max*1.2
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.TickerFunc(byDecades)
	}

	svg := vgsvg.New(9*vg.Inch, 5*vg.Inch)
	all := draw.New(svg)
	const below, beside = 24, 190
	p.Draw(draw.Crop(all, 8, -beside, below, -8))
	legend.Draw(draw.Crop(all, all.Size().X-beside+8, 0, 0, -40))
	caption := p.X.Label.TextStyle
	caption.Font.Size, caption.Color, caption.XAlign = vg.Points(9), color.Gray{0x55}, text.XLeft
	all.FillText(caption, vg.Point{X: 8, Y: 12}, command()+", "+time.Now().Format(time.DateOnly))
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = svg.WriteTo(f)
	return errors.Join(err, f.Close())
}

func lowest(c *chart) float64 {
	least := math.Inf(1)
	for _, l := range c.lines {
		for _, p := range l.points {
			least = min(least, p.Y)
		}
	}
	return least
}

// evenly are about six ticks from 0 on, at 1, 2 or 5 times a power of ten.
func evenly(_, high float64) (all []plot.Tick) {
	step := math.Pow(10, math.Floor(math.Log10(high/2)))
	for _, n := range []float64{5, 2, 1} {
		if high/(step*n) >= 4 {
			step *= n
			break
		}
	}
	for at := 0.0; at <= high; at += step {
		all = append(all, plot.Tick{Value: at, Label: fmt.Sprintf("%.0f", at)})
	}
	return all
}

// byDecades are the ticks 1, 2, 5, 10 and so on.
func byDecades(low, high float64) (all []plot.Tick) {
	for ten := 1.0; ten <= high; ten *= 10 {
		for _, n := range []float64{1, 2, 5} {
			if at := n * ten; at >= low && at <= high {
				all = append(all, plot.Tick{Value: at, Label: fmt.Sprintf("%.0f", at)})
			}
		}
	}
	return all
}
