package vmtest

import (
	"strings"
	"sync"
	"unicode"
)

// tailSize is how much a tail keeps, in bytes.
const tailSize = 1 << 20

// tail is a writer that keeps the end of what is written. It is safe for
// concurrent use.
type tail struct {
	mu   sync.Mutex
	data []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.data = append(t.data, p...)
	if len(t.data) > 2*tailSize { // so that little is moved often
		t.data = append(t.data[:0], t.data[len(t.data)-tailSize:]...)
	}
	return len(p), nil
}

// String returns the end of what was written, without carriage returns.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.ReplaceAll(string(t.data[max(0, len(t.data)-tailSize):]), "\r\n", "\n")
}

// readable is the end of text, at most size bytes of it, fit for a terminal.
func readable(text string, size int) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return '\uFFFD'
	}, text[max(0, len(text)-size):])
}
