package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/perf/benchfmt"
	"golang.org/x/perf/benchmath"
)

// results are the measurements of all parts, in their order, by part, name and unit
// ("docker DockerRun/kind=macvlan/endpoints=0/network=underlay ms"), and what they
// were measured on ("docker kernel").
type results struct {
	values  map[string][]float64
	configs map[string]string
}

// read reads all results of a folder.
func read(folder string) (r results, err error) {
	r = results{map[string][]float64{}, map[string]string{}}
	paths, err := filepath.Glob(filepath.Join(folder, "*.txt"))
	if err != nil {
		return r, err
	}
	for _, path := range paths {
		part := strings.TrimSuffix(filepath.Base(path), ".txt")
		file, err := os.Open(path)
		if err != nil {
			return r, err
		}
		defer file.Close()
		in := benchfmt.NewReader(file, path)
		for in.Scan() {
			switch rec := in.Result().(type) {
			case *benchfmt.SyntaxError:
				return r, rec
			case *benchfmt.Result:
				base, rest := rec.Name.Parts()
				name := string(base)
				for _, p := range rest {
					if p[0] != '-' { // GOMAXPROCS
						name += string(p)
					}
				}
				for _, v := range rec.Values {
					value, unit := v.Value, v.Unit
					if v.OrigUnit != "" {
						value, unit = v.OrigValue, v.OrigUnit
					}
					key := part + " " + name + " " + unit
					r.values[key] = append(r.values[key], value)
				}
				for _, c := range rec.Config {
					if c.File {
						r.configs[part+" "+c.Key] = string(c.Value)
					}
				}
			}
		}
		if err := in.Err(); err != nil {
			return r, err
		}
	}
	return r, nil
}

// of returns the measurements of "PART NAME UNIT".
func (r results) of(what string) ([]float64, error) {
	v := r.values[what]
	if len(v) == 0 {
		part, _, _ := strings.Cut(what, " ")
		return nil, fmt.Errorf("there is no %q: scripts/bench %s measures it", what, part)
	}
	return v, nil
}

func (r results) config(what string) (string, error) {
	c, ok := r.configs[what]
	if !ok {
		return "", fmt.Errorf("no part says %q", what)
	}
	return c, nil
}

func (r results) count(what string) (int, error) {
	v, err := r.of(what)
	return len(v), err
}

// summary is the median of values, and the bounds of its 95 % interval; where they are
// too few for one, of all of them.
func summary(values []float64) benchmath.Summary {
	s := benchmath.AssumeNothing.Summary(benchmath.NewSample(slices.Clone(values), &benchmath.DefaultThresholds), 0.95)
	if math.IsInf(s.Lo, 0) || math.IsInf(s.Hi, 0) {
		s.Lo, s.Hi = slices.Min(values), slices.Max(values)
	}
	return s
}

func (r results) median(what string) (string, error) { return r.scale(1, what) }

// scale is the median in another unit.
func (r results) scale(by float64, what string) (string, error) {
	v, err := r.of(what)
	if err != nil {
		return "", err
	}
	return figure(summary(v).Center * by), nil
}

func (r results) quartiles(what string) (string, error) {
	v, err := r.of(what)
	if err != nil {
		return "", err
	}
	return figure(quantile(v, 0.25)) + "–" + figure(quantile(v, 0.75)), nil
}

// quantile is a part's value, between two in proportion.
func quantile(values []float64, part float64) float64 {
	v := slices.Sorted(slices.Values(values))
	at := part * float64(len(v)-1)
	k := min(int(at), len(v)-2)
	if k < 0 {
		return v[0]
	}
	return v[k] + (at-float64(k))*(v[k+1]-v[k])
}

// ratios are those of the measurements of two things, turn by turn.
func (r results) ratios(a, b string) ([]float64, error) {
	v, err := r.of(a)
	if err != nil {
		return nil, err
	}
	w, err := r.of(b)
	if err != nil {
		return nil, err
	}
	if len(v) != len(w) {
		return nil, fmt.Errorf("%q has %d measurements, %q has %d", a, len(v), b, len(w))
	}
	q := make([]float64, len(v))
	for k := range v {
		q[k] = v[k] / w[k]
	}
	return q, nil
}

// ratio is the median of the ratios turn by turn, and its 95 % interval.
func (r results) ratio(a, b string) (string, error) {
	q, err := r.ratios(a, b)
	if err != nil {
		return "", err
	}
	s := summary(q)
	return fmt.Sprintf("**%.2f** (%.2f–%.2f)", s.Center, s.Lo, s.Hi), nil
}

// figure is a number of three digits that count, with commas.
func figure(v float64) string {
	if v == 0 {
		return "0"
	}
	digits := 2 - int(math.Floor(math.Log10(math.Abs(v))))
	unit := math.Pow10(-digits)
	text := strconv.FormatFloat(math.Round(v/unit)*unit, 'f', max(digits, 0), 64)
	if strings.Contains(text, ".") {
		return strings.TrimRight(strings.TrimRight(text, "0"), ".")
	}
	for at := len(text) - 3; at > 0; at -= 3 {
		text = text[:at] + "," + text[at:]
	}
	return text
}
