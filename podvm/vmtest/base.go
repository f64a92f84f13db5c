package vmtest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm/debian"
	"github.com/sealpod/sealpod/podvm/vmtest/internal/wire"
)

// recipe is what every machine is made of.
type recipe struct {
	suite    string   // Debian's, with a kernel that has configfs-tsm
	packages []string // with all they depend on
	files    []string // of these packages, with the libraries they need
	modules  []string // of the kernel, with the modules they need
}

var standard = recipe{
	suite:    "trixie",
	packages: []string{"linux-image-cloud-amd64", "cryptsetup-bin", "dmsetup", "e2fsprogs", "mount", "util-linux"},
	files: []string{
		"usr/sbin/cryptsetup", "usr/sbin/integritysetup", "usr/sbin/veritysetup", "usr/sbin/dmsetup",
		"usr/sbin/mkfs.ext4", "usr/sbin/e2fsck", "usr/sbin/dumpe2fs", "etc/mke2fs.conf",
		"usr/sbin/blkid", "usr/sbin/losetup", "usr/bin/mount", "usr/bin/umount", "usr/bin/dmesg",
		// cryptsetup's threads load it by name when they end.
		"usr/lib/x86_64-linux-gnu/libgcc_s.so.1",
	},
	modules: []string{
		"virtio_blk", "virtio_net", "loop", "overlay", "squashfs", "configfs",
		"dm_crypt", "dm_integrity", "dm_verity", "dm_flakey",
		"xts", "authenc", "aesni_intel", "algif_skcipher", "algif_hash",
	},
}

// fetchTime bounds the making of a base, most of which is a download of 60 MB.
const fetchTime = 5 * time.Minute

// base is a kernel and the initramfs common to all machines, as files.
type base struct{ kernel, initramfs string }

// ensureBase returns the base of r from the directory cache, which it makes
// where that has not been done. Processes that want it wait for each other.
func ensureBase(ctx context.Context, cache string, r recipe) (base, error) {
	// The name changes with the recipe; the code that follows it is version 1.
	id := sha256.Sum256(fmt.Appendf(nil, "1 %q", []any{r.suite, r.packages, r.files, r.modules}))
	dir := filepath.Join(cache, fmt.Sprintf("%s-%x", r.suite, id[:6]))
	b := base{filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initramfs.cpio")}
	if _, err := os.Stat(dir); err == nil {
		return b, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return base{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	unlock, err := lock(ctx, filepath.Join(cache, "lock"))
	if err != nil {
		return base{}, fmt.Errorf("waiting for whoever is making the base: %w", err)
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil {
		return b, nil
	}
	if err := makeBase(ctx, r, dir); err != nil {
		return base{}, fmt.Errorf("making the machines' kernel and initramfs: %w", err)
	}
	return b, nil
}

// makeBase makes the base as the directory dir, all or nothing. The caller
// holds the lock.
func makeBase(ctx context.Context, r recipe, dir string) (err error) {
	part := dir + ".part"
	if err := os.RemoveAll(part); err != nil { // of a process that was killed
		return err
	}
	if err := os.Mkdir(part, 0o755); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(part))
		}
	}()
	all, _, err := debian.Fetch(ctx, debian.Source{Suite: r.suite, Packages: r.packages})
	if err != nil {
		return err
	}
	kernel, err := all.Glob("boot/vmlinuz-*")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(part, "vmlinuz"), kernel.Data, 0o644); err != nil {
		return err
	}
	archive, err := r.initramfs(ctx, all)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(part, "initramfs.cpio"), archive, 0o644); err != nil {
		return err
	}
	return os.Rename(part, dir)
}

// initramfs picks what r names out of all.
func (r recipe) initramfs(ctx context.Context, all debian.Tree) ([]byte, error) {
	pick, err := all.Closure(r.files)
	if err != nil {
		return nil, err
	}
	modules, err := all.Modules(ctx, r.modules)
	if err != nil {
		return nil, err
	}
	for i, m := range modules {
		pick[fmt.Sprintf("%s/%03d-%s.ko", strings.TrimPrefix(wire.ModuleDir, "/"), i, m.Name)] = debian.File(0o644, m.Data)
	}
	// Debian merged these into /usr, but no package brings the links.
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		pick[name] = debian.Link("usr/" + name)
	}
	pick["dev/console"] = debian.Node{Mode: unix.S_IFCHR | 0o600, Major: 5, Minor: 1}
	pick["root/.keep"] = debian.File(0o600, nil)
	return pick.CPIO(), nil
}

// lock waits for the lock of the file path.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			_ = f.Close()
			return nil, err
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, context.Cause(ctx)
		case <-again.C:
		}
	}
}

// moduleRoot is the folder above the working directory that has go.mod.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("no go.mod above the working directory")
		}
		dir = up
	}
}
