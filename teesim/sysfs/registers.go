package sysfs

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// registerSize is the length of every register in bytes, SHA-384.
const registerSize = 48

// registerNode returns the file of a register, which can be written if it can be
// extended. Source: tdx_mrs in Linux drivers/virt/coco/tdx-guest at 6.16.
func registerNode(own *owner, regs Registers, name string, log *slog.Logger) *file {
	perm := uint32(0o444)
	if strings.HasPrefix(name, "rtmr") {
		perm = 0o644
	}
	return &file{owner: own, perm: perm, size: registerSize, open: func(flags uint32) (fs.FileHandle, error) {
		return &register{regs: regs, name: name, log: log, position: position{append: flags&syscall.O_APPEND != 0}}, nil
	}}
}

// register is an open register. Unlike an attribute of configfs it is read anew
// by every read.
type register struct {
	regs Registers
	name string
	log  *slog.Logger

	mu sync.Mutex
	position
}

// Read returns the bytes at off of the present value. Errors: EIO.
func (r *register) Read(_ context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	v, err := r.regs.Read(r.name)
	if err != nil || len(v) != registerSize {
		r.log.Warn("A register was not read", "register", r.name, "bytes", len(v), "err", err)
		return nil, syscall.EIO
	}
	return part(v, dest, off), 0
}

// Write extends the register by the 48 bytes at the file's start. As in the
// kernel those behind its end are cut off, so that they are a write of their
// own. Errors: EINVAL for a part, EFBIG behind the end, EIO.
func (r *register) Write(_ context.Context, b []byte, off int64) (uint32, syscall.Errno) {
	r.mu.Lock()
	defer r.mu.Unlock()
	off = r.at(off)
	if off >= registerSize {
		return 0, syscall.EFBIG
	}
	b = b[:min(int64(len(b)), registerSize-off)]
	if off != 0 || len(b) != registerSize {
		return 0, syscall.EINVAL
	}
	if err := r.regs.Write(r.name, append([]byte(nil), b...)); err != nil {
		r.log.Warn("A register was not extended", "register", r.name, "err", err)
		return 0, fromProvider(err)
	}
	r.next = registerSize
	return registerSize, 0
}

var (
	_ fs.FileReader = (*register)(nil)
	_ fs.FileWriter = (*register)(nil)
)
