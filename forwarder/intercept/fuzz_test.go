package intercept

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/sealpod/sealpod/api/agent"
	"github.com/sealpod/sealpod/forwarder/volume"
)

// Whatever comes is refused, or reaches the agent with nothing changed but what is
// meant to be; nothing outside the places is made.
func FuzzCreateContainer(f *testing.F) {
	full := container(bind(shared+"a", "/data"), bind("/etc/passwd", "/etc/hosts"), &agent.Mount{Destination: "/dev/shm", Type: "tmpfs"})
	full.Storages = []*agent.Storage{{MountPoint: shared}}
	full.OCI.Linux.Namespaces = []*agent.LinuxNamespace{{Type: "network", Path: "/proc/1/ns/net"}, {Type: "pid"}}
	full.OCI.Annotations = map[string]string{cloudVolumes: twoVolumes, targetPaths: "/nowhere"}
	full.OCI.ProtoReflect().SetUnknown(encode2(2, []byte("a process")))
	f.Add(encode(f, full))
	f.Add(encode(f, container(bind(shared+"../../x", "/x.conf"))))
	f.Add(slices.Concat(encode2(6, encode2(8, nil)), encode2(6, encode2(5, encode2(3, []byte("bind"))))))
	f.Add(encode2(6, encode2(7, encode2(1, []byte(cloudVolumes)))))
	f.Fuzz(func(t *testing.T, payload []byte) {
		p := newPod(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // so that it does not wait for mounts
		raw, err := p.createContainer(ctx, payload)
		for _, made := range p.tree(t) {
			_, path, _ := strings.Cut(made, " ")
			if !strings.HasPrefix(base+"/", path) && !slices.ContainsFunc(places, func(place string) bool {
				return path == base+"/"+place || strings.HasPrefix(path, base+"/"+place+"/")
			}) {
				t.Errorf("made %s", made)
			}
		}
		if err != nil {
			return
		}
		var in, out agent.CreateContainerRequest
		if err := proto.Unmarshal(payload, &in); err != nil {
			t.Fatalf("a malformed request passed: %v", err)
		}
		if err := proto.Unmarshal(raw, &out); err != nil {
			t.Fatal(err)
		}
		kept := slices.DeleteFunc(in.OCI.Linux.Namespaces, func(n *agent.LinuxNamespace) bool { return n.Type == "network" || n.Type == "net" })
		if n := len(kept); len(out.OCI.Linux.Namespaces) != n+1 || !proto.Equal(out.OCI.Linux.Namespaces[n], &agent.LinuxNamespace{Type: "network", Path: netns}) {
			t.Errorf("namespaces %v", out.OCI.Linux.Namespaces)
		}
		in.OCI.Linux.Namespaces, out.OCI.Linux.Namespaces = kept, out.OCI.Linux.Namespaces[:len(kept)]
		vols, err := volume.Parse(in.OCI.Annotations[cloudVolumes])
		if err != nil {
			t.Errorf("a bad annotation passed: %v", err)
		}
		dirs := map[string]string{}
		for _, v := range vols {
			dirs[v.MountPoint] = volume.Base + "/" + v.Name
		}
		for _, m := range in.OCI.Mounts {
			if dir, ok := dirs[m.Destination]; ok {
				m.Source, m.Type = dir, "bind"
			}
		}
		if !maps.Equal(in.OCI.Annotations, out.OCI.Annotations) || !proto.Equal(&in, &out) {
			t.Errorf("in  %v\nout %v", &in, &out)
		}
	})
}

func FuzzCreateSandbox(f *testing.F) {
	f.Add(encode(f, &agent.CreateSandboxRequest{Dns: []string{"nameserver 10.0.0.10"}, SandboxId: "s"}))
	f.Add(encode2(200, []byte("\xff")))
	f.Fuzz(func(t *testing.T, payload []byte) {
		raw, err := newPod(t).createSandbox(t.Context(), payload)
		if err != nil {
			return
		}
		var in, out agent.CreateSandboxRequest
		if proto.Unmarshal(payload, &in) != nil || proto.Unmarshal(raw, &out) != nil {
			t.Fatal("a malformed request passed")
		}
		in.Dns = nil
		if !proto.Equal(&in, &out) {
			t.Errorf("in  %v\nout %v", &in, &out)
		}
	})
}
