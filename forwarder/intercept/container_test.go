package intercept

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/sealpod/sealpod/api/agent"
	"github.com/sealpod/sealpod/forwarder/volume"
	"github.com/sealpod/sealpod/podvm"
)

func TestOneNetworkNamespaceIsLeft(t *testing.T) {
	ns := func(kind, path string) *agent.LinuxNamespace { return &agent.LinuxNamespace{Type: kind, Path: path} }
	pid, pods := ns("pid", ""), ns("network", netns)
	for name, tt := range map[string]struct{ in, want []*agent.LinuxNamespace }{
		"none before":             {nil, []*agent.LinuxNamespace{pods}},
		"others stay":             {[]*agent.LinuxNamespace{pid}, []*agent.LinuxNamespace{pid, pods}},
		"a new one":               {[]*agent.LinuxNamespace{ns("network", ""), pid}, []*agent.LinuxNamespace{pid, pods}},
		"another":                 {[]*agent.LinuxNamespace{pid, ns("network", "/proc/1/ns/net")}, []*agent.LinuxNamespace{pid, pods}},
		"several":                 {[]*agent.LinuxNamespace{ns("network", "a"), pid, ns("network", "b"), ns("network", netns)}, []*agent.LinuxNamespace{pid, pods}},
		"by its other name":       {[]*agent.LinuxNamespace{ns("net", "/proc/1/ns/net"), pid, ns("net", "")}, []*agent.LinuxNamespace{pid, pods}},
		"the pod's is there once": {[]*agent.LinuxNamespace{pods}, []*agent.LinuxNamespace{pods}},
	} {
		t.Run(name, func(t *testing.T) {
			req := container()
			req.OCI.Linux.Namespaces = tt.in
			got, err := newPod(t).create(t, req)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.EqualFunc(got.OCI.Linux.Namespaces, tt.want, func(a, b *agent.LinuxNamespace) bool { return proto.Equal(a, b) }) {
				t.Errorf("%v", got.OCI.Linux.Namespaces)
			}
		})
	}
}

// Upstream's forwarder dies of the first two, and the pod with it.
func TestRequestsThatAreRefused(t *testing.T) {
	many := container()
	for range maxItems + 1 {
		many.OCI.Mounts = append(many.OCI.Mounts, &agent.Mount{})
	}
	linux := protowire.AppendTag(nil, 8, protowire.BytesType)
	for name, payload := range map[string][]byte{
		"no OCI":          encode(t, &agent.CreateContainerRequest{ContainerId: "c"}),
		"no Linux":        encode(t, &agent.CreateContainerRequest{OCI: &agent.Spec{}}),
		"empty":           nil,
		"cut off":         encode(t, container(bind("/a", "/b")))[:9],
		"no protobuf":     []byte("\xff\xff\xff\xff"),
		"not UTF-8":       encode2(6, append(encode2(5, encode2(2, []byte("/\xff"))), protowire.AppendBytes(linux, nil)...)),
		"OCI is a number": protowire.AppendVarint(protowire.AppendTag(nil, 6, protowire.VarintType), 1),
		"many mounts":     encode(t, many),
		"many mounts in many specs": slices.Repeat(
			encode2(6, slices.Concat(slices.Repeat(encode2(5, nil), maxItems/2+1), encode2(8, nil))), 2),
	} {
		t.Run(name, func(t *testing.T) {
			p := newPod(t)
			_, err := p.createContainer(t.Context(), payload)
			if code(err) != "InvalidArgument" {
				t.Errorf("%v", err)
			}
			if tree := p.tree(t); len(tree) > 0 {
				t.Errorf("%q", tree)
			}
		})
	}
}

// encode2 is a field of bytes.
func encode2(number protowire.Number, value []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), value)
}

