package volume

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sealpod/sealpod/api/datahub"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// hub answers as the data hub does, on a real socket: it keeps what it was asked
// and, on a machine without a device-mapper, mounts the disk itself under the name
// of the mapping.
type hub struct {
	m    *machine
	mu   sync.Mutex
	reqs []*datahub.SecureMountRequest
	fail error
}

func (h *hub) SecureMount(_ context.Context, req *datahub.SecureMountRequest) (*datahub.SecureMountResponse, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.reqs = append(h.reqs, req)
	if h.fail != nil {
		return nil, h.fail
	}
	device, node := h.m.path(req.Options["devicePath"]), h.m.path("dev/mapper", req.Options["mapperName"])
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		return nil, err
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", device).CombinedOutput(); err != nil {
		return nil, status.Error(codes.Internal, string(out))
	}
	if err := unix.Mknod(node, unix.S_IFBLK|0o600, int(st.Rdev)); err != nil {
		return nil, err
	}
	return &datahub.SecureMountResponse{}, unix.Mount(node, h.m.path(req.MountPoint), "ext4", 0, "")
}

// serve starts the hub and returns a client of it.
func (h *hub) serve() *rpc.Client {
	h.m.Helper()
	path := h.m.path("run/cdh.sock")
	l, err := rpc.Listen(h.m.Context(), path)
	h.m.ok(err)
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() {
		served <- rpc.Serve(ctx, l, slog.New(slog.DiscardHandler), func(s *ttrpc.Server) { datahub.RegisterSecureMountServiceService(s, h) })
	}()
	c := rpc.NewClient(path, time.Second)
	h.m.Cleanup(func() {
		_ = c.Close()
		stop()
		if err := <-served; err != nil && !errors.Is(err, net.ErrClosed) {
			h.m.Error(err)
		}
	})
	return c
}

func encrypted(name string, lun int) Volume {
	return Volume{Name: name, MountPoint: "/secret", LUN: lun, FSType: "ext4", KeyID: "default/volume/1"}
}

func TestEncryptedVolume(t *testing.T) {
	m := newDiskMachine(t)
	m.disk("vdb", "", 32)
	h := &hub{m: m}
	mgr := m.manager(h.serve())
	group := 77
	v := encrypted("secret", 0)
	v.FSGroup = &group
	m.attach(mgr, v)
	m.attach(mgr, v)
	want := map[string]string{
		"devicePath": "/dev/vdb", "sourceType": "empty", "targetType": "fileSystem", "encryptionType": "luks2",
		"filesystemType": "ext4", "key": "kbs:///default/volume/1", "mapperName": "caa-secret",
	}
	if len(h.reqs) != 1 {
		t.Fatalf("%d requests", len(h.reqs))
	}
	if r := h.reqs[0]; !maps.Equal(r.Options, want) || r.VolumeType != "block-device" || r.MountPoint != "/run/cloud-volumes/secret" || len(r.Flags) != 0 {
		t.Errorf("%+v", r)
	}
	if info, err := os.Stat(m.path(Base, "secret")); err != nil || info.Mode().Perm() != 0o775 {
		t.Errorf("%v, %v", info, err)
	}
	mgr.DetachAll(t.Context())
	m.nothingMounted()
	if m.ran("cryptsetup", "close caa-secret") != 1 {
		t.Error("the mapping was not closed")
	}
	if left, err := os.ReadDir(m.path("dev/mapper")); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}

func TestEncryptedVolumeWithAHeader(t *testing.T) {
	m := newDiskMachine(t)
	m.put(m.disk("vdb", "", 32), 0, []byte(luksMagic))
	h := &hub{m: m}
	m.attach(m.manager(h.serve()), encrypted("secret", 0))
	if got := h.reqs[0].Options["sourceType"]; got != "encrypted" {
		t.Error(got)
	}
}

// What the data hub says reaches the worker node with its status.
func TestTheDataHubRefuses(t *testing.T) {
	m := newDiskMachine(t)
	m.disk("vdb", "", 32)
	h := &hub{m: m, fail: status.Error(codes.PermissionDenied, "the key of the volume cannot be had")}
	_, err := m.manager(h.serve()).Attach(t.Context(), encrypted("secret", 0))
	if s, ok := status.FromError(err); !ok || s.Code() != codes.PermissionDenied || !strings.Contains(s.Message(), "the key of the volume cannot be had") {
		t.Errorf("%v", err)
	}
	m.nothingMounted()
}

