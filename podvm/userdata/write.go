package userdata

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
)

// order is how files appear. Each appearance may start a unit that reads files
// before it; the attestation agent, which starts the rest, comes last.
func order() []string {
	return []string{policyFile, authFile, hubFile, forwarderFile, initDataFile, digestFile, scratchFile, agentFile}
}

// mode returns the permissions of a file: as upstream, but nobody but root reads
// the server's key and the registries' passwords. Their readers, the forwarder
// and the data hub, are root.
func mode(path string) os.FileMode {
	if path == forwarderFile || path == authFile {
		return 0o600
	}
	return 0o644
}

// staging is the prefix of the directory where files are made.
const staging = ".new-"

// write puts files in place, each whole. All are made before the first is moved
// to its name; what goes wrong after that takes those away that have moved, so
// that nothing starts on a part of them.
func write(host podvm.Host, files map[string][]byte) (err error) {
	at := host.Path(dir)
	if err := os.MkdirAll(at, 0o755); err != nil {
		return fmt.Errorf("making %s: %w", dir, err)
	}
	lock, err := os.Open(at)
	if err != nil {
		return fmt.Errorf("opening %s: %w", dir, err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("writing files: another run is at it: %w", err)
	}
	left, err := filepath.Glob(filepath.Join(at, staging+"*"))
	if err != nil {
		return fmt.Errorf("looking for what a run before left: %w", err)
	}
	for _, l := range left {
		if err := os.RemoveAll(l); err != nil {
			return fmt.Errorf("removing what a run before left: %w", err)
		}
	}
	tmp, err := os.MkdirTemp(at, staging)
	if err != nil {
		return fmt.Errorf("writing files: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	for path, content := range files {
		if err := create(filepath.Join(tmp, filepath.Base(path)), content, mode(path)); err != nil {
			return fmt.Errorf("writing %s: %w", path, err)
		}
	}
	var moved []string
	for _, path := range order() {
		if _, ok := files[path]; !ok {
			continue
		}
		to := host.Path(path)
		if err := os.Rename(filepath.Join(tmp, filepath.Base(path)), to); err != nil {
			err = fmt.Errorf("putting %s in place: %w", path, err)
			for _, m := range moved {
				err = errors.Join(err, os.Remove(m))
			}
			return err
		}
		moved = append(moved, to)
	}
	return nil
}

func create(path string, content []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	// Not by OpenFile: the umask would have a say.
	return errors.Join(err, f.Chmod(mode), f.Close())
}
