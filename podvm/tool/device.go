package tool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
)

// PrivateDir makes a directory for this user alone, in ones that others may look
// into.
func PrivateDir(path string) error {
	return errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.MkdirAll(path, 0o700))
}

// Lock keeps every other holder of the file path out, in any process, until
// unlock or death. The file and its directory are made if missing, and stay.
func Lock(ctx context.Context, path string) (unlock func(), err error) {
	if err := PrivateDir(filepath.Dir(path)); err != nil {
		return nil, Explain("preparing a lock", err, "the state of the volume cannot be kept")
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, Explain("preparing a lock", err, "the state of the volume cannot be kept")
	}
	busy := func(err error) bool { return errors.Is(err, unix.EWOULDBLOCK) }
	if err := Retry(ctx, 10*time.Millisecond, busy, func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }); err != nil {
		f.Close()
		return nil, podvm.Explain(fmt.Errorf("waiting for another request: %w", err), "another request for the same volume is still running")
	}
	return func() { f.Close() }, nil
}

// Signature names what blkid finds on a device, partition tables included, or
// "" when it finds nothing; a device can carry both kinds. blkid knows what the forwarder, which decides with
// it too, takes for data.
func (r Runner) Signature(ctx context.Context, device string) (string, error) {
	const nothing = 2
	out, err := r.Run(ctx, nil, "blkid", "--probe", "--output", "export", "--", device)
	var exit *ExitError
	switch {
	case errors.As(err, &exit) && exit.Code == nothing:
		return "", nil
	case err != nil && exit == nil:
		return "", Explain("looking for data on the device", err, "blkid could not look for data on the device")
	}
	var kinds []string
	for _, name := range []string{"TYPE=", "PTTYPE="} {
		for line := range strings.Lines(string(out)) {
			if kind, ok := strings.CutPrefix(line, name); ok {
				kinds = append(kinds, podvm.Printable(strings.TrimSpace(kind), 32))
			}
		}
	}
	if len(kinds) == 0 && (err != nil || !onlyEntry(out)) {
		return "something that blkid cannot tell", nil // it is ambivalent
	}
	return strings.Join(kinds, " and "), nil
}

// onlyEntry tells whether blkid has said nothing of what is on the device, but what
// the table of the disk says that this is a partition of.
func onlyEntry(out []byte) bool {
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "DEVNAME=") && !strings.HasPrefix(line, "PART_ENTRY_") {
			return false
		}
	}
	return true
}

// Foreign is the error for a device that carries what Signature found.
func Foreign(found string) error {
	return podvm.Explain(fmt.Errorf("%w: %s", ErrForeign, found),
		"the device carries data ("+found+") and was not formatted; wipe it (wipefs --all) if that is not needed")
}
