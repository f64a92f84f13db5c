package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/imagepull/layer"
	"github.com/sealpod/sealpod/podvm"
)

// ErrBusy says that another process uses the work directory.
var ErrBusy = errors.New("image store is in use by another process")

// Options configures Open.
type Options struct {
	// Plain merges layers into a directory even where overlayfs can be used.
	Plain bool
	// Host is where the boot id is read.
	Host podvm.Host
	// Log receives warnings; nil means slog.Default.
	Log *slog.Logger
}

// Store is a work directory. It is safe for concurrent use.
type Store struct {
	dir  string // absolute
	mode layer.Mode
	log  *slog.Logger
	lock *os.File

	mu     sync.Mutex
	layers map[string]*entry   // by directory name
	mounts map[string]struct{} // ids below overlay/ that are being set up
}

// entry is one layer, staged or committed.
type entry struct {
	filling chan struct{} // closed when staging ends; nil for a committed layer
	refs    int           // leases that hold it
	keep    bool          // belongs to an image that was pulled completely
}

// ID names a layer by what it was and what it became. Neither alone is enough:
// the same blob under another config promises other content. Nor is a layer
// that was fetched plain ever one that had to be decrypted, or a manifest could
// pass off the one as the other.
type ID struct {
	Blob      string // digest of the blob in the registry
	DiffID    string // digest of the plain tar
	Encrypted bool   // the blob was decrypted
}

// Open takes hold of the work directory dir, creates it if needed, and removes
// what earlier processes left unfinished. Where overlayfs is not permitted
// (EPERM, EACCES) it warns and works in Plain mode.
//
// Errors: ErrBusy, the cause of ctx.
func Open(ctx context.Context, dir string, opts Options) (_ *Store, err error) {
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, fmt.Errorf("resolving %s: %w", dir, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("creating the image store: %w", err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil { // as the mount table has it
		return nil, fmt.Errorf("opening the image store: %w", err)
	}
	s := &Store{dir: dir, log: opts.Log, layers: map[string]*entry{}, mounts: map[string]struct{}{}}
	if s.lock, err = lockFile(s.path("lock")); err != nil {
		return nil, fmt.Errorf("opening the image store %s: %w", dir, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.lock.Close())
		}
	}()
	if err := s.recover(ctx, opts.Host); err != nil {
		return nil, fmt.Errorf("opening the image store %s: %w", dir, err)
	}
	if s.mode, err = s.chooseMode(opts.Plain); err != nil {
		return nil, fmt.Errorf("opening the image store %s: %w", dir, err)
	}
	if err := s.sweep(ctx); err != nil {
		return nil, fmt.Errorf("opening the image store %s: %w", dir, err)
	}
	return s, nil
}

// Close lets go of the work directory. Layers and mounts stay. No Lease may be
// open.
func (s *Store) Close() error { return s.lock.Close() }

// Mode is how layers have to be unpacked for this store.
func (s *Store) Mode() layer.Mode { return s.mode }

// Free is how many bytes the file system of the work directory can still take;
// as many as an int64 holds where it sets no limit.
func (s *Store) Free() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return 0, fmt.Errorf("examining the file system of %s: %w", s.dir, err)
	}
	return free(st), nil
}

// free reads what statfs(2) says. Blocks are counted in fragments, where a file
// system knows them; one that says nothing usable sets no limit.
// Source: statvfs(3); linux v6.12 fs/statfs.c statfs_by_dentry.
func free(st unix.Statfs_t) int64 {
	unit := st.Frsize
	if unit <= 0 {
		unit = st.Bsize
	}
	if st.Blocks == 0 || unit <= 0 || st.Bavail > math.MaxInt64/uint64(unit) { // a tmpfs without a size
		return math.MaxInt64
	}
	return int64(st.Bavail) * unit
}

// Has says whether the layer is there, verified.
func (s *Store) Has(id ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.layers[s.name(id)]
	return e != nil && e.filling == nil
}

// Begun says whether the layer is there or somebody is about to put it there.
func (s *Store) Begun(id ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.layers[s.name(id)] != nil
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

const plainSuffix = ".plain"

var layerName = regexp.MustCompile(`^[0-9a-f]{64}(\.plain)?$`)

// name is the directory of a layer below layers/. The two modes lay layers out
// differently and never share one.
func (s *Store) name(id ID) string {
	text := id.Blob + "\n" + id.DiffID
	if id.Encrypted {
		text += "\nencrypted"
	}
	sum := sha256.Sum256([]byte(text))
	name := hex.EncodeToString(sum[:])
	if s.mode == layer.Plain {
		name += plainSuffix
	}
	return name
}

func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrBusy
		}
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// recover creates the layout, undoes what is unfinished, empties tmp/ and takes
// stock of layers/.
func (s *Store) recover(ctx context.Context, host podvm.Host) error {
	for _, d := range []string{"implied", "layers", "overlay", "tmp", "unfinished"} {
		if err := os.MkdirAll(s.path(d), 0o700); err != nil {
			return err
		}
	}
	if err := s.rollback(ctx); err != nil {
		return err
	}
	if err := removeAll(ctx, s.path("tmp")); err != nil {
		return err
	}
	if err := os.Mkdir(s.path("tmp"), 0o700); err != nil {
		return err
	}
	boot, err := podvm.ReadFileMax(host.Path("/proc/sys/kernel/random/boot_id"), 128)
	if err != nil {
		s.log.Warn("Boot id not readable, layers of earlier runs are dropped", "err", err)
	}
	before, err := podvm.ReadFileMax(s.path("boot_id"), 128)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, podvm.ErrTooLarge) {
		return err
	}
	if len(boot) == 0 || !bytes.Equal(boot, before) {
		if err := s.forget(ctx); err != nil {
			return err
		}
		if err := os.WriteFile(s.path("boot_id"), boot, 0o600); err != nil {
			return err
		}
	}
	list, err := os.ReadDir(s.path("layers"))
	if err != nil {
		return err
	}
	for _, d := range list {
		if !d.IsDir() || !layerName.MatchString(d.Name()) {
			s.log.Warn("Foreign entry in the layer store ignored", "name", podvm.Printable(d.Name(), 128))
			continue
		}
		s.layers[d.Name()] = &entry{keep: true}
	}
	known, err := os.ReadDir(s.path("implied"))
	if err != nil {
		return err
	}
	for _, d := range known {
		if s.layers[d.Name()] != nil {
			continue
		}
		if err := s.forgetImplied(d.Name()); err != nil {
			return err
		}
	}
	return nil
}

// forget removes all layers: another boot left them.
func (s *Store) forget(ctx context.Context) error {
	list, err := os.ReadDir(s.path("layers"))
	if err != nil {
		return err
	}
	for _, d := range list {
		if !layerName.MatchString(d.Name()) {
			continue
		}
		if err := removeAll(ctx, s.path("layers", d.Name())); err != nil {
			return err
		}
	}
	return nil
}
