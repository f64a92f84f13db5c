package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/rpc"
	"github.com/sealpod/sealpod/podvm/tool"
)

// What callers of Attach may want to tell apart.
var (
	ErrDevice  = errors.New("no such disk")
	ErrBusy    = tool.ErrBusy    // the disk or the mount point is in use by something else
	ErrForeign = tool.ErrForeign // the disk carries something that is not a file system of a volume
	ErrMissing = tool.ErrMissing // a program is not installed
)

// Base is the directory that volumes are mounted in, one directory each.
// Source: cloud-api-adaptor
// src/cloud-api-adaptor/pkg/forwarder/interceptor/interceptor.go at fbdde756.
const Base = "/run/cloud-volumes"

// Config says what a Manager works with.
type Config struct {
	Host podvm.Host
	// Hub is the data hub. With nil there are no encrypted volumes. How long it is
	// waited for is the client's to say.
	Hub *rpc.Client
	// Rules returns the owner's rules, see LoadRules. It is asked for each volume, since
	// init data may come late. With nil there are none.
	Rules func() (*Rules, error)
	Log   *slog.Logger // nil is slog.Default()
}

// Manager attaches and detaches volumes. It is safe for concurrent use: calls for
// one volume or one disk wait for each other, others do not. It keeps nothing but what
// the mount table and /run have, so another process can go on where one was killed.
type Manager struct {
	host  podvm.Host
	hub   *rpc.Client
	rules func() (*Rules, error)
	log   *slog.Logger
	run   tool.Runner

	mu   sync.Mutex
	held map[string]chan struct{} // closed when let go
}

// New returns a Manager. It touches nothing.
func New(cfg Config) *Manager {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Rules == nil {
		cfg.Rules = func() (*Rules, error) { return nil, nil }
	}
	return &Manager{host: cfg.Host, hub: cfg.Hub, rules: cfg.Rules, log: cfg.Log, run: tool.Runner{Host: cfg.Host}, held: map[string]chan struct{}{}}
}

// Attach mounts the volume v, which comes from Parse, and returns the directory it
// is in. A volume that is there already is left alone. A call that fails leaves
// nothing mounted. Once its disk was found a name
// stands for that disk and that key until the next boot, whatever comes of the call;
// with others it is ErrBusy.
//
// An empty disk gets a file system. A plain volume is mounted so that programs and
// device nodes on it, which may be the host's, have no privileges.
//
// Errors: ErrRefused, ErrDevice, ErrBusy, ErrForeign, ErrMissing; what the data hub says, with
// its status; rpc.ErrPeerAbsent when it is not there; the cause of ctx.
func (m *Manager) Attach(ctx context.Context, v Volume) (dir string, err error) {
	dir, err = m.attach(ctx, v)
	if err != nil {
		return "", fmt.Errorf("attaching cloud volume %s: %w", v.Name, err)
	}
	return dir, nil
}

func (m *Manager) attach(ctx context.Context, v Volume) (_ string, err error) {
	if !bareName(v.Name) {
		return "", podvm.Explain(ErrAnnotation, "the cloud volume has no usable name")
	}
	rules, err := m.rules()
	if err != nil {
		return "", podvm.Explain(err, "the pod's configuration, cdh.toml, cannot be read, so no cloud volume is allowed")
	}
	if err := rules.check(v); err != nil {
		return "", err
	}
	unlock, err := m.lock(ctx, "volume "+v.Name)
	if err != nil {
		return "", err
	}
	defer unlock()
	known, err := m.known(v)
	if err != nil {
		return "", err
	}
	var undo tool.Undo
	defer func() { undo.OnError(ctx, &err) }()
	place, err := m.place(v.Name, &undo)
	if err != nil {
		return "", err
	}
	defer place.dir.Close()
	if done, err := m.inPlace(v, place.path, known); err != nil || done {
		if done {
			m.giveGroup(v) // whoever mounted it may have been killed before that
		}
		return place.path, err
	}
	start := time.Now()
	disk, err := m.find(ctx, v)
	if err != nil {
		return "", err
	}
	if unlock, err := m.lock(ctx, "disk "+disk.name); err != nil {
		return "", err
	} else {
		defer unlock()
	}
	if err := m.keep(v); err != nil {
		return "", err
	}
	how := "opened by the data hub"
	if v.Encrypted() {
		err = m.secureMount(ctx, v, disk)
	} else {
		how, err = m.mountPlain(ctx, v, disk, place)
	}
	if err != nil {
		return "", err
	}
	m.giveGroup(v)
	m.log.Info("Cloud volume in place", "volume", v.Name, "lun", v.LUN, "device", disk.path, "how", how, "dur", time.Since(start))
	return place.path, nil
}

