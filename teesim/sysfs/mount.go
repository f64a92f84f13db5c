package sysfs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	runtimedebug "runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
)

// What Mount and Close tell apart.
var (
	// ErrMounted says that another process has this directory mounted.
	ErrMounted = errors.New("a simulated machine is mounted there already")
	// ErrStale says that a mount whose process is gone is in the way.
	ErrStale = errors.New("the mount of a process that is gone is in the way")
	// ErrBusy says that the file system is unmounted but still in use.
	ErrBusy = errors.New("programs still use the unmounted file system")
)

// subtype is what the mount table calls this file system, after "fuse.".
const subtype = "sealpod-sysfs"

// closeTimeout bounds each wait of Close.
const closeTimeout = 10 * time.Second

// unchanging is how long the kernel may keep names and attributes. All changes
// pass through it, so it knows of each.
const unchanging = time.Hour

// maxRequest caps what one read or write moves, in bytes, and so what a program
// of the guest can have kept by many at once. A report fits.
const maxRequest = 64 << 10

// FS is a mounted file system.
type FS struct {
	dir    string
	conn   uint32             // number of the FUSE connection
	stop   context.CancelFunc // ends reports that are being made
	served chan struct{}      // closed when the last request was answered
	wait   time.Duration      // closeTimeout
	close  func() error
}

// Mount shows t at dir, which is made if it is not there. It needs /dev/fuse and
// either root or the program fusermount3. Only the user who mounts can use the
// file system, for whom it is as it is for root in a guest. What an earlier
// process left mounted there when it was killed is unmounted. ctx bounds the
// mounting; Close ends the file system.
//
// Errors: ErrTree, ErrMounted, ErrStale.
func Mount(ctx context.Context, dir string, t Tree) (*FS, error) {
	f, err := mount(ctx, dir, t)
	if err != nil {
		return nil, fmt.Errorf("mounting %s: %w", dir, err)
	}
	return f, nil
}

