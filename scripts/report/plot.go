package main

import (
	"bytes"
	"fmt"
	"image/color"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
)

// plots are the pictures of the page, by their names.
var plots = map[string]func(results) ([]byte, error){"run": plotRun, "calls": plotCalls, "net": plotNet}

var (
	blue = color.RGBA{0x1f, 0x6f, 0xb4, 0xff}
	grey = color.RGBA{0x8a, 0x8a, 0x8a, 0xff}
)

func svg(p *plot.Plot, height vg.Length) ([]byte, error) {
	p.BackgroundColor = color.White
	w, err := p.WriterTo(18*vg.Centimeter, height, "svg")
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	_, err = w.WriteTo(&b)
	return b.Bytes(), err
}

// plotRun has a box of the quartiles of docker run for each network.
func plotRun(r results) ([]byte, error) {
	p := plot.New()
	p.X.Label.Text = "docker run --rm … true, milliseconds: the box has the middle half, the line is the median"
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
	p.NominalY(rows...)
	return svg(p, 9*vg.Centimeter)
}

// plotCalls has a bar of the median of each call, with its 99th percentile.
func plotCalls(r results) ([]byte, error) {
	p := plot.New()
	p.X.Label.Text = "milliseconds: the bar is the median, the line ends at the 99th of 100"
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
	p.NominalY(calls...)
	return svg(p, 9*vg.Centimeter)
}

// plotNet has the ratios of paths, with their intervals, and a line at 1.
func plotNet(r results) ([]byte, error) {
	p := plot.New()
	p.X.Label.Text = "ratio of the same round: median and its 95 % interval"
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
	dots.Color, dots.Radius = blue, vg.Points(3)
	bars, err := plotter.NewXErrorBars(points)
	if err != nil {
		return nil, err
	}
	one, err := plotter.NewLine(plotter.XYs{{X: 1, Y: -0.5}, {X: 1, Y: float64(len(rows)) - 0.5}})
	if err != nil {
		return nil, err
	}
	one.Color = grey
	p.Add(one, bars, dots)
	p.NominalY(rows...)
	return svg(p, 11*vg.Centimeter)
}
