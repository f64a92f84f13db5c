package intercept

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/sealpod/sealpod/api/agent"
	"github.com/sealpod/sealpod/forwarder/agenttest"
	"github.com/sealpod/sealpod/forwarder/volume"
	"github.com/sealpod/sealpod/podvm"
)

func TestMain(m *testing.M) {
	agenttest.Main()
	goleak.VerifyTestMain(m)
}

const netns = "/run/netns/podns"

// volumes are a machine's cloud volumes, without a disk.
type volumes struct {
	mu       sync.Mutex
	attached []string
	fail     error
	detached int
	ended    error // of the context in DetachAll
	hang     bool  // until the context ends
}

func (v *volumes) Attach(_ context.Context, vol volume.Volume) (string, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.fail != nil {
		return "", v.fail
	}
	v.attached = append(v.attached, vol.Name)
	return volume.Base + "/" + vol.Name, nil
}

func (v *volumes) DetachAll(ctx context.Context) {
	if v.hang {
		<-ctx.Done()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.detached++
	v.ended = ctx.Err()
}

// pod is an Interceptor with a machine of its own below root.
type pod struct {
	*Interceptor
	root string
	vols *volumes
}

func newPod(t testing.TB) pod {
	t.Helper()
	p := pod{root: t.TempDir(), vols: &volumes{}}
	p.Interceptor = New(Config{Namespace: netns, Volumes: p.vols, Host: podvm.Host{Root: p.root}, Log: slog.New(slog.DiscardHandler)})
	return p
}

// create changes a request to create a container.
func (p pod) create(t testing.TB, req *agent.CreateContainerRequest) (*agent.CreateContainerRequest, error) {
	t.Helper()
	raw, err := p.createContainer(t.Context(), encode(t, req))
	if err != nil {
		return nil, err
	}
	var out agent.CreateContainerRequest
	if err := proto.Unmarshal(raw, &out); err != nil {
		t.Fatal(err)
	}
	return &out, nil
}

func encode(t testing.TB, m proto.Message) []byte {
	t.Helper()
	raw, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// container returns a request with mounts.
func container(mounts ...*agent.Mount) *agent.CreateContainerRequest {
	return &agent.CreateContainerRequest{ContainerId: "c1", OCI: &agent.Spec{Mounts: mounts, Annotations: map[string]string{}, Linux: &agent.Linux{}}}
}

func bind(source, destination string) *agent.Mount {
	return &agent.Mount{Source: source, Destination: destination, Type: "bind"}
}

// tree returns what is below the machine's root, with a mark for what is a file.
func (p pod) tree(t testing.TB) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(p.root, func(path string, d os.DirEntry, err error) error {
		if err != nil || path == p.root {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		all = append(all, info.Mode().String()+" "+path[len(p.root):])
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

// code returns the status an error carries, as the relay looks for it.
func code(err error) string {
	var own interface{ GRPCStatus() *status.Status }
	if errors.As(err, &own) {
		return own.GRPCStatus().Code().String()
	}
	return "none"
}
