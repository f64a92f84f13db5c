package relay

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

const (
	// writeTime is how long a peer may take to read writeStep bytes; half of it
	// is enough to be cut off.
	writeTime = 30 * time.Second
	writeStep = 256 << 10
)

// ErrNotReading says that a peer did not read what was sent to it in time.
var ErrNotReading = errors.New("the peer does not read")

// writer sends frames. Whoever sends holds mu.
type writer struct {
	mu    sync.Mutex
	conn  net.Conn
	armed time.Time // the write deadline, which is left standing
}

// send writes p and returns how much of it the peer may have got. After an error
// the connection is of no use. mu is held.
func (w *writer) send(p []byte) (int, error) {
	for sent := 0; ; {
		if now := time.Now(); w.armed.Sub(now) < writeTime/2 {
			w.armed = now.Add(writeTime)
			if err := w.conn.SetWriteDeadline(w.armed); err != nil {
				return sent, fmt.Errorf("setting a deadline: %w", err)
			}
		}
		n, err := w.conn.Write(p[sent:min(len(p), sent+writeStep)])
		sent += n
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return sent, ErrNotReading
		}
		if err != nil || sent == len(p) {
			return sent, err
		}
	}
}

// write is send for those who do not hold mu.
func (w *writer) write(p []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := w.send(p)
	return err
}