func TestTheDataHubIsNotThere(t *testing.T) {
	m := newDiskMachine(t)
	m.disk("vdb", "", 32)
	c := rpc.NewClient(m.path("run/cdh.sock"), 10*time.Millisecond)
	if _, err := m.manager(c).Attach(t.Context(), encrypted("secret", 0)); !errors.Is(err, rpc.ErrPeerAbsent) || podvm.Cause(err) == "" {
		t.Errorf("%v", err)
	}
	if _, err := m.manager(nil).Attach(t.Context(), encrypted("secret", 0)); podvm.Cause(err) == "" {
		t.Errorf("%v", err)
	}
	// A caller that ends first is told that.
	c = rpc.NewClient(m.path("run/cdh.sock"), time.Hour)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := m.manager(c).Attach(ctx, encrypted("secret", 0)); !errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		t.Errorf("%v", err)
	}
	m.nothingMounted()
}

// An encrypted volume is never taken for a plain one, nor the other way round: the
// host could read what the container writes.
func TestPlainIsNotEncrypted(t *testing.T) {
	m := newDiskMachine(t)
	m.disk("vdb", "", 32)
	m.disk("vdc", "", 32)
	h := &hub{m: m}
	mgr := m.manager(h.serve())
	m.attach(mgr, plain("a", 0))
	m.attach(mgr, encrypted("b", 1))
	for _, v := range []Volume{encrypted("a", 0), plain("b", 1)} {
		if _, err := mgr.Attach(t.Context(), v); !errors.Is(err, ErrBusy) || podvm.Cause(err) == "" {
			t.Errorf("%v", err)
		}
	}
	if len(h.reqs) != 1 {
		t.Errorf("%d requests", len(h.reqs))
	}
	if len(m.mounts()) != 2 {
		t.Errorf("%v", m.mounts())
	}
}

// A refused call leaves its volume attached, and detaching asks no policy. So a name
// stays what it was first: a policy that admits it with one key must not get the
// volume that was opened with another one, which the host may know, or a plain one.
func TestANameStaysTheSameVolume(t *testing.T) {
	m := newDiskMachine(t)
	m.disk("vdb", "", 32)
	m.disk("vdc", "", 32)
	h := &hub{m: m}
	c := h.serve()
	m.attach(m.manager(c), encrypted("a", 0))
	other := encrypted("a", 0)
	other.KeyID = "default/public/certificate"
	for _, detached := range []bool{false, true} {
		mgr := m.manager(c) // of a forwarder that was started again
		if detached {
			mgr.DetachAll(t.Context())
		}
		for _, v := range []Volume{other, plain("a", 0), encrypted("a", 1)} {
			if _, err := mgr.Attach(t.Context(), v); !errors.Is(err, ErrBusy) || podvm.Cause(err) == "" {
				t.Errorf("%+v: %v", v, err)
			}
		}
	}
	if len(h.reqs) != 1 {
		t.Errorf("%d requests", len(h.reqs))
	}
	m.nothingMounted()
	same := encrypted("a", 0)
	same.MountPoint = "/elsewhere" // of another container
	m.attach(m.manager(c), same)
}

// The data hub may finish what the caller has given up.
func TestANameStaysTheSameAfterAFailure(t *testing.T) {
	m := newDiskMachine(t)
	m.disk("vdb", "", 32)
	h := &hub{m: m, fail: status.Error(codes.DeadlineExceeded, "too late")}
	mgr := m.manager(h.serve())
	if _, err := mgr.Attach(t.Context(), encrypted("a", 0)); err == nil {
		t.Fatal("no error")
	}
	h.fail = nil
	other := encrypted("a", 0)
	other.KeyID = "default/public/certificate"
	if _, err := mgr.Attach(t.Context(), other); !errors.Is(err, ErrBusy) {
		t.Errorf("%v", err)
	}
	m.attach(mgr, encrypted("a", 0))
}

// A storage of the agent's may have any source.
func TestASourceIsNotAMapping(t *testing.T) {
	m := newDiskMachine(t)
	m.disk("vdb", "", 32)
	mgr := m.manager((&hub{m: m}).serve())
	dir := m.attach(mgr, encrypted("a", 0))
	mgr.DetachAll(t.Context())
	m.ok(errors.Join(os.Mkdir(dir, 0o755), unix.Mount("/dev/mapper/caa-a", dir, "tmpfs", 0, "size=64k")))
	if _, err := mgr.Attach(t.Context(), encrypted("a", 0)); !errors.Is(err, ErrBusy) {
		t.Errorf("%v", err)
	}
}

