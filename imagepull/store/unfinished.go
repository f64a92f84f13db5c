package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/moby/sys/mountinfo"

	"github.com/sealpod/sealpod/podvm"
)

// A pull that is killed undoes nothing. So each layer and each mount has a mark,
// an empty file of its name below unfinished/, from before it appears until
// the pull has succeeded, and what still has one when a process opens the store
// goes as if the pull had failed.

// markUnfinished makes the mark of a layer or an overlay.
func (s *Store) markUnfinished(name string) error {
	f, err := os.OpenFile(s.path("unfinished", name), os.O_WRONLY|os.O_CREATE, 0o600)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return fmt.Errorf("marking what is unfinished: %w", err)
	}
	return nil
}

// finished takes a mark away.
func (s *Store) finished(name string) error {
	if err := os.Remove(s.path("unfinished", name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unmarking what is finished: %w", err)
	}
	return nil
}

// rollback undoes what processes before this one were killed over. Directories
// of overlays are left to sweep.
func (s *Store) rollback(ctx context.Context) error {
	marks, err := os.ReadDir(s.path("unfinished"))
	if err != nil {
		return err
	}
	unfinished := map[string]bool{}
	for _, d := range marks {
		unfinished[d.Name()] = true
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !s.probing(m) && !unfinished[mountID(m)], false
	})
	if err != nil {
		return fmt.Errorf("reading the mount table: %w", err)
	}
	for _, m := range mounts {
		target := podvm.Printable(m.Mountpoint, 300)
		if err := takeOff(m); errors.Is(err, errNotOnTop) {
			s.log.Warn("A mount that an earlier process was killed over stays, it is covered by another one", "target", target)
			delete(unfinished, mountID(m)) // and its mark stays
		} else if err != nil {
			return err
		} else {
			s.log.Warn("Took off a mount that an earlier process was killed over", "target", target)
		}
	}
	for name := range unfinished {
		if layerName.MatchString(name) {
			if err := removeAll(ctx, s.path("layers", name)); err != nil {
				return err
			}
		}
		if err := s.finished(name); err != nil {
			return err
		}
	}
	return nil
}

// probing says whether m is a mount that probe made.
func (s *Store) probing(m *mountinfo.Info) bool {
	rest, ours := strings.CutPrefix(m.Mountpoint, s.path("tmp", "probe-"))
	number, ours2 := strings.CutSuffix(rest, "/rootfs")
	return ours && ours2 && m.FSType == "overlay" && strings.Trim(number, "0123456789") == ""
}
