package demo

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/imageseal"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// TestDebianImageThroughARealRegistry takes a Debian root with hard links,
// setuid programs and file capabilities through Debian's own registry and
// skopeo, encrypts and signs it, pulls it with the real daemons and compares
// every file with what GNU tar makes of the same archive.
func TestDebianImageThroughARealRegistry(t *testing.T) {
	testenv.Root(t)
	mmdebstrap, skopeo := testenv.Tool(t, "mmdebstrap"), testenv.Tool(t, "skopeo")
	registry := startDebianRegistry(t)
	w := newWorld(t, registry)
	run := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
		return string(out)
	}

	archive := filepath.Join(w.dir, "root.tar")
	run(mmdebstrap, "--quiet", "--variant=essential", "--include=iputils-ping", "bookworm", archive)
	expected := filepath.Join(w.dir, "expected")
	if err := os.Mkdir(expected, 0o755); err != nil {
		t.Fatal(err)
	}
	run("tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--same-owner", "-xpf", archive, "-C", expected)

	// Out of our hands and into the registry by skopeo, as a user would.
	source := filepath.Join(w.dir, "layout")
	writeLayout(t, source, archive)
	run(skopeo, "copy", "--quiet", "--dest-tls-verify=false", "oci:"+source+":plain", "docker://"+registry+"/debian:plain")

	// The pod trusts signed images of that registry only.
	if err := w.admin.SetResource(t.Context(), imagePolicy, imagePolicyJSON(registry)); err != nil {
		t.Fatal(err)
	}
	sealed := registry + "/debian:sealed"
	if _, err := imageseal.Encrypt(t.Context(), imageseal.EncryptOptions{
		Source: registry + "/debian:plain", Destination: sealed, KeyID: "kbs:///" + kekPath,
		StoreKey: func(ctx context.Context, k imageseal.Key) error { return w.admin.SetResource(ctx, kekPath, k.KEK) },
	}); err != nil {
		t.Fatal(err)
	}
	if err := w.sign(t.Context(), sealed); err != nil {
		t.Fatal(err)
	}
	if out := run(skopeo, "inspect", "--raw", "--tls-verify=false", "docker://"+sealed); !strings.Contains(out, "+encrypted") {
		t.Errorf("skopeo does not see encrypted layers:\n%s", out)
	}

	bundle, _, err := w.pull(t.Context(), sealed, "debian")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unmount(bundle); err != nil {
			t.Error(err)
		}
	})
	want, got := describe(t, expected), describe(t, filepath.Join(bundle, "rootfs"))
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("the rootfs differs from what tar unpacks (-tar +ours):\n%.4000s", d)
	}
	for _, must := range []string{"caps=", "mode=u", "links="} {
		if !strings.Contains(strings.Join(got, "\n"), must) {
			t.Errorf("no entry with %s: the image does not test what it should", must)
		}
	}
}

// startDebianRegistry starts docker-registry on a free loopback port.
func startDebianRegistry(t *testing.T) string {
	t.Helper()
	binary := testenv.Tool(t, "docker-registry")
	dir := t.TempDir()
	addr, err := freeAddr(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %q}\nlog: {level: error}\n", dir, addr)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "serve", config)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	deadline := time.Now().Add(20 * time.Second)
	for up := listening(addr); !up(); {
		if time.Now().After(deadline) {
			t.Fatal("docker-registry does not come up")
		}
		runtime.Gosched()
	}
	return addr
}

// writeLayout makes an OCI layout with one image, tag "plain", whose one layer
// is the archive.
func writeLayout(t *testing.T, dir, archive string) {
	t.Helper()
	base, err := tarball.LayerFromFile(archive, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(mutate.MediaType(mutate.ConfigMediaType(empty.Image, types.OCIConfigJSON), types.OCIManifestSchema1), base)
	if err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture, cf.Config.Cmd = "linux", runtime.GOARCH, []string{"/bin/sh"}
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		t.Fatal(err)
	}
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "plain"})); err != nil {
		t.Fatal(err)
	}
}

// describe lists a tree, one line an entry: type, mode, owner, size, time,
// link target, content, capabilities and the group of hard links it is in.
func describe(t *testing.T, root string) []string {
	t.Helper()
	var lines []string
	first := map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		line := fmt.Sprintf("%s mode=%v owner=%d:%d mtime=%d", rel, info.Mode(), st.Uid, st.Gid, st.Mtim.Sec)
		switch {
		case info.Mode().IsRegular():
			sum, err := hash(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" size=%d sha=%s", st.Size, sum)
			if st.Nlink > 1 {
				if first[st.Ino] == "" {
					first[st.Ino] = rel
				}
				line += fmt.Sprintf(" links=%d of %s", st.Nlink, first[st.Ino])
			}
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + target
		case info.Mode()&fs.ModeDevice != 0:
			line += fmt.Sprintf(" rdev=%d", st.Rdev)
		}
		buf := make([]byte, 256)
		n, err := unix.Lgetxattr(path, "security.capability", buf)
		if err == nil {
			line += " caps=" + hex.EncodeToString(buf[:n])
		} else if !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) {
			return err
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(lines)
	return lines
}

func hash(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)[:8]), nil
}
