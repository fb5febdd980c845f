package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFigure(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 0.0372: "0.0372", 0.5: "0.5", 1: "1", 2.349: "2.35", 11.8: "11.8", 100: "100", 433.4: "433",
		999.9: "1,000", 1049: "1,050", 41_812: "41,800", 1_234_567: "1,230,000",
	} {
		if got := figure(v); got != want {
			t.Errorf("%v is %q, want %q", v, got, want)
		}
	}
}

// results are read from files as go test and scripts/bench write them.
func TestResults(t *testing.T) {
	folder := t.TempDir()
	for name, text := range map[string]string{
		"docker": "date: 2026-12-01\nkernel: 6.18\nBenchmarkRun/network=a 1 10 ms\nBenchmarkRun/network=b 1 20 ms\n" +
			"BenchmarkRun/network=b 1 40 ms\nBenchmarkRun/network=a 1 30 ms\n",
		"go": "kernel: 6.12\npkg: underlay/ipam\ncpu: Some\nBenchmarkLAN/empty_16/off-2 \t 1 \t 7600 ns/op\t 0.049 pool-MB\t 7816 B/op\n",
	} {
		if err := os.WriteFile(filepath.Join(folder, name+".txt"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r, err := read(folder)
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		`{{median "docker Run/network=a ms"}} of {{count "docker Run/network=a ms"}}`:          "20 of 2",
		`{{quartiles "docker Run/network=b ms"}}`:                                              "25–35",
		`{{ratio "docker Run/network=a ms" "docker Run/network=b ms"}}`:                        "**0.62** (0.50–0.75)",
		`{{scale 0.001 "go LAN/empty_16/off ns/op"}} {{median "go LAN/empty_16/off pool-MB"}}`: "7.6 0.049",
		`{{config "docker kernel"}} {{config "go kernel"}} {{config "go cpu"}}`:                "6.18 6.12 Some",
	} {
		got, err := r.page(text)
		if _, page, _ := strings.Cut(string(got), "\n"); err != nil || page != want {
			t.Errorf("%s is %q, %v, want %q", text, page, err, want)
		}
	}
	for text, want := range map[string]string{
		`{{median "docker Run/network=c ms"}}`:                           `there is no "docker Run/network=c ms": scripts/bench docker measures it`,
		`{{config "net kernel"}}`:                                        `no part says "net kernel"`,
		`{{ratio "docker Run/network=a ms" "go LAN/empty_16/off B/op"}}`: `has 2 measurements, `,
	} {
		if _, err := r.page(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// A page and its plots that were edited by hand are found.
func TestCheck(t *testing.T) {
	docs := t.TempDir()
	if err := os.CopyFS(filepath.Join(docs, "performance"), os.DirFS("../../docs/performance")); err != nil {
		t.Fatal(err)
	}
	if err := report(docs, false); err != nil {
		t.Fatal(err)
	}
	if err := report(docs, true); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"performance.md", "performance/net.svg"} {
		path := filepath.Join(docs, name)
		was, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, append(was, ' '), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := report(docs, true); err == nil || !strings.Contains(err.Error(), "run scripts/bench page") {
			t.Errorf("%s with a space more: %v", name, err)
		}
		if err := os.WriteFile(path, was, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
