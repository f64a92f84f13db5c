package relay

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// How long a peer may take to go on with a frame, in either direction. Beyond it
// the connection is closed, which is the end of the pod where it is the host's:
// cloud-api-adaptor (pkg/util/agentproto/redirector.go at fbdde756) dials once. So
// a network or a node may stand still for as long as TCP puts up with it. A host
// that uses all of it harms no other; nor does an agent, but its calls wait.
const (
	hostTime  = 5 * time.Minute
	agentTime = 30 * time.Second
)

const (
	// writeStep is how many bytes a peer reads in its time; half the time is
	// enough to be cut off.
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
	socket *Socket // under conn, or nil
	limit  limit   // of conn, if there is no socket
}

// limit is the write deadline of a connection, which is left standing between
// writes.
type limit struct {
	patience time.Duration // of a write
	mu       sync.Mutex
	at       time.Time
	fixed    bool
}

// fix sets a deadline that stays.
func (l *limit) fix(conn net.Conn, at time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fixed = true
	return conn.SetWriteDeadline(at)
}

// arm gives a write its time.
func (l *limit) arm(conn net.Conn) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if l.fixed || l.at.Sub(now) >= l.patience/2 {
		return nil
	}
	l.at = now.Add(l.patience)
	if err := conn.SetWriteDeadline(l.at); err != nil {
		return fmt.Errorf("setting a deadline: %w", err)
	}
	return nil
}

// newWriter returns a writer to a peer that has so much time for a write.
func newWriter(conn net.Conn, patience time.Duration) writer {
	return writer{conn: conn, socket: socketUnder(conn), limit: limit{patience: patience}}
}

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
		if w.socket == nil {
			if err := w.limit.arm(w.conn); err != nil {
				return sent, err
			}
		}
		n, err := w.conn.Write(p[sent:min(len(p), sent+writeStep)])
		if sent += n; err != nil || sent == len(p) {
			return sent, err
		}
	}
}
