package cli

import (
	"bytes"
	"strings"
	"testing"
)

func half() (int, string) { return 50, "half of it  " + strings.Repeat("and more ", 20) }

func TestNoEscapesWhereThereIsNoTerminal(t *testing.T) {
	var b bytes.Buffer
	v := NewView(&b, func(string) (string, bool) { return "xterm", true })
	v.now = half
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
	v := NewView(&b, func(string) (string, bool) { return "xterm", true })
	v.Terminal, v.now = true, half
	v.draw()
	if _, err := v.Write([]byte("log\n")); err != nil {
		t.Fatal(err)
	}
	v.draw()
	v.Close()
	lines := strings.Split(b.String(), "\r\x1b[K")
	if len(lines) != 5 || lines[2] != "log\n" || lines[4] != "" || !strings.HasPrefix(lines[1], "[########........] half") || !strings.HasPrefix(lines[3], "[") {
		t.Errorf("%q", lines)
	}
	for _, l := range lines {
		if len(l) >= 80 {
			t.Errorf("%q does not fit a line", l)
		}
	}
}
