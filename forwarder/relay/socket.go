package relay

import (
	"net"
	"sync"
	"time"
)

const (
	socketBuffer = 32 << 10 // bytes read at once
	corkBuffer   = 128 << 10

	// recordRoom is more than TLS adds to what is in one record, with the ciphers
	// in use today, and less than it adds to two.
	recordRoom = 40
)

// Socket is a connection for TLS to be spoken over, as the server. It lets a
// Relay know what TLS does not say: whether more has arrived, so that requests
// which came together go on together; and it makes of the records of a large
// frame few writes. A Relay works without, at more CPU time per call.
type Socket struct {
	net.Conn

	// Of the goroutine that reads:

	buf        []byte
	start, end int
	arrived    int // bytes since readMore
	noWait     bool

	limit limit // of Conn's writes, of which some are those of TLS itself

	mu     sync.Mutex // of what follows
	corked *[]byte    // records that wait for their like, nil if they do not
	filled int
}

// NewSocket returns a Socket over conn.
func NewSocket(conn net.Conn) *Socket { return &Socket{Conn: conn, limit: limit{patience: hostTime}} }

// socketUnder returns the Socket that conn speaks over, or nil.
func socketUnder(conn net.Conn) *Socket {
	for {
		switch c := conn.(type) {
		case *Socket:
			return c
		case interface{ NetConn() net.Conn }:
			conn = c.NetConn()
		default:
			return nil
		}
	}
}

// errNoWait says that nothing has arrived. It is an error after which TLS can
// go on, which is what makes it a net.Error that is temporary.
var errNoWait net.Error = noWaitError{}

type noWaitError struct{}

func (noWaitError) Error() string   { return "nothing has arrived" }
func (noWaitError) Timeout() bool   { return true }
func (noWaitError) Temporary() bool { return true }

// Read implements net.Conn.
func (s *Socket) Read(p []byte) (int, error) {
	if s.start == s.end {
		if s.noWait {
			return 0, errNoWait
		}
		if s.buf == nil {
			s.buf = make([]byte, socketBuffer)
		}
		n, err := s.Conn.Read(s.buf)
		s.start, s.end = 0, n
		s.arrived += n
		if n == 0 {
			return 0, err
		}
	}
	n := copy(p, s.buf[s.start:s.end])
	s.start += n
	return n, nil
}

// readMore reads from conn, which speaks over s and has just given out got bytes,
// what has arrived already. It does not ask where it is plain that nothing has:
// a call alone does not pay for those that come together.
func (s *Socket) readMore(conn net.Conn, p []byte, got int) (read int) {
	arrived := s.arrived
	s.arrived = 0
	if s.start == s.end && arrived <= got+recordRoom {
		return 0
	}
	s.noWait = true
	defer func() { s.noWait = false }()
	for read < len(p) {
		n, err := conn.Read(p[read:])
		read += n
		if err != nil {
			break // if it is of any other kind it comes again
		}
	}
	return read
}

// SetWriteDeadline implements net.Conn. Until it is called, each write has a time
// of its own.
func (s *Socket) SetWriteDeadline(at time.Time) error { return s.limit.fix(s.Conn, at) }

// Write implements net.Conn.
func (s *Socket) Write(p []byte) (written int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.corked == nil {
		return s.send(p)
	}
	for {
		n := copy((*s.corked)[s.filled:], p[written:])
		s.filled += n
		written += n
		if written == len(p) {
			return written, nil
		}
		if err := s.flush(); err != nil {
			return written, err
		}
	}
}

// cork makes writes wait for uncork, or for more of them.
func (s *Socket) cork() {
	b := getBuffer(corkBuffer)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.corked, s.filled = b, 0
}

// uncork writes what waits.
func (s *Socket) uncork() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.flush()
	putBuffer(s.corked)
	s.corked = nil
	return err
}

// flush writes what waits. mu is held.
func (s *Socket) flush() error {
	_, err := s.send((*s.corked)[:s.filled])
	s.filled = 0
	return err
}

// send writes p in its time. mu is held.
func (s *Socket) send(p []byte) (int, error) {
	if err := s.limit.arm(s.Conn); err != nil {
		return 0, err
	}
	return s.Conn.Write(p)
}
