package oci

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/imagepull"
	"github.com/sealpod/sealpod/imagepull/layer"
	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
	"github.com/sealpod/sealpod/model/key"
	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/source/internal/cloudtest"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestUnprivileged runs all other tests again as an ordinary user.
func TestUnprivileged(t *testing.T) { testenv.RerunUnprivileged(t) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, address string, more ...string) *Source {
	t.Helper()
	vars := map[string]string{"KSERVE_OCI_INSECURE_REGISTRY": "true"}
	for i := 0; i < len(more); i += 2 {
		vars[more[i]] = more[i+1]
	}
	s, err := New(address, cloudtest.Environ(t, "", nil, vars))
	must(t, err)
	t.Cleanup(s.Close)
	return s
}

// content are the files and links in a folder.
func content(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	must(t, filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		if e.Type() == fs.ModeSymlink {
			to, err := os.Readlink(p)
			out[rel] = "-> " + to
			return err
		}
		st, err := e.Info()
		if err != nil {
			return err
		}
		if st.Mode().Perm() != 0o644 {
			t.Errorf("%s: mode %s", rel, st.Mode())
		}
		b, err := os.ReadFile(p)
		out[rel] = string(b)
		return err
	}))
	return out
}

func same(a, b map[string]string) bool {
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			return false
		}
	}
	return len(a) == len(b)
}

type files = map[string]string

// car is a modelcar, with a base of other things.
func car(t *testing.T) *registrytest.Image {
	return registrytest.NewImage(
		registrytest.Files(t, files{"bin/sh": "sh", "etc/models": "no", "models/": "", "models/old": "old", "models/dir/x": "x", "models/gone/y": "y", "models/kind": "file"}),
		registrytest.Files(t, files{"models/.wh.gone": "", "models/dir/.wh..wh..opq": "", "models/dir/z": "z", "models/old": "new", "models/kind/is": "folder", "models/link": "-> dir/z", "models/dir/up": "-> ../old"}),
	)
}

var carContent = files{"old": "new", "dir/z": "z", "dir/up": "-> ../old", "kind/is": "folder", "link": "-> dir/z"}

func TestModelcar(t *testing.T) {
	reg := registrytest.New(t)
	pushed := reg.Push(t, "acme/model", "v1", car(t))
	for _, address := range []string{"oci://" + reg.Host + "/acme/model:v1", "oci://" + reg.Host + "/acme/model@" + pushed} {
		s := open(t, address)
		if s.Pinned() != strings.Contains(address, "@") {
			t.Error("pinned")
		}
		objects, err := s.List(t.Context())
		if err != nil || len(objects) != 2 || objects[0].Size <= 0 || !strings.HasPrefix(objects[1].Version, "sha256:") {
			t.Fatalf("%v, %v", objects, err)
		}
		if _, err := s.Open(t.Context(), objects[0], 0, -1); !errors.Is(err, source.ErrUnsupported) {
			t.Error(err)
		}
		dir := t.TempDir()
		for range 2 { // a container that restarts has the same again
			var u source.Unpacker = s
			must(t, u.Unpack(t.Context(), dir, nil))
			if got := content(t, dir); !same(got, carContent) {
				t.Errorf("%v", got)
			}
		}
	}
}

func TestIndexHasAnImageForThisMachine(t *testing.T) {
	reg := registrytest.New(t)
	other := registrytest.NewImage(registrytest.Files(t, files{"models/x": "other"}))
	other.Config["architecture"] = "s390x"
	own := registrytest.NewImage(registrytest.Files(t, files{"models/x": "own"}))
	reg.PushIndex(t, "m", "all", []string{"linux/s390x", "linux/" + own.Config["architecture"].(string)}, []*registrytest.Image{other, own})
	reg.PushIndex(t, "m", "none", []string{"linux/s390x"}, []*registrytest.Image{other})
	dir := t.TempDir()
	must(t, open(t, "oci://"+reg.Host+"/m:all").Unpack(t.Context(), dir, nil))
	if got := content(t, dir); !same(got, files{"x": "own"}) {
		t.Errorf("%v", got)
	}
	if _, err := open(t, "oci://"+reg.Host+"/m:none").List(t.Context()); !errors.Is(err, source.ErrNotFound) || podvm.Cause(err) == "" {
		t.Error(err)
	}
}

// hub opens packets it knows.
type hub map[string]podvm.Secret

func (h hub) UnwrapKey(_ context.Context, packet []byte) (podvm.Secret, error) {
	if s, ok := h[string(packet)]; ok {
		return bytes.Clone(s), nil
	}
	return nil, podvm.Explain(errors.New("unknown packet"), "the relying party refused the key")
}

func TestEncryptedLayers(t *testing.T) {
	reg := registrytest.New(t)
	img, keys := car(t), hub{}
	img.Layers[1], keys["packet"] = registrytest.Encrypt(t, img.Layers[1], "packet")
	reg.Push(t, "m", "v1", img)
	s := open(t, "oci://"+reg.Host+"/m:v1")
	dir := t.TempDir()
	for name, tt := range map[string]struct {
		keys  source.Keys
		cause string
		gone  bool
	}{
		"none": {nil, "no confidential data hub", true}, "gone": {imagepull.SocketKeys("/dev/null/s"), "did not open", true},
		"refused": {hub{}, "refused the key", false},
	} {
		err := s.Unpack(t.Context(), dir, tt.keys)
		if !errors.Is(err, layer.ErrDecrypt) || errors.Is(err, key.ErrUnreachable) != tt.gone || !strings.Contains(podvm.Cause(err), tt.cause) {
			t.Errorf("%s: %v, %q", name, err, podvm.Cause(err))
		}
		onlyStaged(t, dir)
	}
	must(t, s.Unpack(t.Context(), dir, keys))
	if got := content(t, dir); !same(got, carContent) {
		t.Errorf("%v", got)
	}
}

