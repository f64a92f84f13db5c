package imagepull

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/imagepull/layer"
	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
)

// TestHostileTarsTouchNothing pulls layers whose manifest and digests are in
// order and whose tars are not; package untar has many more of them. GUEST stands
// for the absolute path of the guest's files.
func TestHostileTarsTouchNothing(t *testing.T) {
	link := func(name, to string) *tar.Header {
		return &tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeSymlink}
	}
	hard := func(name, to string) *tar.Header {
		return &tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeLink}
	}
	file := func(name string) *tar.Header { return &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o666} }
	up := strings.Repeat("../", 20)
	tests := map[string]struct {
		in   []*tar.Header
		tail []byte // after them, for what archive/tar does not write
		err  error  // nil: pulled, and harmless
		has  []string
	}{
		"dot dot":                          {in: []*tar.Header{file(up + "GUEST/etc/passwd")}, err: layer.ErrArchive},
		"dot dot in the middle":            {in: []*tar.Header{file("a/b/" + up + "GUEST/etc/passwd")}, err: layer.ErrArchive},
		"absolute":                         {in: []*tar.Header{file("GUEST/etc/passwd")}, has: []string{"GUEST/etc/passwd"}},
		"through a link":                   {in: []*tar.Header{link("l", "GUEST/etc"), file("l/passwd")}},
		"through a relative link":          {in: []*tar.Header{link("l", up+"GUEST/etc"), file("l/passwd")}},
		"over a link":                      {in: []*tar.Header{link("l", "GUEST/etc/passwd"), file("l")}, has: []string{"l"}},
		"mode through a link":              {in: []*tar.Header{link("l", "GUEST/etc"), {Name: "l/", Typeflag: tar.TypeDir, Mode: 0o777}}},
		"whiteout through a link":          {in: []*tar.Header{link("l", "GUEST/etc"), file("l/.wh.passwd")}},
		"hard link to the guest":           {in: []*tar.Header{hard("h", "GUEST/etc/passwd")}, err: layer.ErrArchive},
		"hard link to the guest, relative": {in: []*tar.Header{hard("h", up+"GUEST/etc/passwd")}, err: layer.ErrArchive},
		"hard link through a link":         {in: []*tar.Header{link("l", "GUEST/etc"), hard("h", "l/passwd")}, err: layer.ErrArchive},
		"whiteout of all":                  {in: []*tar.Header{file("d/.wh...")}, err: layer.ErrArchive},
		"PAX header of a gibibyte":         {tail: paxOfAGibibyte(t), err: layer.ErrArchive},
		"name without end":                 {in: []*tar.Header{file(strings.Repeat("d/", 3000) + "f")}, err: layer.ErrTooLarge},
		"file of an exbibyte":              {tail: sizeOnly(t, 1<<60), err: layer.ErrTooLarge},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			inBothModes(t, func(t *testing.T, m *machine) {
				unharmed := m.guarded(t)
				guest := filepath.Join(filepath.Dir(m.work), "guest")
				var b bytes.Buffer
				w := tar.NewWriter(&b)
				for _, h := range tt.in {
					h := *h
					for _, s := range []*string{&h.Name, &h.Linkname} {
						*s = strings.ReplaceAll(strings.Replace(*s, "../GUEST", ".."+guest, 1), "GUEST", guest)
					}
					if err := w.WriteHeader(&h); err != nil {
						t.Fatal(err)
					}
				}
				if err := w.Flush(); err != nil {
					t.Fatal(err)
				}
				b.Write(tt.tail)
				if tt.tail == nil {
					if err := w.Close(); err != nil {
						t.Fatal(err)
					}
				}
				l := registrytest.Layer{Blob: gz(t, b.Bytes()), MediaType: registrytest.GzipType, DiffID: registrytest.Digest(b.Bytes())}
				m.Push(t, "a", "1", registrytest.NewImage(twoLayers(t).Layers[0], l))
				p := m.puller(t)
				_, err := p.Pull(deadline(t), m.ref("a:1"), m.bundle("c"))
				if !errors.Is(err, tt.err) || (err == nil) != (tt.err == nil) {
					t.Errorf("Pull: %v, want %v", err, tt.err)
				}
				if err == nil {
					for _, name := range tt.has {
						if _, err := os.Lstat(filepath.Join(m.bundle("c"), "rootfs", strings.ReplaceAll(name, "GUEST", guest))); err != nil {
							t.Error(err)
						}
					}
					if err := errors.Join(p.Remove(t.Context(), m.bundle("c")), os.Remove(m.bundle("c")), p.Close(), m.dropLayers(), os.Mkdir(filepath.Join(m.work, "layers"), 0o700)); err != nil {
						t.Fatal(err)
					}
					// What was known of the layers goes at the next start.
					p = m.puller(t)
					if _, err := p.Pull(deadline(t), m.ref("a:none"), m.bundle("none")); err == nil {
						t.Error("pulled what is not there")
					}
				}
				unharmed(p)
			})
		})
	}
}

// paxOfAGibibyte is the header of extended attributes that says it is that long,
// and the first mebibytes of them.
func paxOfAGibibyte(t *testing.T) []byte {
	t.Helper()
	return append(header(t, tar.Header{Name: "p", Typeflag: tar.TypeReg, Size: 1 << 30}, 'x'), bytes.Repeat([]byte("1024 comment=xxx"), 1<<18)...)
}

// sizeOnly is the header of a file that says it is that long.
func sizeOnly(t *testing.T, size int64) []byte {
	t.Helper()
	return header(t, tar.Header{Name: "f", Typeflag: tar.TypeReg, Size: size, Format: tar.FormatGNU}, tar.TypeReg)
}

// header is one block with the type changed to typ, and its checksum corrected.
func header(t *testing.T, h tar.Header, typ byte) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(&h); err != nil {
		t.Fatal(err)
	}
	raw := b.Bytes()
	copy(raw[148:156], "        ")
	raw[156] = typ
	sum := 0
	for _, c := range raw[:512] {
		sum += int(c)
	}
	copy(raw[148:], []byte{byte('0' + sum>>15&7), byte('0' + sum>>12&7), byte('0' + sum>>9&7), byte('0' + sum>>6&7), byte('0' + sum>>3&7), byte('0' + sum&7), 0, ' '})
	return raw[:512]
}
