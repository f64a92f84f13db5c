package sysfs

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/semaphore"
)

// Limits of the kernel. Source: Linux include/linux/tsm.h at 6.7 to 6.18, where
// they are TSM_(REPORT_)INBLOB_MAX, OUTBLOB_MAX and PRIVLEVEL_MAX, and
// drivers/virt/coco/tdx-guest getquote_timeout.
const (
	maxInblob     = 64
	maxBlob       = 32 << 10
	maxPrivlevel  = 3
	reportTimeout = 30 * time.Second
)

// maxEntries caps the entries of a mount. The kernel has no cap but memory; this
// leaves room for clients that forget to remove theirs.
const maxEntries = 1024

// driver is what the kernel's driver of a TEE asks for and shows.
type driver struct {
	reportData int      // length inblob must have, in bytes
	attributes []string // of an entry
}

// drivers are the known ones. Source: tdx_report_attr_visible in
// drivers/virt/coco/tdx-guest and sev_report_attr_visible in
// drivers/virt/coco/sev-guest, of a guest without an SVSM; both refuse report
// data that is not of 64 bytes.
var drivers = map[string]driver{
	"tdx_guest": {64, []string{"generation", "provider", "inblob", "outblob"}},
	"sev_guest": {64, []string{"generation", "provider", "privlevel", "privlevel_floor", "inblob", "outblob", "auxblob"}},
}

// group is the directory report of configfs-tsm.
type group struct {
	ctx      context.Context // of the mount
	log      *slog.Logger
	provider Provider
	driver   driver
	gate     *semaphore.Weighted // one report is made at a time

	mu      sync.Mutex
	entries map[string]*entry
	last    uint64 // number of the last entry made
}

// make makes an entry. Errors: ENXIO without a provider, ENOMEM at the cap.
func (g *group) make(name string) (*entry, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case len(name) > maxName:
		return nil, syscall.ENAMETOOLONG
	case g.entries[name] != nil:
		return nil, syscall.EEXIST
	case g.provider == nil:
		return nil, syscall.ENXIO
	case len(g.entries) >= maxEntries:
		g.log.Warn("Too many report entries: a program does not remove its own", "entries", len(g.entries))
		return nil, syscall.ENOMEM
	}
	g.last++
	e := &entry{group: g, name: name, number: g.last}
	g.entries[name] = e
	return e, nil
}

func (g *group) find(name string) *entry {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.entries[name]
}

// list returns the entries in no order.
func (g *group) list() []*entry {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make([]*entry, 0, len(g.entries))
	for _, e := range g.entries {
		out = append(out, e)
	}
	return out
}

// remove removes an entry with all that was written to it. Files of it that are
// open answer ENOENT from now on.
func (g *group) remove(name string) error {
	g.mu.Lock()
	e := g.entries[name]
	delete(g.entries, name)
	g.mu.Unlock()
	if e == nil {
		return syscall.ENOENT
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.dead, e.made, e.inblob, e.closing = true, nil, nil, nil
	return nil
}

// ask has the provider make a report. Errors: EINVAL where the driver wants
// other report data, ENODEV when the mount ends, and those of the provider,
// which are logged.
func (g *group) ask(ctx context.Context, q question) (*blobs, error) {
	if len(q.inblob) != g.driver.reportData {
		return nil, syscall.EINVAL
	}
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	defer context.AfterFunc(g.ctx, cancel)()
	if g.ctx.Err() != nil {
		return nil, syscall.ENODEV
	}
	out, aux, err := g.provider.Report(ctx, bytes.Clone(q.inblob), q.privlevel)
	if err != nil {
		g.log.Warn("No report was made", "provider", g.provider.Name(), "err", err)
		return nil, fromProvider(err)
	}
	return &blobs{out, aux}, nil
}
