package imagepull

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// TestRootfsIsWhatUmociUnpacks pulls a Debian root in six layers and compares
// every name with what umoci makes of the same layers: type, mode, owner,
// device, content, target, attributes, hard links and times.
func TestRootfsIsWhatUmociUnpacks(t *testing.T) {
	m := newMachine(t)
	m.needRoot(t)
	umoci, mmdebstrap := testenv.Tool(t, "umoci"), testenv.Tool(t, "mmdebstrap")
	dir := t.TempDir()
	archive := filepath.Join(dir, "root.tar")
	runTool(t, mmdebstrap, "--quiet", "--variant=essential", "--include=iputils-ping", "bookworm", archive)

	tars := append(splitRoot(t, archive), changes(t)...)
	var gzipped []registrytest.Layer
	for _, raw := range tars {
		gzipped = append(gzipped, registrytest.Layer{Blob: gz(t, raw), MediaType: registrytest.GzipType, DiffID: registrytest.Digest(raw)})
	}
	layout := filepath.Join(dir, "layout")
	writeLayout(t, layout, "plain", registrytest.NewImage(gzipped...))
	runTool(t, umoci, "unpack", "--image", layout+":plain", filepath.Join(dir, "bundle"))
	want := describe(t, filepath.Join(dir, "bundle", "rootfs"))

	// The same layers, stored in every way there is.
	broker := &keyBroker{known: map[string]podvm.Secret{}}
	layers := slices.Clone(gzipped)
	layers[1] = registrytest.Layer{Blob: zst(t, tars[1]), MediaType: "application/vnd.oci.image.layer.v1.tar+zstd", DiffID: layers[1].DiffID}
	layers[2] = encrypt(t, layers[2], "packet of layer 2", broker)
	layers[3] = registrytest.Layer{Blob: tars[3], MediaType: "application/vnd.oci.image.layer.v1.tar", DiffID: layers[3].DiffID}
	layers[4] = encrypt(t, registrytest.Layer{Blob: tars[4], MediaType: layers[3].MediaType, DiffID: layers[4].DiffID}, "packet of layer 4", broker)
	m.Push(t, "debian", "1", registrytest.NewImage(layers...))
	m.deps.KeyUnwrapper = broker
	if _, err := m.puller(t).Pull(deadline(t), m.ref("debian:1"), m.bundle("c")); err != nil {
		t.Fatal(err)
	}
	got := describe(t, filepath.Join(m.bundle("c"), "rootfs"))
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("the rootfs (+) is not what umoci (-) unpacks:\n%.4000s", d)
	}
	all := strings.Join(got, "\n")
	for _, part := range []string{"security.capability=", "user.note=", "urwxr-xr-x", "dtrwxrwxrwx", " links ", " dev 1:3", "prw"} {
		if !strings.Contains(all, part) {
			t.Errorf("no line with %q: the image does not test what it should", part)
		}
	}
	if len(got) < 3000 {
		t.Errorf("only %d names", len(got))
	}
}

func runTool(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// splitRoot makes three layers of one archive: libraries, the rest of /usr, the
// rest.
func splitRoot(t testing.TB, archive string) [][]byte {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // read-only
	var parts [3]bytes.Buffer
	var out [3]*tar.Writer
	for i := range out {
		out[i] = tar.NewWriter(&parts[i])
	}
	for in := tar.NewReader(f); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		i := 2
		switch name := strings.TrimPrefix(h.Name, "./"); {
		case strings.HasPrefix(name, "usr/lib/"):
			i = 0
		case strings.HasPrefix(name, "usr/"):
			i = 1
		}
		if err := out[i].WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(out[i], in); err != nil {
			t.Fatal(err)
		}
	}
	var tars [][]byte
	for i := range out {
		if err := out[i].Close(); err != nil {
			t.Fatal(err)
		}
		tars = append(tars, parts[i].Bytes())
	}
	return tars
}

