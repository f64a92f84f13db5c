package intercept

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sealpod/sealpod/api/agent"
)

const shared = "/run/kata-containers/shared/containers/"

func TestMissingSourcesAreMade(t *testing.T) {
	for name, tt := range map[string]struct {
		mount *agent.Mount
		want  string // of the source; "" for nothing at all
	}{
		"a directory":                 {bind(shared+"c1-0a1b-data", "/data"), "drwxr-xr-x"},
		"a directory with a slash":    {bind(shared+"c1-0a1b-data/", "/data/"), "drwxr-xr-x"},
		"conf.d is a directory":       {bind(shared+"c1-0a1b-conf.d", "/etc/nginx/conf.d"), "drwxr-xr-x"},
		"a file of Kubernetes":        {bind(shared+"c1-0a1b-hosts", "/etc/hosts"), "-rw-r--r--"},
		"a configuration file":        {bind(shared+"c1-0a1b-nginx.conf", "/etc/nginx/nginx.conf"), "-rw-r--r--"},
		"by the destination alone":    {bind(shared+"c1-0a1b-x.conf", "/data"), "drwxr-xr-x"},
		"last words":                  {bind(shared+"c1-0a1b-msg", "/var/msg"), "-rw-r--r--"},
		"in the sandbox":              {bind("/run/kata-containers/sandbox/ephemeral/cache", "/cache"), "drwxr-xr-x"},
		"of a virtual volume":         {bind("/run/kata-containers/virtual-volumes/a/b/c", "/v"), "drwxr-xr-x"},
		"not a bind mount":            {&agent.Mount{Source: shared + "x", Destination: "/x", Type: "tmpfs"}, ""},
		"relative":                    {bind("run/kata-containers/shared/x", "/x"), ""},
		"no source":                   {bind("", "/x"), ""},
		"what the agent mounts":       {bind(shared+"storage", "/x"), ""},
		"below what the agent mounts": {bind(shared+"storage/sub", "/x"), ""},
		// What a hostile node may try: files that units wait for, that programs look
		// for, or that lie where the agent keeps its own.
		"a unit's trigger":       {bind("/run/peerpod/aa.toml", "/x.toml"), ""},
		"a scratch marker":       {bind("/run/peerpod/scratch-space.marker", "/x"), ""},
		"a cgroup":               {bind("/sys/fs/cgroup/mine", "/x"), ""},
		"up and out":             {bind(shared+"../../../peerpod/aa.toml", "/x.toml"), ""},
		"up":                     {bind("/run/kata-containers/shared/../image/x", "/x"), ""},
		"a place itself":         {bind("/run/kata-containers/shared", "/x"), ""},
		"beside the places":      {bind("/run/kata-containers/image/layers", "/x"), ""},
		"a place's longer name":  {bind("/run/kata-containers/shared2/x", "/x"), ""},
		"another container":      {bind("/run/kata-containers/c2/rootfs/etc/passwd", "/x.conf"), ""},
		"an empty name":          {bind(shared+"/x", "/x"), ""},
		"a zero byte":            {bind(shared+"x\x00y", "/x"), ""},
		"too long a name":        {bind(shared+strings.Repeat("x", 256), "/x"), ""},
		"too deep":               {bind(shared+strings.Repeat("d/", maxDepth), "/x"), ""},
		"a place in other words": {bind("//run/kata-containers/shared/x", "/x"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPod(t)
			req := container(tt.mount)
			req.Storages = []*agent.Storage{{MountPoint: shared + "storage"}, {}}
			req.OCI.Annotations[terminationPath] = "/var/msg"
			got, err := p.create(t, req)
			if err != nil {
				t.Fatal(err)
			}
			if m := got.OCI.Mounts[0]; m.Source != tt.mount.Source || m.Type != tt.mount.Type {
				t.Errorf("the mount became %v", m)
			}
			tree := p.tree(t)
			if tt.want == "" {
				tree = slices.DeleteFunc(tree, func(s string) bool {
					return s == "drwxr-xr-x /run" || strings.HasPrefix(s, "drwxr-xr-x /run/kata-containers") &&
						strings.HasPrefix(path.Clean(shared), strings.TrimPrefix(s, "drwxr-xr-x "))
				})
				if len(tree) > 0 {
					t.Errorf("made %q", tree)
				}
				return
			}
			if want := tt.want + " " + path.Clean(tt.mount.Source); !slices.Contains(tree, want) {
				t.Errorf("%q lacks %s", tree, want)
			}
			for _, entry := range tree {
				if strings.HasPrefix(entry, "d") && !strings.HasPrefix(entry, "drwxr-xr-x") {
					t.Errorf("made %s", entry)
				}
			}
		})
	}
}

