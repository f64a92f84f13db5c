package vtpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/attester/internal/gate"
)

// Bounds of an exchange.
const (
	// headerSize and maxResponse are the lengths in bytes of the shortest and
	// the longest answer. Source: Linux drivers/char/tpm/tpm.h, TPM_BUFSIZE.
	headerSize  = 10
	maxResponse = 4096
	// socketTimeout bounds one command through a socket, whatever the context.
	socketTimeout = 30 * time.Second
	// busyTries is how often a TPM may say that it is busy; the wait in between
	// starts at busyWait and doubles: 1.3 s in all.
	busyTries = 8
	busyWait  = 10 * time.Millisecond
)

// Conn is an open TPM, for one goroutine and only inside of Do. It implements
// transport.TPM, which has no context and no bounds: that is why it is not one
// of go-tpm's.
type Conn struct {
	ctx  context.Context // of Do
	link link
	// nvChunk is what nvBuffer found, 0 before.
	nvChunk int
}

// link exchanges raw commands with a TPM.
type link interface {
	exchange(ctx context.Context, cmd []byte) ([]byte, error)
	io.Closer
}

// Send implements transport.TPM. A TPM that says it is busy is asked again.
func (c *Conn) Send(cmd []byte) ([]byte, error) {
	for try, wait := 1, busyWait; ; try, wait = try+1, wait*2 {
		if err := c.ctx.Err(); err != nil {
			return nil, fmt.Errorf("using the TPM: %w", err)
		}
		out, err := c.link.exchange(c.ctx, cmd)
		if err != nil {
			return nil, fmt.Errorf("using the TPM: %w", err)
		}
		if len(out) < headerSize || len(out) > maxResponse || binary.BigEndian.Uint32(out[2:]) != uint32(len(out)) {
			return nil, fmt.Errorf("using the TPM: %w: %d bytes", ErrAnswer, len(out))
		}
		if try == busyTries || !busy(tpm2.TPMRC(binary.BigEndian.Uint32(out[6:]))) {
			return out, nil
		}
		if err := gate.Wait(c.ctx, wait); err != nil {
			return nil, fmt.Errorf("using the TPM: %w", err)
		}
	}
}

// busy tells the answers after which a command is sent again.
// Source: TPM 2.0 library part 2, TPM_RC warnings.
func busy(rc tpm2.TPMRC) bool {
	return rc == tpm2.TPMRCRetry || rc == tpm2.TPMRCYielded || rc == tpm2.TPMRCTesting || rc == tpm2.TPMRCNVRate
}

// openLink opens the TPM at path and keeps other processes that open it this way
// waiting, as a second agent: two would mix their report data, and extend PCR 8
// twice.
func openLink(ctx context.Context, path string) (link, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	flags, lock := unix.O_RDWR, path
	isSocket := st.Mode()&fs.ModeSocket != 0
	switch {
	case isSocket: // it cannot be locked itself
		flags, lock = unix.O_RDONLY, filepath.Dir(path)
	case st.Mode()&fs.ModeCharDevice == 0:
		return nil, fmt.Errorf("%w: %s is no device", ErrNoTPM, path)
	}
	// Not os.OpenFile: it would make reads return before the answer is there.
	fd, err := unix.Open(lock, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: lock, Err: err}
	}
	f := os.NewFile(uintptr(fd), lock)
	if err := gate.LockFile(ctx, f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if isSocket {
		return socket{path, f}, nil
	}
	return node{f}, nil
}

// node is the kernel's device: a write runs the command, a read gets the
// answer whole.
type node struct{ *os.File }

func (n node) exchange(_ context.Context, cmd []byte) ([]byte, error) {
	if _, err := n.Write(cmd); err != nil {
		return nil, err
	}
	out := make([]byte, maxResponse)
	size, err := n.Read(out)
	return out[:size], err
}

// socket is a simulated TPM. Each command has a connection of its own, since
// emulators serve one at a time.
type socket struct {
	path string
	lock *os.File
}

func (s socket) Close() error { return s.lock.Close() }

func (s socket) exchange(ctx context.Context, cmd []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, socketTimeout)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "unix", s.path)
	if err != nil {
		return nil, err
	}
	defer c.Close() //nolint:errcheck // the answer is complete
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	out, err := talk(c, cmd)
	if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, ctx.Err()
	}
	return out, err
}

// talk writes a command and reads an answer of the length its header says.
func talk(c io.ReadWriter, cmd []byte) ([]byte, error) {
	if _, err := c.Write(cmd); err != nil {
		return nil, err
	}
	out := make([]byte, headerSize, 256)
	if _, err := io.ReadFull(c, out); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(out[2:])
	if size < headerSize || size > maxResponse {
		return nil, fmt.Errorf("%w: %d bytes", ErrAnswer, size)
	}
	out = append(out, make([]byte, size-headerSize)...)
	_, err := io.ReadFull(c, out[headerSize:])
	return out, err
}
