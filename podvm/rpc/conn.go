package rpc

import (
	"encoding/binary"
	"io"
	"net"
	"time"
)

// A ttrpc frame is a header and a body: length of the body (4 bytes,
// big-endian), stream (4), type (1), flags (1).
// Source: containerd/ttrpc PROTOCOL.md at v1.2.10.
const (
	frameHeader  = 10
	frameType    = 8 // offset
	frameRequest = 1
)

// writeTime is how long a caller may take to read what it was sent. Without an
// end, the answers to one that never reads would pile up.
const writeTime = 30 * time.Second

// requestListener gives out connections on which only requests arrive.
type requestListener struct{ net.Listener }

func (l requestListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &requestConn{Conn: c}, nil
}

// requestConn ends at the first frame that is no request. Our services have no
// streams, and stream data for a call without one is a nil dereference in
// ttrpc, outside every handler: it would end the process with all calls in it.
type requestConn struct {
	net.Conn
	header [frameHeader]byte
	have   int    // bytes of header
	body   uint32 // bytes left of the body after it
	ended  bool
}

// Read implements net.Conn. One goroutine reads, as in ttrpc.
func (c *requestConn) Read(p []byte) (int, error) {
	if c.ended {
		return 0, io.EOF
	}
	n, err := c.Conn.Read(p)
	for rest := p[:n]; len(rest) > 0; {
		if c.body > 0 {
			skip := min(int64(c.body), int64(len(rest)))
			c.body -= uint32(skip)
			rest = rest[skip:]
			continue
		}
		at := n - len(rest)
		took := copy(c.header[c.have:], rest)
		if c.have += took; c.have < frameHeader {
			break
		}
		if c.header[frameType] != frameRequest {
			c.ended = true
			return at, io.EOF // the one error after which ttrpc closes at once
		}
		c.have, c.body = 0, binary.BigEndian.Uint32(c.header[:])
		rest = rest[took:]
	}
	return n, err
}

// Write implements net.Conn.
func (c *requestConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}
