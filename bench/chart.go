package main

import (
	"errors"
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// drawn are the contenders that the charts show, each with its color, which can be told
// apart by those who see fewer of them.
var drawn = []struct {
	name  string
	color color.RGBA
	shape draw.GlyphDrawer
}{
	{cached, color.RGBA{0x00, 0x72, 0xb2, 0xff}, draw.TriangleGlyph{}},
	{pipelined, color.RGBA{0x00, 0x9e, 0x73, 0xff}, draw.SquareGlyph{}},
	{limit, color.RGBA{0x80, 0x80, 0x80, 0xff}, draw.CrossGlyph{}},
	{plain, color.RGBA{0xd5, 0x5e, 0x00, 0xff}, draw.CircleGlyph{}},
	{scsStore, color.RGBA{0xcc, 0x79, 0xa7, 0xff}, draw.PlusGlyph{}},
	{theirs, color.RGBA{0x00, 0x00, 0x00, 0xff}, draw.RingGlyph{}},
}

// A chart has a line for each of those drawn, over points that have names.
type chart struct {
	title, x, y string
	steep       bool // so that only a logarithmic axis shows all
	of          func(row) float64
	ticks       plot.ConstantTicks
	lines       [][]row // of each contender that is drawn, a row for each tick or none
}

// draw writes the charts of the reads, on white, so that they can be read on any page.
func (b *bench) draw(dir string) error {
	over := chart{title: "Throughput of reads: sessions of 5 fields", x: "concurrent requests", y: "requests per second", of: row.perSecond}
	for _, n := range atOnce {
		over.add(float64(n), fmt.Sprint(n), func(store string) row { return b.find(read, sizes[0], n, store) })
	}
	cost := chart{title: "Time of a read: one at a time", x: "what the session holds beside 5 fields", y: "µs per request", steep: true,
		of: func(r row) float64 { return us(r.wall()) }}
	for _, s := range sizes {
		at := float64(s.n)
		if s.n == 0 {
			at = 128 // about what 5 fields are; 0 has no place on a logarithmic axis
		}
		cost.add(at, s.name, func(store string) row { return b.find(read, s, 1, store) })
	}
	return errors.Join(over.write(filepath.Join(dir, "concurrency.svg")), cost.write(filepath.Join(dir, "size.svg")))
}

// add adds a point to all lines.
func (c *chart) add(at float64, name string, find func(store string) row) {
	c.ticks = append(c.ticks, plot.Tick{Value: at, Label: name})
	if c.lines == nil {
		c.lines = make([][]row, len(drawn))
	}
	for i, d := range drawn {
		c.lines[i] = append(c.lines[i], find(d.name))
	}
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
	for i, d := range drawn {
		var points plotter.XYs
		for j, r := range c.lines[i] {
			if len(r.samples) > 0 {
				points = append(points, plotter.XY{X: c.ticks[j].Value, Y: c.of(r)})
			}
		}
		line, marks, err := plotter.NewLinePoints(points)
		if err != nil {
			return err
		}
		line.Color, line.Width = d.color, vg.Points(2)
		marks.Color, marks.Shape, marks.Radius = d.color, d.shape, vg.Points(3)
		p.Add(line, marks)
		legend.Add(d.name, line, marks)
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
	for _, line := range c.lines {
		for _, r := range line {
			if len(r.samples) > 0 {
				least = min(least, c.of(r))
			}
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
