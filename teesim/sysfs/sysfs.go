package sysfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/semaphore"
)

// Provider makes attestation reports, as the driver of a TEE does in a kernel.
type Provider interface {
	// Name is the driver's name in configfs: "tdx_guest" or "sev_guest".
	Name() string
	// Report returns a report over inblob, which is 64 bytes, and what belongs to
	// it: the certificate table of SNP. privlevel is 0 to 3, and 0 for a driver
	// that has no levels. One call is made at a time; it must return soon after
	// ctx, which ends within 30 s. An error that wraps EBUSY, EINTR, EINVAL, EIO,
	// ENOMEM, ENOTTY, ENXIO or ETIMEDOUT reaches the guest as that, others as EIO.
	Report(ctx context.Context, inblob []byte, privlevel uint) (outblob, auxblob []byte, err error)
}

// Registers are measurement registers of 48 bytes each. It must be safe for
// concurrent use.
type Registers interface {
	// Names returns the file names, as in "rtmr0:sha384" or "mrconfigid". Those
	// that start with "rtmr" can be extended.
	Names() []string
	// Read returns the 48 bytes of a register.
	Read(name string) ([]byte, error)
	// Write extends a register by a digest of 48 bytes.
	Write(name string, digest []byte) error
}

// Tree is what a file system shows.
type Tree struct {
	// Reports makes the reports of kernel/config/tsm/report. Without it no entry
	// can be made there, as in a kernel without a TEE.
	Reports Provider
	// Measurements are the files of devices/virtual/misc/tdx_guest/measurements,
	// to which class/misc/tdx_guest links; nil means none.
	Measurements Registers
	// Files are read-only files by their slash-separated path below sys/. Their
	// bytes may not change while they are mounted.
	Files map[string][]byte
	// Dirs are directories by such a path; those of files need no mention.
	Dirs []string
	// Log takes what providers fail with; nil means slog.Default().
	Log *slog.Logger
}

// ErrTree says that a Tree cannot be shown.
var ErrTree = errors.New("not a tree that can be mounted")

const (
	reportPath   = "kernel/config/tsm/report"
	registerPath = "devices/virtual/misc/tdx_guest/measurements"
)

// layout turns t into nodes and returns their root. Reports end with ctx.
func (t Tree) layout(ctx context.Context) (*dir, error) {
	own := &owner{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()), since: time.Now()}
	g := &group{
		ctx: ctx, log: t.Log, provider: t.Reports,
		gate: semaphore.NewWeighted(1), entries: map[string]*entry{},
	}
	if t.Reports != nil {
		d, ok := drivers[t.Reports.Name()]
		if !ok {
			return nil, fmt.Errorf("%w: no driver is called %q", ErrTree, t.Reports.Name())
		}
		g.driver = d
	}
	root := &branch{owner: own}
	err := root.add(reportPath, &reportDir{dir: dir{owner: own}, group: g})
	if t.Measurements != nil {
		err = errors.Join(err, root.add("class/misc/tdx_guest", &link{owner: own, target: "../../devices/virtual/misc/tdx_guest"}))
		for _, name := range t.Measurements.Names() {
			if strings.Contains(name, "/") {
				err = errors.Join(err, fmt.Errorf("%w: a register called %q", ErrTree, name))
				continue
			}
			err = errors.Join(err, root.add(registerPath+"/"+name, registerNode(own, t.Measurements, name, t.Log)))
		}
	}
	for path, content := range t.Files {
		err = errors.Join(err, root.add(path, fixedNode(own, path, content)))
	}
	for _, path := range t.Dirs {
		err = errors.Join(err, root.add(path, nil))
	}
	return &dir{owner: own, kids: root.kids}, err
}

// branch is a directory before it is mounted, or a node at its end.
type branch struct {
	owner *owner
	kids  map[string]*branch
	node  node // nil for a directory that only holds others
}

// add puts n, or a directory if n is nil, at a path. Errors: ErrTree.
func (b *branch) add(path string, n node) error {
	if !fs.ValidPath(path) || path == "." {
		return fmt.Errorf("%w: path %q", ErrTree, path)
	}
	at := b
	for name := range strings.SplitSeq(path, "/") {
		if len(name) > maxName {
			return fmt.Errorf("%w: path %q", ErrTree, path)
		}
		next := at.kids[name]
		if next == nil {
			if at.node != nil {
				return fmt.Errorf("%w: %q is below a file", ErrTree, path)
			}
			next = &branch{owner: b.owner}
			if at.kids == nil {
				at.kids = map[string]*branch{}
			}
			at.kids[name] = next
		}
		at = next
	}
	if n != nil && (at.node != nil || at.kids != nil) || n == nil && at.node != nil {
		return fmt.Errorf("%w: %q is there twice", ErrTree, path)
	}
	at.node = n
	return nil
}
