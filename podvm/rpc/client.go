package rpc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/ttrpc"
)

// ErrPeerAbsent says that nobody listened on the socket for as long as the
// caller was willing to wait.
var ErrPeerAbsent = errors.New("peer not listening")

// Client is a ttrpc client for one socket, shared by any number of goroutines.
// It dials on first use, waits for a peer that is not up yet, and dials again
// when the peer went away. The zero value is not usable; see NewClient.
//
// A connection carries one call at a time and is kept for the next. ttrpc has no
// message for a caller who gives up, and no way to interrupt a write to a peer
// that hangs: closing the connection is both, and harms no other call.
type Client struct {
	path string
	wait time.Duration

	mu   sync.Mutex
	idle []*ttrpc.Client // the last one used is the last here
}

// maxIdle is how many connections are kept.
const maxIdle = 16

// NewClient returns a client for the unix socket at path. A peer that does not
// listen yet is waited for, at most wait and never beyond a call's deadline.
func NewClient(path string, wait time.Duration) *Client {
	return &Client{path: path, wait: wait}
}

// maxTries is how often Do runs a call whose peer goes away meanwhile. A dying
// process may take two tries: one on the connection it had, one on a connection
// its kernel still accepted for it. There is an end to it, because the call may
// be what makes the peer go.
const maxTries = 8

// Do runs call with a live connection until ctx ends; then it ends here and at
// the peer. When the peer closed the connection, call runs again on a new one, at
// most seven times, so it must be safe to repeat.
// Errors: ErrPeerAbsent, ttrpc.ErrClosed after the last try, ctx's, or whatever
// call returned.
func (c *Client) Do(ctx context.Context, call func(*ttrpc.Client) error) error {
	for try := 1; ; try++ {
		conn, err := c.take(ctx)
		if err != nil {
			return err
		}
		stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
		err = call(conn)
		stop()
		gone := errors.Is(err, ttrpc.ErrClosed)
		if ctx.Err() != nil {
			_ = conn.Close()
			if gone {
				return ctx.Err()
			}
			return err
		}
		if !gone {
			c.keep(conn)
			return err
		}
		_ = conn.Close()
		_ = c.Close() // the idle ones were to the same peer
		if try == maxTries {
			return err
		}
	}
}

// Close closes the connections that are kept. A later Do dials again.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	for _, conn := range c.idle {
		err = errors.Join(err, conn.Close())
	}
	c.idle = nil
	return err
}

// take returns a connection for one call.
func (c *Client) take(ctx context.Context) (*ttrpc.Client, error) {
	c.mu.Lock()
	if n := len(c.idle); n > 0 {
		defer c.mu.Unlock()
		conn := c.idle[n-1]
		c.idle = c.idle[:n-1]
		return conn, nil
	}
	c.mu.Unlock()
	// Dialled outside the lock: a caller waiting for an absent peer must not
	// hold up one whose deadline is shorter.
	raw, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	return ttrpc.NewClient(raw), nil
}

// keep puts a connection aside for the next call.
func (c *Client) keep(conn *ttrpc.Client) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.idle) == maxIdle {
		_ = conn.Close()
		return
	}
	c.idle = append(c.idle, conn)
}

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.wait)
	defer cancel()
	var d net.Dialer
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		conn, err := d.DialContext(ctx, "unix", c.path)
		if err == nil {
			return conn, nil
		}
		// EAGAIN: more callers than the peer has accepted yet.
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.EAGAIN) {
			return nil, fmt.Errorf("%w: %s: %w", ErrPeerAbsent, c.path, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %s: %w", ErrPeerAbsent, c.path, err)
		case <-time.After(pause):
		}
	}
}
