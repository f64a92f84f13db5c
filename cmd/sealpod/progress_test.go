package main

import (
	"testing"

	"github.com/sealpod/sealpod/cmd/internal/cli"
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
			if got := cli.Bar(tt.s.Percent(), 10); got != tt.bar {
				t.Errorf("bar %q, want %q", got, tt.bar)
			}
			if got := progressLine(tt.s); got != tt.line {
				t.Errorf("line %q, want %q", got, tt.line)
			}
		})
	}
}

func TestBarFitsATerminal(t *testing.T) {
	s := imagepull.Status{
		Phase: imagepull.PhaseLayers, FetchedBytes: 123_456_789_000, TotalBytes: 234_567_890_000, LayersDone: 10, Layers: 12, Elapsed: 999,
		Seconds: map[imagepull.Phase]float64{imagepull.PhaseLayers: 999},
	}
	if line := cli.Bar(s.Percent(), 16) + " " + progressLine(s); len(line) >= 80 {
		t.Errorf("%d columns: %s", len(line), line)
	}
}