// changes are the layers on top: what a build may do to the files below.
func changes(t testing.TB) [][]byte {
	t.Helper()
	at := time.Unix(1600000000, 0)
	xattrs := func(kv ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m["SCHILY.xattr."+kv[i]] = kv[i+1]
		}
		return m
	}
	const netRaw = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	dir := func(name string, mode int64, uid int) tar.Header {
		return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode, Uid: uid, Gid: uid}
	}
	file := func(name string, mode int64) tar.Header { return tar.Header{Name: name, Mode: mode} }
	link := func(typ byte, name, target string) tar.Header {
		return tar.Header{Typeflag: typ, Name: name, Linkname: target, Mode: 0o777}
	}
	layers := [][]tar.Header{
		{
			dir("etc/", 0o755, 0), file("etc/.wh.motd", 0), file("etc/.wh.issue", 0),
			dir("usr/", 0o755, 0), dir("usr/share/", 0o755, 0), file("usr/share/.wh.doc", 0),
			dir("usr/bin/", 0o755, 0), file("usr/bin/perl", 0o755), // one of two hard links
			dir("var/", 0o755, 0), dir("var/cache/", 0o700, 33), file("var/cache/.wh..wh..opq", 0), file("var/cache/mine", 0o640),
			dir("app/", 0o755, 1000), file("app/a", 0o600), link(tar.TypeLink, "app/b", "app/a"), link(tar.TypeLink, "app/c", "/app/a"),
			{Name: "app/cap", Mode: 0o755, Uid: 5, Gid: 6, PAXRecords: xattrs("security.capability", netRaw)},
			{Name: "app/note", Mode: 0o444, PAXRecords: xattrs("user.note", "a\x00b", "trusted.note", "c")},
			{Typeflag: tar.TypeDir, Name: "app/noted/", Mode: 0o750, PAXRecords: xattrs("user.note", "dir")},
			file("app/su", 0o4755), file("app/sg", 0o2755), dir("app/sticky/", 0o1777, 0),
			{Typeflag: tar.TypeSymlink, Name: "app/link", Linkname: "../etc/passwd", Mode: 0o777, Uid: 7, Gid: 8, ModTime: time.Unix(1234567890, 0)},
			{Typeflag: tar.TypeFifo, Name: "app/fifo", Mode: 0o620}, {Typeflag: tar.TypeBlock, Name: "app/disk", Mode: 0o660, Devmajor: 259, Devminor: 70000},
			file("app/type", 0o644), dir("app/kind/", 0o755, 0), file("app/kind/f", 0o644), file("app/"+strings.Repeat("long", 60), 0o644),
			dir("app/tree/", 0o755, 0), dir("app/tree/sub/", 0o711, 9), file("app/tree/sub/f", 0o644),
		},
		{
			// Whiteouts of layer 4, types that change, a tree that comes back empty.
			dir("app/", 0o751, 1001), file("app/.wh.b", 0), file("app/.wh.su", 0), file("app/a", 0o606),
			dir("app/type/", 0o700, 3), file("app/type/f", 0o644), file("app/kind", 0o644),
			file("app/.wh.tree", 0), dir("app/tree/", 0o701, 2), file("app/tree/new", 0o644),
			link(tar.TypeSymlink, "app/sticky", "tree"),
			{Typeflag: tar.TypeDir, Name: "./", Mode: 0o711, Uid: 1, Gid: 2},
		},
		{
			// No entry for the directories these are in.
			file("app/.wh.type", 0), file("app/again", 0o640), link(tar.TypeLink, "app/twin", "app/again"),
			dir("usr/share/doc/", 0o755, 0), file("usr/share/doc/README", 0o644), file("etc/motd", 0o644), file("tmp/f", 0o600), file("var/cache/f", 0o600),
			{Name: "app/" + strings.Repeat("d/", 30) + "deep", Mode: 0o644, Uid: 70000, Gid: 3000000},
		},
	}
	var tars [][]byte
	for i, entries := range layers {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range entries {
			body := ""
			if h.Typeflag == 0 {
				h.Typeflag = tar.TypeReg
				if !strings.Contains(h.Name, ".wh.") {
					body = fmt.Sprintf("%s of layer %d", h.Name, i)
				}
			}
			if h.ModTime.IsZero() {
				h.ModTime = at.Add(time.Duration(i) * time.Hour)
			}
			h.Size = int64(len(body))
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(w, body); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		tars = append(tars, b.Bytes())
	}
	return tars
}

// writeLayout makes an OCI image layout with one tag.
func writeLayout(t testing.TB, dir, tag string, img *registrytest.Image) {
	t.Helper()
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		t.Fatal(err)
	}
	put := func(mediaType string, b []byte) registrytest.Object {
		name := strings.TrimPrefix(registrytest.Digest(b), "sha256:")
		if err := os.WriteFile(filepath.Join(blobs, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
		return registrytest.Descriptor(mediaType, b)
	}
	var layers []registrytest.Object
	for _, l := range img.Layers {
		layers = append(layers, put(l.MediaType, l.Blob))
	}
	manifest := put(registrytest.ManifestType, registrytest.JSON(t, registrytest.Object{
		"schemaVersion": 2, "config": put(registrytest.ConfigType, registrytest.JSON(t, img.Config)), "layers": layers,
	}))
	manifest["annotations"] = registrytest.Object{"org.opencontainers.image.ref.name": tag}
	index := registrytest.JSON(t, registrytest.Object{"schemaVersion": 2, "manifests": []any{manifest}})
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, "index.json"), index, 0o600),
		os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o600),
	); err != nil {
		t.Fatal(err)
	}
}

func gz(t testing.TB, raw []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err == nil {
		_, err = w.Write(raw)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zst(t testing.TB, raw []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close() //nolint:errcheck // writes nowhere
	return w.EncodeAll(raw, nil)
}

// implied are directories for which the last of the changes has no entry. Umoci
// leaves them the time at which it makes something in them.
var implied = map[string]bool{"app": true, "tmp": true, "var/cache": true, "etc": true}

// describe lists a tree, a line for each name and one for each group of hard
// links. Sizes of directories belong to the file system and are left out.
func describe(t testing.TB, root string) []string {
	t.Helper()
	var lines []string
	names := map[uint64][]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%s %v %o %d:%d", rel, info.Mode(), st.Mode, st.Uid, st.Gid)
		if !implied[rel] && !strings.HasPrefix(rel, "app/d") {
			line += fmt.Sprintf(" @%d.%d", st.Mtim.Sec, st.Mtim.Nsec)
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			sum, err := sumOf(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d bytes %x", st.Size, sum)
			names[st.Ino] = append(names[st.Ino], rel)
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + target
		case unix.S_IFCHR, unix.S_IFBLK:
			line += fmt.Sprintf(" dev %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		lines = append(lines, line+xattrsOf(t, path))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, group := range names {
		if len(group) > 1 {
			slices.Sort(group)
			lines = append(lines, " links "+strings.Join(group, " = "))
		}
	}
	slices.Sort(lines)
	return lines
}

func sumOf(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read-only
	h := sha256.New()
	_, err = io.Copy(h, f)
	return h.Sum(nil)[:8], err
}

func xattrsOf(t testing.TB, path string) string {
	t.Helper()
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		t.Fatal(err)
	}
	list := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	slices.Sort(list)
	out := ""
	for _, name := range list {
		if name == "" {
			continue
		}
		n, err := unix.Lgetxattr(path, name, buf)
		if err != nil {
			t.Fatal(err)
		}
		out += fmt.Sprintf(" %s=%q", name, buf[:n])
	}
	return out
}