// The forwarder is killed; the next one finds everything.
func TestDetachAllAfterAKill(t *testing.T) {
	m := newDiskMachine(t)
	m.disk("vdb", "", 32)
	m.disk("vdc", "", 32)
	self, err := os.Executable()
	m.ok(err)
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), attachProcessEnv+`={"one":{"mount_point":"/1","lun":"0"},"two":{"mount_point":"/2","lun":"1"}}`, podvm.HostRootEnv+"="+m.root, AttemptsEnv+"=1")
	out, err := cmd.StdoutPipe()
	m.ok(err)
	cmd.Stderr = os.Stderr
	m.ok(cmd.Start())
	if b := make([]byte, 8); true {
		_, err := out.Read(b)
		m.ok(err)
	}
	m.ok(cmd.Process.Kill())
	_ = cmd.Wait()

	mgr := m.manager((&hub{m: m}).serve())
	m.attach(mgr, plain("one", 0)) // is there
	if n := len(m.mounts()); n != 2 {
		t.Fatalf("%d mounts", n)
	}
	mgr.DetachAll(t.Context())
	m.nothingMounted()
	one, two := strings.Index(m.log.String(), "unmounted\" volume=one"), strings.Index(m.log.String(), "unmounted\" volume=two")
	if one < 0 || two < 0 || one < two {
		t.Errorf("the last one comes first:\n%s", m.log)
	}
}

// A container that still runs keeps its volume until it ends.
func TestDetachAllOfWhatIsInUse(t *testing.T) {
	m := newDiskMachine(t)
	m.disk("vdb", "", 32)
	mgr := m.manager((&hub{m: m}).serve())
	dir := m.attach(mgr, encrypted("secret", 0))
	f, err := os.Create(filepath.Join(dir, "file"))
	m.ok(err)
	defer f.Close()
	m.write("", "busy")
	mgr.DetachAll(t.Context())
	m.nothingMounted()
	if m.ran("cryptsetup", "close --deferred caa-secret") != 1 {
		t.Errorf("the mapping stays\n%s", m.log)
	}
	if _, err := f.WriteString("still there"); err != nil {
		t.Error(err)
	}
}

// Between the opening and the mounting of a volume its data hub died.
func TestDetachAllClosesMappingsWithoutMount(t *testing.T) {
	m := newDiskMachine(t)
	for _, name := range []string{"caa-b", "caa-a", "luks-of-another", "caa-.x", "control"} {
		m.write("", "dev/mapper/"+name)
	}
	m.manager(nil).DetachAll(t.Context())
	if m.ran("cryptsetup", "close caa-a") != 1 || m.ran("cryptsetup", "close caa-b") != 1 || m.ran("cryptsetup", "") != 2 {
		t.Errorf("%s", m.log)
	}
}

// What is mounted in or over a volume goes with it; what is beside the base stays.
func TestDetachAllOfMountsOnTop(t *testing.T) {
	m := newDiskMachine(t)
	m.disk("vdb", "", 32)
	mgr := m.manager(nil)
	dir := m.attach(mgr, plain("data", 0))
	beside := m.path(Base + "-other")
	m.ok(os.MkdirAll(beside, 0o755))
	m.ok(os.Mkdir(filepath.Join(dir, "sub"), 0o755))
	for _, path := range []string{filepath.Join(dir, "sub"), dir, beside} {
		m.ok(unix.Mount("none", path, "tmpfs", 0, "size=64k"))
	}
	mgr.DetachAll(t.Context())
	if mounts := m.mounts(); len(mounts) != 1 || mounts[0].Mountpoint != beside {
		t.Errorf("%v", mounts)
	}
	if left, err := os.ReadDir(m.path(Base)); err != nil || len(left) > 0 {
		t.Errorf("%v, %v\n%s", left, err, m.log)
	}
	if info, err := os.Stat(filepath.Join(m.attach(mgr, plain("data", 0)), "sub")); err != nil || !info.IsDir() {
		t.Errorf("a directory of the volume is gone: %v, %v", info, err)
	}
}
