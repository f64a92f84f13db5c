package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
)

// Lease is what one pull holds and has done so far. Keep makes it permanent;
// Release undoes everything else. Layer may be called concurrently, the other
// methods may not.
type Lease struct {
	store *Store
	held  map[string]*entry // by directory name, guarded by store.mu
	undo  []func() error    // run backwards by Release
	done  []string          // marks to be taken away by Keep
}

// Begin starts a Lease.
func (s *Store) Begin() *Lease {
	return &Lease{store: s, held: map[string]*entry{}}
}

// Layer makes sure that the layer is in the store and holds it. If it is not,
// fill gets an empty directory (mode 0755) to put it in, and a nil error from
// fill is the statement that every check has passed. Only one fill runs per
// layer; others who want it wait, and fill it themselves should that one fail.
// cached says that fill was not called.
//
// Errors: those of fill, the cause of ctx.
func (l *Lease) Layer(ctx context.Context, id ID, fill func(ctx context.Context, dir string) error) (cached bool, err error) {
	s := l.store
	name := s.name(id)
	for {
		wait, mine := l.claim(name)
		switch {
		case mine:
			err := s.stage(ctx, name, fill)
			l.settle(name, err)
			return false, err
		case wait == nil:
			return true, nil
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}

// claim holds a committed layer (nil, false), returns what to wait for while
// someone else stages it, or makes staging it the caller's task (nil, true).
func (l *Lease) claim(name string) (wait <-chan struct{}, mine bool) {
	s := l.store
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.layers[name]
	if e != nil && e.filling == nil && e.refs == 0 {
		if _, err := os.Lstat(s.path("layers", name)); errors.Is(err, fs.ErrNotExist) {
			e = nil // someone cleaned up by hand
		}
	}
	switch {
	case e == nil:
		s.layers[name] = &entry{filling: make(chan struct{})}
		return nil, true
	case e.filling != nil:
		return e.filling, false
	}
	l.hold(name, e)
	return nil, false
}

func (l *Lease) hold(name string, e *entry) {
	if l.held[name] == nil {
		l.held[name] = e
		e.refs++
	}
}

// settle ends the staging of a layer.
func (l *Lease) settle(name string, err error) {
	s := l.store
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.layers[name]
	close(e.filling)
	e.filling = nil
	if err != nil {
		delete(s.layers, name)
		return
	}
	l.hold(name, e)
}

// stage lets fill work in tmp/ and commits the result by rename.
func (s *Store) stage(ctx context.Context, name string, fill func(context.Context, string) error) (err error) {
	dir, err := os.MkdirTemp(s.path("tmp"), "layer-")
	if err != nil {
		return fmt.Errorf("creating a staging directory: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeAll(context.WithoutCancel(ctx), dir))
		}
	}()
	if err := os.Chmod(dir, 0o755); err != nil {
		return fmt.Errorf("preparing a staging directory: %w", err)
	}
	if err := fill(ctx, dir); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	// One of that name may have been removed by hand.
	if err := errors.Join(s.forgetImplied(name), s.markUnfinished(name)); err != nil {
		return err
	}
	if err := os.Rename(dir, s.path("layers", name)); err != nil {
		return fmt.Errorf("committing a layer: %w", errors.Join(err, s.finished(name)))
	}
	return nil
}

// Keep makes everything done under the lease permanent, also for processes to
// come. Release does nothing afterwards, and everything if Keep fails.
func (l *Lease) Keep() error {
	l.store.mu.Lock()
	defer l.store.mu.Unlock()
	var marks []string
	for name, e := range l.held {
		if !e.keep {
			marks = append(marks, name)
		}
	}
	// The mount's mark goes last: killed before that, the next process takes
	// the mount off, and not layers from below it.
	for _, name := range append(marks, l.done...) {
		if err := l.store.finished(name); err != nil {
			return err
		}
	}
	for _, e := range l.held {
		e.keep = true
		e.refs--
	}
	l.held, l.undo, l.done = nil, nil, nil
	return nil
}

// Release undoes what was done under the lease: mount, merged directory,
// created directories, and layers that no pull has completed with and nobody
// else holds. It may be called more than once.
func (l *Lease) Release() error {
	var errs []error
	for _, undo := range slices.Backward(l.undo) {
		errs = append(errs, undo())
	}
	l.undo = nil
	for _, dir := range l.drop() {
		errs = append(errs, removeAll(context.Background(), dir))
	}
	return errors.Join(errs...)
}

// drop lets go of the held layers and moves those that nobody wants to tmp/,
// where it returns them. One that cannot be moved stays whole, with its mark:
// removed where it is, what a kill left of it would pass for verified.
func (l *Lease) drop() []string {
	s := l.store
	s.mu.Lock()
	defer s.mu.Unlock()
	var dirs []string
	for name, e := range l.held {
		if e.refs--; e.refs > 0 || e.keep {
			continue
		}
		dir, away := s.path("layers", name), s.path("tmp", "drop-"+name)
		// No directory is made for it: there may be no space.
		if err := os.Rename(dir, away); err == nil {
			dirs = append(dirs, away)
			if err := s.forgetImplied(name); err != nil {
				s.log.Warn("What is known of a layer that went stays until the next start", "layer", name, "err", err)
			}
		} else if _, gone := os.Lstat(dir); !errors.Is(gone, fs.ErrNotExist) {
			s.log.Warn("Layer of a failed pull stays until the next start", "layer", name, "err", err)
			continue
		}
		delete(s.layers, name)
		if err := s.finished(name); err != nil {
			s.log.Warn("Mark of an unfinished layer stays", "layer", name, "err", err)
		}
	}
	l.held = nil
	return dirs
}
