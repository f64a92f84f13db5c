package vmtest

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/sealpod/sealpod/podvm/debian"
	"github.com/sealpod/sealpod/podvm/vmtest/internal/wire"
)

// shared is what all machines of a process share.
type shared struct {
	base
	init  []byte // the program podvm/vmtest/init
	accel string // for qemu's -accel
}

var sharedOnce struct {
	sync.Mutex
	*shared
}

// sharedParts makes what all machines share, once.
func sharedParts(t testing.TB) (*shared, error) {
	sharedOnce.Lock()
	defer sharedOnce.Unlock()
	if sharedOnce.shared != nil {
		return sharedOnce.shared, nil
	}
	root, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	b, err := ensureBase(t.Context(), filepath.Join(root, "bin", "vm"), standard)
	if err != nil {
		return nil, err
	}
	bin := filepath.Join(t.TempDir(), "init")
	if err := build(t, "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "./podvm/vmtest/init"); err != nil {
		return nil, fmt.Errorf("building the guest's init: %w", err)
	}
	s := &shared{base: b, accel: emulation}
	if s.init, err = os.ReadFile(bin); err != nil {
		return nil, err
	}
	if s.kvmWorks(t.Context()) {
		s.accel = "kvm"
	}
	sharedOnce.shared = s
	return s, nil
}

const emulation = "tcg,thread=multi"

// kvmWorks reports whether a machine boots with KVM. There are machines with a
// /dev/kvm that opens and virtual processors that then do not run.
func (s *shared) kvmWorks(ctx context.Context) bool {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	_ = f.Close()
	kvm := *s
	kvm.accel = "kvm"
	vm, err := kvm.boot(ctx, Config{Timeout: 10 * time.Second})
	return err == nil && vm.Wait() == nil
}

func boot(t testing.TB, c Config) (*VM, error) {
	s, err := sharedParts(t)
	if err != nil {
		return nil, err
	}
	return s.boot(t.Context(), c)
}

// initramfs is the base's, followed by what this machine has of its own.
func (s *shared) initramfs(c Config) (_ *os.File, err error) {
	job, err := json.Marshal(wire.Job{Args: c.Cmd, Env: append(guestEnv(), c.Env...)})
	if err != nil {
		return nil, err
	}
	own := debian.Tree{
		"init":                   debian.File(0o755, s.init),
		debian.Rel(wire.JobPath): debian.File(0o600, job),
	}
	for there, here := range c.Files {
		info, err := os.Stat(here)
		if err != nil {
			return nil, err
		}
		data, err := os.ReadFile(here)
		if err != nil {
			return nil, err
		}
		own[debian.Merged(there)] = debian.File(uint32(info.Mode().Perm()), data)
	}
	common, err := os.ReadFile(s.base.initramfs)
	if err != nil {
		return nil, err
	}
	f, err := unnamed()
	if err != nil {
		return nil, err
	}
	for _, part := range [][]byte{common, own.CPIO()} {
		if _, err := f.Write(part); err != nil {
			_ = f.Close()
			return nil, err
		}
	}
	return f, nil
}
