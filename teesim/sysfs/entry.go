package sysfs

import (
	"context"
	"fmt"
	"sync"
	"syscall"
)

// entry is one directory of configfs-tsm.
type entry struct {
	group  *group
	name   string
	number uint64 // different for every entry of a mount

	mu        sync.Mutex
	dead      bool // removed
	inblob    []byte
	privlevel uint
	written   uint64         // the generation: how often something was written
	read      uint64         // the generation the last report was made of
	made      *blobs         // that report, nil after a failure
	closing   []*inblobWrite // written to, and closed at least once
}

// blobs is a report and what belongs to it. Its slices never change.
type blobs struct{ out, aux []byte }

// view locks the entry, brings it up to date and calls f. Errors: ENOENT when
// the entry was removed, and those of f.
func (e *entry) view(f func() error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.dead {
		return syscall.ENOENT
	}
	for _, w := range e.closing {
		e.take(w)
	}
	e.closing = nil
	return f()
}

// advance counts a write. Errors: EBUSY where the counter would come round to
// the generation that was read. The caller holds the lock.
func (e *entry) advance() error {
	if e.written == e.read-1 {
		return syscall.EBUSY
	}
	e.written++
	return nil
}

// generation is how often the entry was written to.
func (e *entry) generation() (text string, err error) {
	err = e.view(func() error { text = fmt.Sprintf("%d\n", e.written); return nil })
	return text, err
}

// line returns a text that stays the same as long as the entry is there.
func (e *entry) line(s string) func() (string, error) {
	return func() (string, error) { return s + "\n", e.view(func() error { return nil }) }
}

// removed reports whether the entry was removed.
func (e *entry) removed() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.dead
}

// setPrivlevel takes over what was written to privlevel.
// Errors: EINVAL, ERANGE, EBUSY, ENOENT.
func (e *entry) setPrivlevel(text []byte) error {
	level, err := parseUint(text)
	if err != nil {
		return err
	}
	return e.view(func() error {
		if level > maxPrivlevel {
			return syscall.EINVAL
		}
		if err := e.advance(); err != nil {
			return err
		}
		e.privlevel = uint(level)
		return nil
	})
}

// question is what a report is made of.
type question struct {
	inblob     []byte
	privlevel  uint
	generation uint64
}

// current returns the report of the present generation or, if there is none,
// the question to ask. Errors: EINVAL without report data, ENOENT.
func (e *entry) current() (made *blobs, q question, err error) {
	err = e.view(func() error {
		switch {
		case len(e.inblob) == 0:
			return syscall.EINVAL
		case e.made != nil && e.read == e.written:
			made = e.made
		}
		q = question{e.inblob, e.privlevel, e.written}
		return nil
	})
	return made, q, err
}

// report returns the report over what was written, and makes it if that was not
// done yet. Errors: EINVAL without report data or where the driver wants another
// length of it, EINTR, ENOENT, and those of the provider.
func (e *entry) report(ctx context.Context) (*blobs, error) {
	if made, _, err := e.current(); made != nil || err != nil {
		return made, err
	}
	if err := e.group.gate.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer e.group.gate.Release(1)
	made, q, err := e.current() // another reader may have made it meanwhile
	if made != nil || err != nil {
		return made, err
	}
	made, err = e.group.ask(ctx, q)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.made = made
	if err == nil {
		e.read = q.generation
	}
	return made, err
}

// outblob returns the report. Errors: those of report.
func (e *entry) outblob(ctx context.Context) ([]byte, error) {
	made, err := e.report(ctx)
	if err != nil {
		return nil, err
	}
	return made.out, nil
}

// auxblob returns what belongs to the report. Errors: those of report.
func (e *entry) auxblob(ctx context.Context) ([]byte, error) {
	made, err := e.report(ctx)
	if err != nil {
		return nil, err
	}
	return made.aux, nil
}
