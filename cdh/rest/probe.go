package rest

import (
	"context"
	"net"
	"sync"
)

// Probe is a way to a server for its own process alone, by connections that are not
// counted: containers can hold all of the others, and that must not look as if the
// server were stuck.
type Probe struct {
	conns chan net.Conn
	ended chan struct{}
	end   func()
}

// NewProbe returns a probe for one call of Serve.
func NewProbe() *Probe {
	ended := make(chan struct{})
	return &Probe{make(chan net.Conn), ended, sync.OnceFunc(func() { close(ended) })}
}

// Answers returns nil if the server answers before ctx ends, however busy it is
// with others.
func (p *Probe) Answers(ctx context.Context) error {
	conn, far := net.Pipe()
	select {
	case p.conns <- far:
		return answers(ctx, conn)
	case <-p.ended:
		return net.ErrClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Accept is for the server, as are Close and Addr.
func (p *Probe) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.ended:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (p *Probe) Close() error { p.end(); return nil }

// Addr is no address that anybody could connect to.
func (p *Probe) Addr() net.Addr { return &net.UnixAddr{Net: "pipe"} }