// Fields of a newer runtime are there at every level after the change.
func TestUnknownFieldsPass(t *testing.T) {
	unknown := func(n uint64) []byte {
		b := protowire.AppendVarint(protowire.AppendTag(nil, 200, protowire.VarintType), n)
		return append(b, encode2(201, []byte("\xff not text"))...)
	}
	mount := bind("/run/kata-containers/shared/containers/x", "/x")
	ns := &agent.LinuxNamespace{Type: "pid"}
	storage := &agent.Storage{MountPoint: "/run/kata-containers/c1/rootfs"}
	req := container(mount)
	req.Storages, req.OCI.Linux.Namespaces = []*agent.Storage{storage}, []*agent.LinuxNamespace{ns}
	for n, m := range []proto.Message{req, req.OCI, mount, req.OCI.Linux, ns, storage} {
		m.ProtoReflect().SetUnknown(unknown(uint64(n)))
	}
	want := proto.Clone(req).(*agent.CreateContainerRequest)
	want.OCI.Linux.Namespaces = append(want.OCI.Linux.Namespaces, &agent.LinuxNamespace{Type: "network", Path: netns})
	got, err := newPod(t).create(t, req)
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

const twoVolumes = `{"b":{"mount_point":"/data","lun":"1"},"a":{"mount_point":"/gone","lun":"0"}}`

func TestCloudVolumes(t *testing.T) {
	p := newPod(t)
	req := container(
		&agent.Mount{Destination: "/data", Source: "/run/kata-containers/shared/containers/x", Type: "ext4"},
		bind("/proc", "/data/"), bind("/proc", "/database"), bind("/sys", "/data"))
	req.OCI.Annotations[cloudVolumes] = twoVolumes
	got, err := p.create(t, req)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(p.vols.attached, []string{"a", "b"}) {
		t.Errorf("attached %v", p.vols.attached)
	}
	for i, want := range []string{"/run/cloud-volumes/b bind", "/proc bind", "/proc bind", "/run/cloud-volumes/b bind"} {
		if m := got.OCI.Mounts[i]; m.Source+" "+m.Type != want {
			t.Errorf("mount %d: %v, want %s", i, m, want)
		}
	}
	if got.OCI.Annotations[cloudVolumes] != twoVolumes {
		t.Errorf("annotations %v", got.OCI.Annotations)
	}
	if tree := p.tree(t); len(tree) > 0 {
		t.Errorf("%q: the mounts' own sources were made first", tree)
	}
}

func TestVolumesThatFailFailTheCall(t *testing.T) {
	denied := status.Error(codes.PermissionDenied, "no key for you")
	for name, tt := range map[string]struct {
		annotation string
		fail       error
		is         error
		code       string
	}{
		"no JSON":        {annotation: "{", is: volume.ErrAnnotation, code: "none"},
		"an unsafe name": {annotation: `{"../etc":{"mount_point":"/d","lun":"0"}}`, is: volume.ErrAnnotation, code: "none"},
		"no disk":        {annotation: twoVolumes, fail: volume.ErrDevice, is: volume.ErrDevice, code: "none"},
		"no key":         {annotation: twoVolumes, fail: denied, is: denied, code: "PermissionDenied"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPod(t)
			p.vols.fail = tt.fail
			req := container(bind("/run/kata-containers/shared/containers/x", "/x"))
			req.OCI.Annotations[cloudVolumes] = tt.annotation
			_, err := p.create(t, req)
			if !errors.Is(err, tt.is) || code(err) != tt.code {
				t.Errorf("%v", err)
			}
			if tt.fail == nil && !strings.HasPrefix(podvm.Cause(err), "corrupt cloud_volumes annotation") {
				t.Errorf("cause %q", podvm.Cause(err))
			}
			if tree := p.tree(t); len(tree) > 0 {
				t.Errorf("%q: sources were made before the volumes", tree)
			}
		})
	}
}

func TestAnnotationsWithoutVolumes(t *testing.T) {
	p := newPod(t)
	req := container()
	req.OCI.Annotations[cloudVolumes] = ""
	if _, err := p.create(t, req); err != nil || len(p.vols.attached) > 0 {
		t.Error(err, p.vols.attached)
	}
}
