package main

import (
	"bytes"
	"fmt"
	"image/color"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// plots are the pictures of the page, by their names.
var plots = map[string]func(results) ([]byte, error){"run": plotRun, "calls": plotCalls, "net": plotNet}

var (
	blue = color.RGBA{0x1f, 0x6f, 0xb4, 0xff}
	grey = color.RGBA{0x8a, 0x8a, 0x8a, 0xff}
)

// svg draws a plot whose rows have names.
func svg(p *plot.Plot, rows []string) ([]byte, error) {
	p.NominalY(rows...)
	p.Y.Min, p.Y.Max = -0.7, float64(len(rows))-0.3
	p.BackgroundColor = color.White
	p.X.Padding, p.Y.Padding = 0, vg.Points(24) // a reader's font may be wider
	sans := font.Font{Typeface: "Liberation", Variant: "Sans", Size: 11}
	p.X.Label.TextStyle.Font, p.X.Tick.Label.Font, p.Y.Tick.Label.Font = sans, sans, sans
	w, err := p.WriterTo(20*vg.Centimeter, vg.Length(len(rows)+4)*0.65*vg.Centimeter, "svg")
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if _, err := w.WriteTo(&b); err != nil {
		return nil, err
	}
	return bytes.ReplaceAll(b.Bytes(), []byte("font-family:Liberation Sans"), []byte("font-family:Liberation Sans,Arial,Helvetica,sans-serif")), nil
}

// plotRun has a box of the quartiles of docker run for each network.
func plotRun(r results) ([]byte, error) {
	p := plot.New()
	p.X.Label.Text = "milliseconds"
	p.X.Min = 0
	var rows []string
	for _, network := range []struct{ name, words string }{
		{"none", "none"}, {"bridge", "bridge"}, {"builtin", "macvlan, built in"}, {"underlay", "macvlan, underlay"},
	} {
		for _, endpoints := range []int{500, 0} {
			v, err := r.of(fmt.Sprintf("docker DockerRun/kind=macvlan/endpoints=%d/network=%s ms", endpoints, network.name))
			if err != nil {
				return nil, err
			}
			box, err := plotter.NewBoxPlot(vg.Points(14), float64(len(rows)), plotter.Values(v))
			if err != nil {
				return nil, err
			}
			box.Horizontal = true
			box.FillColor = grey
			if network.name == "underlay" {
				box.FillColor = blue
			}
			p.Add(box)
			rows = append(rows, fmt.Sprintf("%s, beside %d", network.words, endpoints))
		}
	}
	return svg(p, rows)
}

// plotCalls has a bar of the median of each call, with its 99th percentile.
func plotCalls(r results) ([]byte, error) {
	p := plot.New()
	p.X.Label.Text = "milliseconds"
	p.X.Min = 0
	calls := []string{
		"DeleteNetwork", "ReleasePool", "ReleaseAddress", "DeleteEndpoint", "Leave", "EndpointOperInfo", "Join", "CreateEndpoint",
		"RequestAddress", "CreateNetwork", "RequestPool",
	}
	var medians plotter.Values
	var slow struct {
		plotter.XYs
		plotter.XErrors
	}
	for k, call := range calls {
		at := "lan Calls/kernel=real/endpoints=1000 " + call
		m, err := r.of(at + "-median-ms")
		if err != nil {
			return nil, err
		}
		s, err := r.of(at + "-p99-ms")
		if err != nil {
			return nil, err
		}
		medians = append(medians, m[0])
		slow.XYs = append(slow.XYs, plotter.XY{X: m[0], Y: float64(k)})
		slow.XErrors = append(slow.XErrors, struct{ Low, High float64 }{0, s[0] - m[0]})
	}
	bars, err := plotter.NewBarChart(medians, vg.Points(12))
	if err != nil {
		return nil, err
	}
	bars.Horizontal, bars.Color, bars.LineStyle.Width = true, blue, 0
	lines, err := plotter.NewXErrorBars(slow)
	if err != nil {
		return nil, err
	}
	p.Add(bars, lines)
	return svg(p, calls)
}

// plotNet has the ratios of paths, with their intervals, and a line at 1.
func plotNet(r results) ([]byte, error) {
	p := plot.New()
	p.X.Label.Text = "ratio"
	var rows []string
	var points struct {
		plotter.XYs
		plotter.XErrors
	}
	for _, pair := range []struct{ part, a, b, words string }{
		{"net-vm", "ipvlan", "published", "ipvlan l2 / published port (VM)"},
		{"net-vm", "ipvlan", "nic", "ipvlan l2 / NIC (VM)"},
		{"net", "shim", "bridge", "host_access / bridge, from the host"},
		{"net", "macvlan", "published", "macvlan / published port"},
		{"net", "macvlan", "nic", "macvlan / NIC"},
	} {
		for _, unit := range []struct{ name, words string }{
			{"trips-round/s", "round trips"}, {"from-Gbit/s", "to the left"}, {"to-Gbit/s", "to the right"},
		} {
			q, err := r.ratios(pair.part+" Net/path="+pair.a+" "+unit.name, pair.part+" Net/path="+pair.b+" "+unit.name)
			if err != nil {
				return nil, err
			}
			s := summary(q)
			points.XYs = append(points.XYs, plotter.XY{X: s.Center, Y: float64(len(rows))})
			points.XErrors = append(points.XErrors, struct{ Low, High float64 }{s.Center - s.Lo, s.Hi - s.Center})
			rows = append(rows, pair.words+", "+unit.words)
		}
	}
	dots, err := plotter.NewScatter(points.XYs)
	if err != nil {
		return nil, err
	}
	dots.Color, dots.Radius, dots.Shape = blue, vg.Points(3), draw.CircleGlyph{}
	bars, err := plotter.NewXErrorBars(points)
	if err != nil {
		return nil, err
	}
	one, err := plotter.NewLine(plotter.XYs{{X: 1, Y: -0.7}, {X: 1, Y: float64(len(rows)) - 0.3}})
	if err != nil {
		return nil, err
	}
	one.Color = grey
	p.Add(one, bars, dots)
	return svg(p, rows)
}