func mount(ctx context.Context, dir string, t Tree) (*FS, error) {
	if t.Log == nil {
		t.Log = slog.Default()
	}
	alive, stop := context.WithCancel(context.WithoutCancel(ctx))
	root, err := t.layout(alive)
	if err == nil {
		dir, err = mountPoint(ctx, dir)
	}
	if err != nil {
		stop()
		return nil, err
	}
	forever, debug := unchanging, slog.NewLogLogger(t.Log.Handler(), slog.LevelDebug)
	server, err := fuse.NewServer(fs.NewNodeFS(root, &fs.Options{EntryTimeout: &forever, AttrTimeout: &forever, Logger: debug}), dir, &fuse.MountOptions{
		// Root's mount fails for a reason, which what the helper says would hide.
		DirectMount: true, DirectMountStrict: os.Geteuid() == 0,
		Name: subtype, FsName: "sealpod", DisableXAttrs: true, MaxWrite: maxRequest,
		Options: []string{"default_permissions", "nosuid", "nodev", "noexec"},
		Logger:  debug,
		PanicHandler: func(v any) fuse.Status {
			t.Log.Error("A request panicked", "panic", v, "stack", string(runtimedebug.Stack()))
			return fuse.EIO
		},
	})
	if err != nil {
		stop()
		// What go-fuse says may end in a line end.
		return nil, fmt.Errorf("%s: it takes /dev/fuse and the right to mount, which Debian's package fuse3 gives users without root", strings.TrimSpace(err.Error()))
	}
	f := &FS{dir: dir, stop: stop, served: make(chan struct{}), wait: closeTimeout}
	f.close = sync.OnceValue(f.end)
	go func() {
		defer close(f.served)
		server.Serve()
	}()
	err = server.WaitMount()
	var st unix.Stat_t
	if err == nil {
		err = unix.Stat(dir, &st)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	f.conn = unix.Minor(st.Dev)
	return f, nil
}

// Dir returns where the file system is mounted, without symbolic links.
func (f *FS) Dir() string { return f.dir }

// Close unmounts the file system. Programs that still use it get errors; an
// ordinary user needs the kernel's fusectl for that (/sys/fs/fuse/connections),
// without which the file system goes on for such programs until they are done.
// It waits 10 s at most for each of two steps, and all calls return what the
// first did. Errors: ErrBusy.
func (f *FS) Close() error {
	if err := f.close(); err != nil {
		return fmt.Errorf("unmounting %s: %w", f.dir, err)
	}
	return nil
}

func (f *FS) end() error {
	f.stop()
	ctx, cancel := context.WithTimeout(context.Background(), f.wait)
	defer cancel()
	if m, err := mounted(f.dir); err != nil {
		return err
	} else if m != nil {
		if err := detach(ctx, f.dir, f.conn); err != nil {
			return err
		}
	}
	timeout := time.NewTimer(f.wait)
	defer timeout.Stop()
	select {
	case <-f.served:
		return nil
	case <-timeout.C:
		return ErrBusy
	}
}

// mountPoint returns dir without symbolic links, free to mount at.
// Errors: ErrMounted, ErrStale.
func mountPoint(ctx context.Context, dir string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	// Only its parent may be looked at while a stale mount may cover dir.
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if err != nil {
		return "", err
	}
	dir = filepath.Join(parent, filepath.Base(dir))
	for range maxStale {
		m, err := mounted(dir)
		if err != nil {
			return "", err
		}
		if m == nil {
			break
		}
		// What stat says may be what the kernel still knows; this asks.
		if err := unix.Statfs(dir, new(unix.Statfs_t)); !errors.Is(err, unix.ENOTCONN) {
			return "", fmt.Errorf("%w: if nobody uses it, umount %s", ErrMounted, dir)
		}
		if err := detach(ctx, dir, 0); err != nil {
			return "", fmt.Errorf("%w: try fusermount3 -u %s: %w", ErrStale, dir, err)
		}
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return filepath.EvalSymlinks(dir)
}

// maxStale is how many stale mounts on top of each other are cleared.
const maxStale = 8

// mounted returns the mount table's line if a file system of this package is on
// top at dir, nil otherwise. It does not look at dir, which may be stale.
func mounted(dir string) (*mountinfo.Info, error) {
	ms, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) { return i.Mountpoint != dir, false })
	if err != nil {
		return nil, fmt.Errorf("reading the mount table: %w", err)
	}
	if len(ms) == 0 || ms[len(ms)-1].FSType != "fuse."+subtype {
		return nil, nil
	}
	return ms[len(ms)-1], nil
}

// detach unmounts dir even if it is in use, and ends the FUSE connection so that
// its users get errors: by number, unless that is 0, where the kernel's file for
// it is mounted, and by force where that is allowed.
func detach(ctx context.Context, dir string, conn uint32) error {
	if conn != 0 {
		if a, err := os.OpenFile(fmt.Sprintf("/sys/fs/fuse/connections/%d/abort", conn), os.O_WRONLY, 0); err == nil {
			_, _ = a.WriteString("1")
			_ = a.Close()
		}
	}
	var err error
	for _, flags := range []int{unix.MNT_DETACH | unix.MNT_FORCE, unix.MNT_DETACH} {
		if err = unix.Unmount(dir, flags|unix.UMOUNT_NOFOLLOW); !errors.Is(err, unix.EPERM) {
			return err
		}
	}
	helper := mountHelper()
	out, herr := exec.CommandContext(ctx, helper, "-u", "-z", dir).CombinedOutput()
	if herr != nil {
		return fmt.Errorf("%w; %s: %w: %s", err, helper, herr, podvm.Printable(strings.TrimSpace(string(out)), 200))
	}
	return nil
}

// mountHelper is the program that go-fuse mounts with for an ordinary user: what
// it mounted must not stay because another name was looked for.
// Source: go-fuse v2.12.1 fuse/mount_linux.go, fusermountBinary.
func mountHelper() string {
	for _, name := range []string{"fusermount3", "/bin/fusermount3", "fusermount"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return "/bin/fusermount"
}
