package cidata

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
)

const content = "#cloud-config\nwrite_files: []\n"

// image makes an image with xorriso, in the manner of mkisofs.
func image(t testing.TB, label string, files map[string]string, args ...string) []byte {
	t.Helper()
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "iso")
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), testenv.Tool(t, "xorriso"), append(append([]string{"-as", "mkisofs", "-quiet", "-o", out, "-V", label}, args...), dir)...)
	if log, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	raw, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// plain makes an image by hand, whose one file has the identifier id.
func plain(id string) []byte {
	b := make([]byte, 20*sector)
	primary, end, dir := b[16*sector:], b[17*sector:], b[18*sector:]
	primary[0], end[0] = typePrimary, typeEnd
	copy(primary[1:], "CD001")
	copy(end[1:], "CD001")
	copy(primary[40:], "cidata                          ")
	binary.LittleEndian.PutUint16(primary[128:], sector)
	binary.LittleEndian.PutUint32(primary[156+2:], 18)
	binary.LittleEndian.PutUint32(primary[156+10:], sector)
	dir[0] = byte(recordHeader + len(id) + 1 - len(id)%2)
	binary.LittleEndian.PutUint32(dir[2:], 19)
	binary.LittleEndian.PutUint32(dir[10:], uint32(len(content)))
	dir[32] = byte(len(id))
	copy(dir[33:], id)
	copy(b[19*sector:], content)
	return b
}

func TestRead(t *testing.T) {
	files := map[string]string{FileName: content, "meta-data": "instance-id: x\n"}
	many := map[string]string{FileName: content}
	for _, c := range "abcdefghijklmnopqrst" {
		many["meta-data-"+strings.Repeat(string(c), 60)] = "x"
	}
	for name, raw := range map[string][]byte{
		"Rock Ridge and Joliet":           image(t, "cidata", files, "-R", "-J"),
		"Rock Ridge":                      image(t, "cidata", files, "-R"),
		"Joliet":                          image(t, "cidata", files, "-J", "--norock"),
		"label in capitals":               image(t, "CIDATA", files, "-R"),
		"a directory of several blocks":   image(t, "cidata", many, "-R", "-J"),
		"as the library of libvirt hosts": plain("user-data;1"),
		"plain, capitals":                 plain("USER-DATA.;1"),
		"plain, bare":                     plain("user-data"),
	} {
		if got, err := Read(bytes.NewReader(raw), 1<<20); err != nil || string(got) != content {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	good := plain("user-data;1")
	change := func(f func([]byte)) []byte {
		b := bytes.Clone(good)
		f(b)
		return b
	}
	for name, tt := range map[string]struct {
		raw  []byte
		want error
	}{
		"empty disk":           {nil, ErrFormat},
		"zeros":                {make([]byte, 1<<20), ErrFormat},
		"wrong label":          {change(func(b []byte) { copy(b[16*sector+40:], "config") }), ErrLabel},
		"no such file":         {plain("meta-data;1"), ErrNoFile},
		"no end":               {change(func(b []byte) { b[17*sector] = 0 }), ErrFormat},
		"no primary":           {change(func(b []byte) { b[16*sector] = 0 }), ErrFormat},
		"blocks of 512":        {change(func(b []byte) { binary.LittleEndian.PutUint16(b[16*sector+128:], 512) }), ErrFormat},
		"huge directory":       {change(func(b []byte) { binary.LittleEndian.PutUint32(b[16*sector+166:], 1<<31) }), ErrFormat},
		"directory elsewhere":  {change(func(b []byte) { binary.LittleEndian.PutUint32(b[16*sector+158:], 1<<31) }), ErrFormat},
		"file beyond the end":  {change(func(b []byte) { binary.LittleEndian.PutUint32(b[18*sector+2:], 20) }), ErrFormat},
		"file of 4 GiB":        {change(func(b []byte) { binary.LittleEndian.PutUint32(b[18*sector+10:], 1<<32-1) }), podvm.ErrTooLarge},
		"file over the limit":  {change(func(b []byte) { binary.LittleEndian.PutUint32(b[18*sector+10:], 1025) }), podvm.ErrTooLarge},
		"a directory":          {change(func(b []byte) { b[18*sector+25] = flagDirectory }), ErrFormat},
		"in several extents":   {change(func(b []byte) { b[18*sector+25] = flagMoreExtents }), ErrFormat},
		"interleaved":          {change(func(b []byte) { b[18*sector+26] = 1 }), ErrFormat},
		"record too short":     {change(func(b []byte) { b[18*sector] = 20 }), ErrFormat},
		"record past the end":  {change(func(b []byte) { b[16*sector+166], b[16*sector+167] = 40, 0 }), ErrFormat},
		"name past the record": {change(func(b []byte) { b[18*sector+32] = 200 }), ErrFormat},
	} {
		if got, err := Read(bytes.NewReader(tt.raw), 1024); !errors.Is(err, tt.want) || got != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add(plain("user-data;1")[16*sector:])
	f.Add(plain("USER-DATA.;1")[16*sector:])
	f.Fuzz(func(t *testing.T, tail []byte) {
		got, err := Read(bytes.NewReader(append(make([]byte, 16*sector), tail...)), 1024)
		if (err == nil) != (got != nil) || len(got) > 1024 {
			t.Fatalf("%q, %v", got, err)
		}
	})
}
