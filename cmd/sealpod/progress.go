package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/imagepull"
)

// How often the view is renewed, and how wide the bar is: with what follows it,
// it fits 80 columns.
const (
	barEvery  = 100 * time.Millisecond
	lineEvery = 5 * time.Second
	barWidth  = 16
)

// progressView shows how far a pull is: as a bar that is drawn over on a
// terminal, elsewhere as a line every few seconds. It is a writer for what else
// goes to the terminal, and takes the bar out of its way.
type progressView struct {
	w        io.Writer
	terminal bool
	end      chan struct{}
	once     sync.Once
	running  sync.WaitGroup

	mu     sync.Mutex
	pull   *imagepull.Progress
	status imagepull.Status
	drawn  bool
}

func newProgressView(w io.Writer, lookupEnv func(string) (string, bool)) *progressView {
	term, _ := lookupEnv("TERM")
	return &progressView{w: w, terminal: isTerminal(w) && term != "" && term != "dumb", end: make(chan struct{})}
}

// isTerminal tells whether w is a file that is one.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// PullBegins implements imagepull.Observer.
func (v *progressView) PullBegins(p *imagepull.Progress) {
	v.mu.Lock()
	v.pull = p
	v.mu.Unlock()
	every := lineEvery
	if v.terminal {
		every = barEvery
	}
	v.running.Go(func() {
		if v.terminal {
			v.draw()
		}
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-v.end:
				return
			case <-tick.C:
				v.draw()
			}
		}
	})
}

// PullEnds implements imagepull.Observer.
func (v *progressView) PullEnds(p *imagepull.Progress, _ error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.status = p.Status()
}

// Close takes the bar away. Nothing is drawn after it.
func (v *progressView) Close() {
	v.once.Do(func() { close(v.end) })
	v.running.Wait()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.clear()
}

// last is the status at the pull's end.
func (v *progressView) last() imagepull.Status {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.status
}

// Write implements io.Writer.
func (v *progressView) Write(b []byte) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.clear()
	return v.w.Write(b)
}

func (v *progressView) clear() {
	if v.drawn {
		_, _ = io.WriteString(v.w, "\r\x1b[K")
		v.drawn = false
	}
}

func (v *progressView) draw() {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.pull.Status()
	if !v.terminal {
		fmt.Fprintln(v.w, progressLine(s))
		return
	}
	line := progressBar(s, barWidth) + " " + progressLine(s)
	if width := v.width(); len(line) >= width {
		line = line[:max(width-1, 0)] // a line that wraps cannot be drawn over
	}
	_, _ = io.WriteString(v.w, "\r\x1b[K"+line)
	v.drawn = true
}

func (v *progressView) width() int {
	if f, ok := v.w.(*os.File); ok {
		if size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 0 {
			return int(size.Col)
		}
	}
	return 80
}

// progressBar is a bar of width characters.
func progressBar(s imagepull.Status, width int) string {
	done := s.Percent() * width / 100
	return "[" + strings.Repeat("#", done) + strings.Repeat(".", width-done) + "]"
}

// progressLine says how far a pull is, in ASCII.
func progressLine(s imagepull.Status) string {
	if s.Phase != imagepull.PhaseLayers {
		return fmt.Sprintf("%-8s %s", s.Phase, seconds(s.Elapsed))
	}
	line := fmt.Sprintf("%3d%%  %s of %s  %d/%d layers", s.Percent(), size(s.FetchedBytes), size(s.TotalBytes), s.LayersDone, s.Layers)
	if t := s.Seconds[imagepull.PhaseLayers]; t > 0.5 {
		line += fmt.Sprintf("  %s/s", size(int64(float64(s.FetchedBytes)/t)))
	}
	return line + "  " + seconds(s.Elapsed)
}

// seconds is a time for people.
func seconds(s float64) string { return fmt.Sprintf("%.1fs", s) }

// size is n bytes for people.
func size(n int64) string {
	f, unit := float64(n), ""
	for _, unit = range []string{"B", "kB", "MB", "GB", "TB"} {
		if f < 1000 || unit == "TB" {
			break
		}
		f /= 1000
	}
	if unit == "B" {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, unit)
}
