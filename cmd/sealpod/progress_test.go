package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/imagepull"
)

func TestProgressLine(t *testing.T) {
	tests := map[string]struct {
		s         imagepull.Status
		bar, line string
	}{
		"before the layers": {
			imagepull.Status{Phase: imagepull.PhasePolicy, Elapsed: 1.26}, "[..........]", "policy   1.3s",
		},
		"in the middle": {
			imagepull.Status{
				Phase: imagepull.PhaseLayers, FetchedBytes: 1_500_000, TotalBytes: 3_000_000, LayersDone: 1, Layers: 4, Elapsed: 2,
				Seconds: map[imagepull.Phase]float64{imagepull.PhaseLayers: 1.5},
			},
			"[#####.....]", " 50%  1.5 MB of 3.0 MB  1/4 layers  1.0 MB/s  2.0s",
		},
		"all cached": {
			imagepull.Status{Phase: imagepull.PhaseLayers, LayersDone: 4, Layers: 4}, "[##########]", "100%  0 B of 0 B  4/4 layers  0.0s",
		},
		"sizes nobody has": {
			imagepull.Status{Phase: imagepull.PhaseLayers, FetchedBytes: 9e18, TotalBytes: 1, Layers: 1}, "[##########]", "100%  9000000.0 TB of 1 B  0/1 layers  0.0s",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := progressBar(tt.s, 10); got != tt.bar {
				t.Errorf("bar %q, want %q", got, tt.bar)
			}
			if got := progressLine(tt.s); got != tt.line {
				t.Errorf("line %q, want %q", got, tt.line)
			}
		})
	}
}

func TestNoEscapesWhereThereIsNoTerminal(t *testing.T) {
	var b bytes.Buffer
	v := newProgressView(&b, func(string) (string, bool) { return "xterm", true })
	v.pull = new(imagepull.Progress)
	v.draw()
	v.draw()
	if _, err := v.Write([]byte("a line of a log\n")); err != nil {
		t.Fatal(err)
	}
	v.Close()
	v.Close()
	if strings.Contains(b.String(), "\x1b") || strings.Count(b.String(), "\n") != 3 {
		t.Errorf("%q", b.String())
	}
}

// What else is written takes the bar's line.
func TestBarIsTakenOutOfTheWay(t *testing.T) {
	var b bytes.Buffer
	v := newProgressView(&b, func(string) (string, bool) { return "xterm", true })
	v.terminal, v.pull = true, new(imagepull.Progress)
	v.draw()
	if _, err := v.Write([]byte("log\n")); err != nil {
		t.Fatal(err)
	}
	v.draw()
	v.Close()
	lines := strings.Split(b.String(), "\r\x1b[K")
	if len(lines) != 5 || lines[2] != "log\n" || lines[4] != "" || !strings.HasPrefix(lines[1], "[") || !strings.HasPrefix(lines[3], "[") {
		t.Errorf("%q", lines)
	}
	for _, l := range lines {
		if len(l) >= 80 {
			t.Errorf("%q does not fit a line", l)
		}
	}
}

func TestBarFitsATerminal(t *testing.T) {
	s := imagepull.Status{
		Phase: imagepull.PhaseLayers, FetchedBytes: 123_456_789_000, TotalBytes: 234_567_890_000, LayersDone: 10, Layers: 12, Elapsed: 999,
		Seconds: map[imagepull.Phase]float64{imagepull.PhaseLayers: 999},
	}
	if line := progressBar(s, barWidth) + " " + progressLine(s); len(line) >= 80 {
		t.Errorf("%d columns: %s", len(line), line)
	}
}
