package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/sealpod/sealpod/podvm"
)

// Dir is a Store in a directory: DIR/NAMESPACE/KEY with "/" of a key written
// as the four characters \x2F, directories 0700, files 0600. A value is
// written to a temporary file, synced and renamed, so that a crash leaves the
// old or the new one. No path can leave the directory (os.Root).
type Dir struct {
	root *os.Root
	// count serialises writers that add keys, for the cap.
	count sync.Mutex
}

// temporary starts the name of a file being written; no key has a file name
// that starts with a dot.
const temporary = ".tmp-"

// OpenDir opens the store in the directory path, making it if there is none,
// and removes what an interrupted write left. A directory that others than its
// owner can enter is refused: it holds secrets.
func OpenDir(path string) (*Dir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("making the store %s: %w", path, err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("opening the store %s: %w", path, err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("opening the store %s: mode %#o lets others in, and it holds secrets; try: chmod 700 %s",
			path, info.Mode().Perm(), path)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("opening the store %s: %w", path, err)
	}
	d := &Dir{root: root}
	for _, ns := range []Namespace{KBS, Repository, AttestationPolicy, ReferenceValue, RelyingParty} {
		if err := d.prepare(ns); err != nil {
			return nil, errors.Join(fmt.Errorf("opening the store %s: %w", path, err), root.Close())
		}
	}
	return d, nil
}

// prepare makes the directory of a namespace and clears leftovers. Another
// process that writes to the same store at this moment loses that one write
// with an error, never data.
func (d *Dir) prepare(ns Namespace) error {
	if err := d.root.MkdirAll(string(ns), 0o700); err != nil {
		return err
	}
	names, err := d.names(ns)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !strings.HasPrefix(name, temporary) {
			continue
		}
		if err := d.root.Remove(filepath.Join(string(ns), name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Close releases the directory. The store must not be used after it.
func (d *Dir) Close() error { return d.root.Close() }

// Get implements Store.
func (d *Dir) Get(ctx context.Context, ns Namespace, key string) ([]byte, error) {
	path, err := d.path(ctx, ns, key)
	if err != nil {
		return nil, err
	}
	f, err := d.root.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s in %s", ErrNotFound, key, ns)
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s in %s: %w", key, ns, err)
	}
	defer f.Close() //nolint:errcheck // read-only
	b, err := podvm.ReadMax(f, MaxValueBytes)
	if err != nil {
		return nil, fmt.Errorf("reading %s in %s: %w", key, ns, err)
	}
	return b, nil
}

// Put implements Store.
func (d *Dir) Put(ctx context.Context, ns Namespace, key string, value []byte) error {
	return d.write(ctx, ns, key, value, d.root.Rename)
}

// Create implements Store. A hard link, unlike a rename, never replaces.
func (d *Dir) Create(ctx context.Context, ns Namespace, key string, value []byte) error {
	return d.write(ctx, ns, key, value, func(tmp, path string) error {
		err := d.root.Link(tmp, path)
		if errors.Is(err, fs.ErrExist) {
			err = ErrExists
		}
		return errors.Join(err, d.root.Remove(tmp))
	})
}

func (d *Dir) write(ctx context.Context, ns Namespace, key string, value []byte, publish func(tmp, path string) error) error {
	path, err := d.path(ctx, ns, key)
	if err != nil {
		return err
	}
	if err := checkValue(value); err != nil {
		return err
	}
	d.count.Lock()
	defer d.count.Unlock()
	if err := d.checkRoom(ns, path); err != nil {
		return err
	}
	tmp := filepath.Join(string(ns), temporary+rand.Text())
	if err := d.writeFile(tmp, value); err != nil {
		return errors.Join(fmt.Errorf("writing %s in %s: %w", key, ns, err), ignoreMissing(d.root.Remove(tmp)))
	}
	if err := publish(tmp, path); err != nil {
		return errors.Join(fmt.Errorf("writing %s in %s: %w", key, ns, err), ignoreMissing(d.root.Remove(tmp)))
	}
	return d.sync(ns)
}

// checkRoom refuses a new key of a full namespace.
func (d *Dir) checkRoom(ns Namespace, path string) error {
	if _, err := d.root.Lstat(path); err == nil {
		return nil
	}
	names, err := d.names(ns)
	if err != nil {
		return err
	}
	if len(names) >= MaxKeys {
		return fmt.Errorf("%w: %s has %d keys", ErrFull, ns, MaxKeys)
	}
	return nil
}

func (d *Dir) writeFile(path string, value []byte) (err error) {
	f, err := d.root.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(value); err != nil {
		return err
	}
	return f.Sync()
}

// sync makes a rename or removal in the directory of ns outlive a power cut.
func (d *Dir) sync(ns Namespace) (err error) {
	f, err := d.root.Open(string(ns))
	if err != nil {
		return fmt.Errorf("syncing %s: %w", ns, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("syncing %s: %w", ns, err)
	}
	return nil
}

// Delete implements Store.
func (d *Dir) Delete(ctx context.Context, ns Namespace, key string) error {
	path, err := d.path(ctx, ns, key)
	if err != nil {
		return err
	}
	err = d.root.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s in %s", ErrNotFound, key, ns)
	}
	if err != nil {
		return fmt.Errorf("deleting %s in %s: %w", key, ns, err)
	}
	return d.sync(ns)
}

// List implements Store. Files that are no key of this store are left out.
func (d *Dir) List(ctx context.Context, ns Namespace) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	names, err := d.names(ns)
	if err != nil {
		return nil, err
	}
	var keys []string
	for _, name := range names {
		if key := keyOf(name); CheckKey(key) == nil {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys, nil
}

// names returns the file names in the directory of ns.
func (d *Dir) names(ns Namespace) ([]string, error) {
	f, err := d.root.Open(string(ns))
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", ns, err)
	}
	defer f.Close() //nolint:errcheck // read-only
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", ns, err)
	}
	return names, nil
}

func (d *Dir) path(ctx context.Context, ns Namespace, key string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if err := CheckKey(key); err != nil {
		return "", err
	}
	return filepath.Join(string(ns), fileName(key)), nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
