package main

import (
	"fmt"
	"io"
	"sync"

	"github.com/sealpod/sealpod/cmd/internal/cli"
	"github.com/sealpod/sealpod/imagepull"
	"github.com/sealpod/sealpod/podvm"
)

// progressView shows how far a pull is.
type progressView struct {
	*cli.View

	mu     sync.Mutex
	status imagepull.Status
}

func newProgressView(w io.Writer, lookupEnv func(string) (string, bool)) *progressView {
	return &progressView{View: cli.NewView(w, lookupEnv)}
}

// PullBegins implements imagepull.Observer.
func (v *progressView) PullBegins(p *imagepull.Progress) {
	v.Show(func() (int, string) {
		s := p.Status()
		return s.Percent(), progressLine(s)
	})
}

// PullEnds implements imagepull.Observer.
func (v *progressView) PullEnds(p *imagepull.Progress, _ error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.status = p.Status()
}

// last is the status at the pull's end.
func (v *progressView) last() imagepull.Status {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.status
}

// progressLine says how far a pull is, in ASCII.
func progressLine(s imagepull.Status) string {
	if s.Phase != imagepull.PhaseLayers {
		return fmt.Sprintf("%-8s %s", s.Phase, seconds(s.Elapsed))
	}
	line := fmt.Sprintf("%3d%%  %s of %s  %d/%d layers", s.Percent(), podvm.SizeText(s.FetchedBytes), podvm.SizeText(s.TotalBytes), s.LayersDone, s.Layers)
	if t := s.Seconds[imagepull.PhaseLayers]; t > 0.5 {
		line += fmt.Sprintf("  %s/s", podvm.SizeText(int64(float64(s.FetchedBytes)/t)))
	}
	return line + "  " + seconds(s.Elapsed)
}

// seconds is a time for people.
func seconds(s float64) string { return fmt.Sprintf("%.1fs", s) }