// inPlace reports whether v is mounted on its place. known says that a Manager may
// have done that.
func (m *Manager) inPlace(v Volume, path string, known bool) (bool, error) {
	top, err := tool.Top(path)
	if err != nil || top == nil {
		return false, tool.Explain("looking for the volume", err, "the mount table cannot be read")
	}
	switch encrypted := m.isMapping(v.Name, top); {
	case known && encrypted == v.Encrypted() && (encrypted || volumeFS[top.FSType]):
		return true, nil
	case encrypted:
		err = errors.New("an encrypted volume is there")
	default:
		err = fmt.Errorf("%s of %s is there", podvm.Printable(top.FSType, 32), podvm.Printable(top.Source, 128))
	}
	return false, podvm.Explain(fmt.Errorf("%w: %s: %w", ErrBusy, path, err), "something else is mounted where the cloud volume "+v.Name+" belongs")
}

// giveGroup lets the volume's group write to its top directory. Like upstream, a
// failure is logged.
func (m *Manager) giveGroup(v Volume) {
	if v.FSGroup == nil {
		return
	}
	base, err := os.OpenRoot(m.host.Path(Base))
	if err == nil {
		err = errors.Join(base.Chown(v.Name, -1, *v.FSGroup), base.Chmod(v.Name, 0o775|os.ModeSetgid), base.Close())
	}
	if err != nil {
		m.log.Warn("The group of a cloud volume is not set", "volume", v.Name, "gid", *v.FSGroup, "err", err)
	}
}

// lock keeps every other holder of name out until unlock.
func (m *Manager) lock(ctx context.Context, name string) (unlock func(), err error) {
	for {
		m.mu.Lock()
		held, busy := m.held[name]
		if !busy {
			mine := make(chan struct{})
			m.held[name] = mine
			m.mu.Unlock()
			return func() {
				m.mu.Lock()
				delete(m.held, name)
				m.mu.Unlock()
				close(mine)
			}, nil
		}
		m.mu.Unlock()
		select {
		case <-held:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for another request: %w", context.Cause(ctx))
		}
	}
}

// place is where a volume is mounted.
type place struct {
	dir  *os.File // its Name is what to mount on
	path string
}

// place makes the directory of the volume, which is below Base and nowhere else.
func (m *Manager) place(name string, undo *tool.Undo) (place, error) {
	const cause = "the mount point of the cloud volume cannot be made"
	base := m.host.Path(Base)
	if err := os.MkdirAll(base, 0o755); err != nil {
		return place{}, podvm.Explain(fmt.Errorf("making the mount point: %w", err), cause)
	}
	if info, err := os.Lstat(base); err != nil || !info.IsDir() {
		return place{}, podvm.Explain(fmt.Errorf("%w: %s is no directory of its own: %w", ErrBusy, base, err), cause)
	}
	path := filepath.Join(base, name)
	if info, err := os.Lstat(path); err == nil && !info.IsDir() {
		return place{}, podvm.Explain(fmt.Errorf("%w: %s is a %s", ErrBusy, path, info.Mode().Type()), cause)
	}
	dir, real, err := tool.Directory(path, undo)
	if err != nil {
		return place{}, podvm.Explain(fmt.Errorf("making the mount point: %w", err), cause)
	}
	if real != path {
		dir.Close()
		return place{}, podvm.Explain(fmt.Errorf("%w: %s leads to %s", ErrBusy, path, real), cause)
	}
	return place{dir, path}, nil
}

// volumeFS are the types that the kernel shows for volumes.
var volumeFS = map[string]bool{"ext4": true, "ext3": true, "ext2": true, "xfs": true}

// mountFlags of a plain volume.
const mountFlags = unix.MS_NOSUID | unix.MS_NODEV
