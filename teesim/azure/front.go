package azure

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/sealpod/sealpod/podvm"
)

// limits of a front. Tests have others.
type limits struct {
	// clients is how many connections there are at once.
	clients int
	// idle is after what time without a command a connection may be closed to
	// make room for another.
	idle time.Duration
	// transfer bounds a command from its first byte on, and a response.
	transfer time.Duration
}

var usualLimits = limits{clients: 64, idle: time.Second, transfer: 5 * time.Second}

// front is the TPM device of the guest: it takes commands from any number of
// connections and has the TPM do one at a time.
type front struct {
	limits
	tpm       *softTPM
	paravisor *paravisor
	log       *slog.Logger
	loaded    loaded // under the TPM's lock

	wg sync.WaitGroup // clients

	mu      sync.Mutex
	clients map[*client]struct{}
	// left has room for one: a client has left since the last look.
	left chan struct{}
}

// client is one connection. Its fields other than conn are under front.mu.
type client struct {
	conn net.Conn
	used time.Time // of its last command, or when it came
	busy bool      // with a command that the TPM has
}

// serve takes clients until l is closed or ctx ends, and returns when all have
// left.
func (f *front) serve(ctx context.Context, l net.Listener) {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	defer f.wg.Wait()
	defer f.closeAll()
	defer func() { _ = l.Close() }() // waits until its file is gone
	for {
		conn, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // out of file descriptors, for example
			f.log.Warn("Taking a connection to the TPM", "err", err)
			if !f.wait(ctx, f.idle) {
				return
			}
		case !f.admit(ctx, conn):
			_ = conn.Close()
			return
		}
	}
}

// admit starts serving a connection as soon as there is room, which it makes by
// closing the one that was idle longest. It returns false when ctx ends first.
func (f *front) admit(ctx context.Context, conn net.Conn) bool {
	c := &client{conn: conn, used: time.Now()}
	for {
		wait := f.makeRoom()
		if wait <= 0 {
			break
		}
		if !f.wait(ctx, wait) {
			return false
		}
	}
	f.mu.Lock()
	f.clients[c] = struct{}{}
	f.mu.Unlock()
	f.wg.Go(func() { f.talk(c) })
	return true
}

// makeRoom returns how long to wait before there may be room, 0 if there is.
func (f *front) makeRoom() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.clients) < f.limits.clients {
		return 0
	}
	var oldest *client
	for c := range f.clients {
		if !c.busy && (oldest == nil || c.used.Before(oldest.used)) {
			oldest = c
		}
	}
	if oldest == nil {
		return f.idle
	}
	if wait := f.idle - time.Since(oldest.used); wait > 0 {
		return wait
	}
	delete(f.clients, oldest)
	_ = oldest.conn.Close()
	return 0
}

// wait returns after d or when a client has left; false when ctx ended.
func (f *front) wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
	case <-f.left:
	}
	return ctx.Err() == nil
}

func (f *front) closeAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.clients {
		_ = c.conn.Close()
	}
}

// talk serves one client until it leaves or does not behave.
func (f *front) talk(c *client) {
	for f.turn(c) == nil {
	}
	_ = c.conn.Close()
	_ = f.tpm.Do(func(t transport.TPM) error { f.loaded.flush(t, c); return nil })
	f.mu.Lock()
	delete(f.clients, c)
	f.mu.Unlock()
	select {
	case f.left <- struct{}{}:
	default:
	}
}

// turn reads a command and answers it.
func (f *front) turn(c *client) error {
	deadline := func() { _ = c.conn.SetDeadline(time.Now().Add(f.transfer)) }
	cmd, err := readFrame(c.conn, deadline)
	if errors.Is(err, errFrame) {
		f.log.Debug("A client of the TPM is cut off", "err", podvm.Printable(err.Error(), 200))
		_, _ = c.conn.Write(refusal(tpm2.TPMRCCommandSize)) // there is no next command to find
		return err
	}
	if err != nil {
		return err
	}
	f.setBusy(c, true)
	defer f.setBusy(c, false)
	response, err := f.execute(c, cmd)
	if err != nil {
		return err
	}
	deadline()
	if _, err := c.conn.Write(response); err != nil {
		return err
	}
	return c.conn.SetDeadline(time.Time{})
}

func (f *front) setBusy(c *client, busy bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c.busy, c.used = busy, time.Now()
}

// execute has the TPM do a command, after the paravisor has seen it.
func (f *front) execute(c *client, cmd []byte) (response []byte, err error) {
	err = f.tpm.Do(func(t transport.TPM) error {
		full, err := f.loaded.refuses(t, cmd)
		if full {
			response = refusal(tpm2.TPMRCObjectMemory)
		}
		if err != nil || full {
			return err
		}
		f.paravisor.before(t, cmd)
		if response, err = t.Send(cmd); err == nil {
			f.loaded.note(c, cmd, response)
		}
		return err
	})
	return response, err
}
