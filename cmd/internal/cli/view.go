package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// How often a view is renewed, and how wide its bar is: with what follows it, it
// fits 80 columns.
const (
	barEvery  = 100 * time.Millisecond
	lineEvery = 5 * time.Second
	barWidth  = 16
)

// View shows how far something is: as a bar that is drawn over on a terminal,
// elsewhere as a line every five seconds. It is a writer for what else goes to the
// terminal, and takes the bar out of its way.
type View struct {
	// Terminal says that there is a terminal that can be drawn over.
	Terminal bool

	w       io.Writer
	end     chan struct{}
	once    sync.Once
	running sync.WaitGroup

	mu    sync.Mutex
	now   func() (percent int, line string)
	drawn bool
}

// NewView returns a View on w, which shows nothing yet.
func NewView(w io.Writer, lookupEnv func(string) (string, bool)) *View {
	term, _ := lookupEnv("TERM")
	return &View{w: w, Terminal: IsTerminal(w) && term != "" && term != "dumb", end: make(chan struct{})}
}

// IsTerminal tells whether w is a file that is one.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// Show shows what now says, in ASCII, until Close.
func (v *View) Show(now func() (percent int, line string)) {
	v.mu.Lock()
	v.now = now
	v.mu.Unlock()
	every := lineEvery
	if v.Terminal {
		every = barEvery
	}
	v.running.Go(func() {
		if v.Terminal {
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

// Close takes the bar away. Nothing is drawn after it.
func (v *View) Close() {
	v.once.Do(func() { close(v.end) })
	v.running.Wait()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.clear()
}

// Write implements io.Writer.
func (v *View) Write(b []byte) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.clear()
	return v.w.Write(b)
}

func (v *View) clear() {
	if v.drawn {
		_, _ = io.WriteString(v.w, "\r\x1b[K")
		v.drawn = false
	}
}

func (v *View) draw() {
	v.mu.Lock()
	defer v.mu.Unlock()
	percent, line := v.now()
	if !v.Terminal {
		fmt.Fprintln(v.w, line)
		return
	}
	line = Bar(percent, barWidth) + " " + line
	if width := v.width(); len(line) >= width {
		line = line[:max(width-1, 0)] // a line that wraps cannot be drawn over
	}
	_, _ = io.WriteString(v.w, "\r\x1b[K"+line)
	v.drawn = true
}

func (v *View) width() int {
	if f, ok := v.w.(*os.File); ok {
		if size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 0 {
			return int(size.Col)
		}
	}
	return 80
}

// Bar is a bar of width characters.
func Bar(percent, width int) string {
	done := percent * width / 100
	return "[" + strings.Repeat("#", done) + strings.Repeat(".", width-done) + "]"
}
