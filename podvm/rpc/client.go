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
type Client struct {
	path string
	wait time.Duration

	mu   sync.Mutex
	conn *ttrpc.Client
}

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

// Do runs call with a live connection. When the peer closed the connection,
// call runs again on a new one, at most seven times, so it must be safe to
// repeat.
// Errors: ErrPeerAbsent, or whatever call returned.
func (c *Client) Do(ctx context.Context, call func(*ttrpc.Client) error) error {
	for try := 1; ; try++ {
		conn, err := c.get(ctx)
		if err != nil {
			return err
		}
		err = call(conn)
		if !errors.Is(err, ttrpc.ErrClosed) || ctx.Err() != nil {
			return err
		}
		c.drop(conn)
		if try == maxTries {
			return err
		}
	}
}

// Close closes the connection; a later Do dials again.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		return nil
	}
	err := c.conn.Close()
	c.conn = nil
	return err
}

func (c *Client) drop(dead *ttrpc.Client) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == dead {
		c.conn = nil
	}
	_ = dead.Close()
}

func (c *Client) get(ctx context.Context) (*ttrpc.Client, error) {
	c.mu.Lock()
	conn := c.conn
	c.mu.Unlock()
	if conn != nil {
		return conn, nil
	}
	// Dialled outside the lock: a caller waiting for an absent peer must not
	// hold up one whose deadline is shorter.
	raw, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		_ = raw.Close()
		return c.conn, nil
	}
	c.conn = ttrpc.NewClient(raw)
	return c.conn, nil
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
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fmt.Errorf("%w: %s: %w", ErrPeerAbsent, c.path, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %s: %w", ErrPeerAbsent, c.path, err)
		case <-time.After(pause):
		}
	}
}