// onlyStaged makes sure that nothing has its name.
func onlyStaged(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		if !sealed.InProgress(e.Name()) {
			t.Errorf("%s is there", e.Name())
		}
	}
}

func TestFailedRunIsContinuedAndLeavesNothingUnderItsName(t *testing.T) {
	reg := registrytest.New(t)
	img := car(t)
	reg.Push(t, "m", "v1", img)
	first, second := registrytest.Digest(img.Layers[0].Blob), registrytest.Digest(img.Layers[1].Blob)
	fetched, broken := 0, true
	reg.Hook(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, first) {
			fetched++
		}
		if broken && strings.HasSuffix(r.URL.Path, second) {
			registrytest.ServeBlob(w, r, bytes.Repeat([]byte("x"), len(img.Layers[1].Blob)))
			return true
		}
		return false
	})
	dir := t.TempDir()
	s := open(t, "oci://"+reg.Host+"/m:v1")
	if err := s.Unpack(t.Context(), dir, nil); !errors.Is(err, sealed.ErrIntegrity) || podvm.Cause(err) == "" {
		t.Errorf("another content: %v", err)
	}
	onlyStaged(t, dir)
	broken = false
	must(t, s.Unpack(t.Context(), dir, nil))
	if got := content(t, dir); !same(got, carContent) || fetched != 1 {
		t.Errorf("%v, first layer fetched %d times", got, fetched)
	}
}

func TestHostileImages(t *testing.T) {
	reg := registrytest.New(t)
	for name, tt := range map[string]struct {
		files files
		is    error
	}{
		"no models":        {files{"model/x": "x"}, source.ErrNotFound},
		"empty":            {files{"models/": ""}, source.ErrNotFound},
		"models is a file": {files{"models": "x"}, source.ErrListing},
		"models is a link": {files{"models": "-> etc", "etc/x": "x"}, source.ErrListing},
		"link up":          {files{"models/a": "-> ../../etc/passwd"}, source.ErrListing},
		"link to the root": {files{"models/a": "-> /etc/passwd"}, source.ErrListing},
		"link by a link":   {files{"models/a/b/p": "-> ../..", "models/q": "-> a/b/p/../x"}, source.ErrListing},
		"in progress":      {files{"models/.oci-layers.part/x": "x"}, source.ErrListing},
		"up":               {files{"models/../../x": "x"}, source.ErrListing},
	} {
		reg.Push(t, "bad", "v1", registrytest.NewImage(registrytest.Files(t, tt.files)))
		dir := t.TempDir()
		if err := open(t, "oci://"+reg.Host+"/bad:v1").Unpack(t.Context(), dir, nil); !errors.Is(err, tt.is) || podvm.Cause(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
		onlyStaged(t, dir)
	}
	if _, err := open(t, "oci://"+reg.Host+"/none:v1").List(t.Context()); !errors.Is(err, source.ErrNotFound) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := open(t, "oci://"+reg.Host+"/bad:v1").List(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestCredentialsOfTheDockerConfig(t *testing.T) {
	reg := registrytest.New(t)
	reg.Push(t, "m", "v1", car(t))
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte("u:hunter2"))
	reg.Hook(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == want {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	file := filepath.Join(t.TempDir(), "config.json")
	must(t, os.WriteFile(file, []byte(`{"auths":{"`+reg.Host+`":{"username":"u","password":"hunter2","auth":"`+strings.TrimPrefix(want, "Basic ")+`"}}}`), 0o600))
	if _, err := open(t, "oci://"+reg.Host+"/m:v1", "KSERVE_OCI_DOCKER_CONFIG", file).List(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := open(t, "oci://"+reg.Host+"/m:v1").List(t.Context()); !errors.Is(err, source.ErrRefused) {
		t.Error(err)
	}
	must(t, os.WriteFile(file, []byte(`{"auths":"hunter2"}`), 0o600))
	for _, path := range []string{file, "/none"} {
		_, err := New("oci://"+reg.Host+"/m:v1", cloudtest.Environ(t, "", nil, map[string]string{"KSERVE_OCI_DOCKER_CONFIG": path}))
		if !errors.Is(err, source.ErrUsage) || strings.Contains(err.Error(), "hunter2") {
			t.Error(err)
		}
	}
	for _, address := range []string{"", "oci://", "oci://A B", "s3://m", "oci://" + strings.Repeat("x", 5000)} {
		if _, err := New(address, cloudtest.Environ(t, "", nil, nil)); !errors.Is(err, source.ErrUsage) || podvm.Cause(err) == "" {
			t.Errorf("%.40q: %v", address, err)
		}
	}
}

func FuzzLinksThatStayWithin(f *testing.F) {
	f.Add("a/b", "../c")
	f.Add("q", "a/b/p/../x")
	f.Fuzz(func(t *testing.T, rel, target string) {
		if sealed.CheckPath(rel) != nil || !staysWithin(rel, target) {
			return
		}
		// After the first name, nothing leads up.
		named := false
		for _, part := range strings.Split(target, "/") {
			if named = named || part != ".." && part != "" && part != "."; named && part == ".." {
				t.Errorf("%q to %q", rel, target)
			}
		}
		if !filepath.IsLocal(filepath.Join(filepath.Dir(rel), target)) {
			t.Errorf("%q to %q", rel, target)
		}
	})
}
