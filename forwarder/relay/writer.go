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
	// corkFrom is from how many bytes on more than one TLS record is written.
	corkFrom = 16 << 10
)

// ErrNotReading says that a peer did not read what was sent to it in time.
var ErrNotReading = errors.New("the peer does not read")

// writer sends frames. Whoever sends holds mu.
type writer struct {
	mu     sync.Mutex
	conn   net.Conn
	socket *Socket   // under conn, or nil
	armed  time.Time // the write deadline, which is left standing
}

func newWriter(conn net.Conn) writer { return writer{conn: conn, socket: socketUnder(conn)} }

// send writes p and returns how much of it the peer may have got. After an error
// the connection is of no use. mu is held.
func (w *writer) send(p []byte) (sent int, err error) {
	if w.socket == nil || len(p) <= corkFrom {
		sent, err = w.steps(p)
	} else {
		w.socket.cork()
		sent, err = w.steps(p)
		err = errors.Join(err, w.socket.uncork())
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = ErrNotReading
	}
	return sent, err
}

// steps writes p, each part in its time.
func (w *writer) steps(p []byte) (sent int, err error) {
	for {
		if now := time.Now(); w.armed.Sub(now) < writeTime/2 {
			w.armed = now.Add(writeTime)
			if err := w.conn.SetWriteDeadline(w.armed); err != nil {
				return sent, fmt.Errorf("setting a deadline: %w", err)
			}
		}
		n, err := w.conn.Write(p[sent:min(len(p), sent+writeStep)])
		if sent += n; err != nil || sent == len(p) {
			return sent, err
		}
	}
}
