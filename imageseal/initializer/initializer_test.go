package initializer

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sealpod/sealpod/imageseal"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// build builds a command as images want it, in the folder dir.
func build(t *testing.T, dir, command string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "binary")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, command)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v\n%s", command, err, out)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var guest struct {
	once   sync.Once
	binary []byte
}

func guestBinary(t *testing.T) []byte {
	t.Helper()
	guest.once.Do(func() { guest.binary = build(t, ".", command) })
	if guest.binary == nil {
		t.Fatal("there is no binary")
	}
	return guest.binary
}

// published is the image in a layout of its own.
func published(t *testing.T) (layout, digest string) {
	t.Helper()
	img, err := Image(guestBinary(t))
	if err != nil {
		t.Fatal(err)
	}
	layout = filepath.Join(t.TempDir(), "layout")
	d, err := imageseal.Publish(t.Context(), "oci:"+layout+":1", img, imageseal.Access{})
	if err != nil {
		t.Fatal(err)
	}
	return layout, d.String()
}

func run(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), testenv.Tool(t, name), args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, stderr.Bytes())
	}
	return out
}

// TestSameBinarySameImage compares every file of two layouts.
func TestSameBinarySameImage(t *testing.T) {
	a, digestA := published(t)
	b, digestB := published(t)
	if digestA != digestB {
		t.Errorf("%s and %s", digestA, digestB)
	}
	files := 0
	err := filepath.WalkDir(a, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		files++
		rel, _ := filepath.Rel(a, path)
		one, err1 := os.ReadFile(path)
		two, err2 := os.ReadFile(filepath.Join(b, rel))
		if !bytes.Equal(one, two) {
			t.Errorf("%s differs", rel)
		}
		return errors.Join(err1, err2)
	})
	if err != nil || files != 5 { // index, layout, manifest, configuration, layer
		t.Errorf("%d files, %v", files, err)
	}
}

func TestSkopeoReadsIt(t *testing.T) {
	layout, digest := published(t)
	var got struct {
		Digest, Architecture, Os string
		Labels                   map[string]string
		Layers                   []string
	}
	if err := json.Unmarshal(run(t, "skopeo", "inspect", "oci:"+layout+":1"), &got); err != nil {
		t.Fatal(err)
	}
	if got.Digest != digest || got.Os != "linux" || got.Architecture == "" || len(got.Layers) != 1 || got.Labels["org.opencontainers.image.title"] != "storage-initializer" {
		t.Errorf("%+v", got)
	}
	var config struct {
		Config struct {
			User       string
			Entrypoint []string
		}
	}
	if err := json.Unmarshal(run(t, "skopeo", "inspect", "--config", "oci:"+layout+":1"), &config); err != nil {
		t.Fatal(err)
	}
	if config.Config.User != "1000" || !slices.Equal(config.Config.Entrypoint, []string{"/sealpod", "storage-initializer"}) {
		t.Errorf("%+v", config)
	}
}

// TestRunsAsAnybody unpacks the image and runs it as OpenShift would: a user that
// nobody knows, a root that cannot be written, a volume for the model.
func TestRunsAsAnybody(t *testing.T) {
	testenv.Root(t)
	layout, _ := published(t)
	bundle := filepath.Join(t.TempDir(), "bundle")
	run(t, "umoci", "unpack", "--image", layout+":1", bundle)
	root := filepath.Join(bundle, "rootfs")
	dest := filepath.Join(root, "mnt/models")
	if err := os.MkdirAll(dest, 0o755); err != nil { // which is what container runtimes do
		t.Fatal(err)
	}
	mount := func(source, target, kind string, flags uintptr, data string) {
		t.Helper()
		if err := syscall.Mount(source, target, kind, flags, data); err != nil {
			testenv.Missing(t, "needs to mount: "+err.Error())
		}
	}
	mount(root, root, "", syscall.MS_BIND, "")
	t.Cleanup(func() {
		if err := syscall.Unmount(root, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	mount("", root, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, "")
	mount("models", dest, "tmpfs", 0, "size=16m,mode=0777")

	model := bytes.Repeat([]byte("weights "), 1<<17)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"1"`)
		http.ServeContent(w, r, "", time.Unix(1, 0), bytes.NewReader(model))
	}))
	defer server.Close()
	cmd := exec.CommandContext(t.Context(), "/sealpod", "storage-initializer", server.URL+"/granite.bin", "/mnt/models")
	cmd.Dir, cmd.Env = "/", []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Credential: &syscall.Credential{Uid: 1_000_650_000, Gid: 0}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if got, err := os.ReadFile(filepath.Join(dest, "granite.bin")); err != nil || !bytes.Equal(got, model) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	entries, err := os.ReadDir(dest)
	if err != nil || len(entries) != 1 {
		t.Errorf("%v %v", entries, err)
	}
}

func TestCertificates(t *testing.T) {
	n := 0
	for rest := roots(); ; n++ {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			if len(rest) > 0 {
				t.Errorf("%d bytes are no certificate", len(rest))
			}
			break
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil || !c.IsCA {
			t.Errorf("certificate %d: %v", n, err)
		}
	}
	if n < 50 {
		t.Errorf("%d certificates", n)
	}
}

func TestOtherBinariesAreRefused(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module other\n"), 0o600),
		os.WriteFile(filepath.Join(dir, "main.go"), []byte("package main\n\nfunc main() {}\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	other := bytes.Clone(guestBinary(t))
	other[18] = 2 // e_machine: SPARC
	for name, binary := range map[string][]byte{
		"a script":        []byte("#!/bin/sh\n"),
		"nothing":         nil,
		"another command": build(t, dir, "."),
		"another machine": other,
		"cut":             other[:1000],
	} {
		if _, err := Image(binary); !errors.Is(err, ErrBinary) {
			t.Errorf("%s: %v", name, err)
		}
	}
	shell, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Image(shell); !errors.Is(err, ErrBinary) {
		t.Errorf("dynamically linked: %v", err)
	}
}