func TestSourcesThatAreThereStay(t *testing.T) {
	p := newPod(t)
	dir := p.root + shared
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"c1-hosts", []byte("127.0.0.1 localhost\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := p.tree(t)
	if _, err := p.create(t, container(bind(shared+"c1-hosts", "/etc/hosts"), bind(shared+"c1-hosts/below", "/x"))); err != nil {
		t.Fatal(err)
	}
	if after := p.tree(t); !slices.Equal(before, after) {
		t.Errorf("%q became %q", before, after)
	}
	if b, err := os.ReadFile(dir + "c1-hosts"); err != nil || string(b) != "127.0.0.1 localhost\n" {
		t.Errorf("%q, %v", b, err)
	}
}

// A container can leave links in what it shares; a source of the next one does not
// follow them out.
func TestLinksLeadNowhere(t *testing.T) {
	p := newPod(t)
	outside := t.TempDir()
	if err := os.MkdirAll(p.root+shared, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"abs": outside, "rel": "../../../../../" + filepath.Base(outside), "dangling": filepath.Join(outside, "file")} {
		if err := os.Symlink(to, p.root+shared+name); err != nil {
			t.Fatal(err)
		}
	}
	before := p.tree(t)
	if _, err := p.create(t, container(
		bind(shared+"abs/new", "/a"), bind(shared+"abs/new.conf", "/a.conf"), bind(shared+"rel/../new", "/a"),
		bind(shared+"dangling", "/etc/hosts"), bind(shared+"dangling", "/a"))); err != nil {
		t.Fatal(err)
	}
	if after := p.tree(t); !slices.Equal(before, after) {
		t.Errorf("%q became %q", before, after)
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) > 0 {
		t.Errorf("outside: %v, %v", entries, err)
	}
}

func TestARequestMakesSoManySources(t *testing.T) {
	p := newPod(t)
	req := container()
	for n := range maxMade + 10 {
		req.OCI.Mounts = append(req.OCI.Mounts, bind(shared+fmt.Sprint("c1-", n), "/x"))
	}
	if _, err := p.create(t, req); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(p.root + shared)
	if err != nil || len(entries) != maxMade {
		t.Errorf("%d made, %v", len(entries), err)
	}
}

// Containers of a pod that start together may lack the same source.
func TestSourcesAreMadeAtOnce(t *testing.T) {
	p := newPod(t)
	var log bytes.Buffer
	p.log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
	payload := encode(t, container(bind(shared+"pod-app.conf", "/etc/app.conf"), bind(shared+"pod-data/a/b", "/data")))
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if _, err := p.createContainer(t.Context(), payload); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if log.Len() > 0 {
		t.Error(log.String())
	}
}

// What cannot be made is told in one line, whatever a peer put into it.
func TestSourcesThatAreNotMadeAreLoggedOnce(t *testing.T) {
	p := newPod(t)
	var log bytes.Buffer
	p.log = slog.New(slog.NewTextHandler(&log, nil))
	req := container()
	for range 1000 {
		req.OCI.Mounts = append(req.OCI.Mounts, bind("/etc/\x1b[2J\n"+strings.Repeat("x", 200), "/x"))
	}
	if _, err := p.create(t, req); err != nil {
		t.Fatal(err)
	}
	text := log.String()
	if strings.Count(text, "\n") != 2 || strings.Contains(text, "\x1b") || !strings.Contains(text, "count=1000") || len(text) > 1500 {
		t.Errorf("%q", text)
	}
}
