package sealed

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sealpod/sealpod/podvm"
)

func TestParseKey(t *testing.T) {
	raw := bytes.Repeat([]byte{0xfb}, KeySize)
	pin := strings.Repeat("ab", 32)
	u := base64.RawURLEncoding.EncodeToString(raw)
	for name, in := range map[string]string{
		"raw": string(raw), "text": u, "padded, with a newline": base64.URLEncoding.EncodeToString(raw) + "\n",
		"JWK": `{"kty":"oct","k":"` + u + `","alg":"A256GCM"}`, "pinned": ` {"kty":"oct","k":"` + u + `","manifest":"sha256:` + pin + `"}`,
	} {
		k, err := ParseKey([]byte(in))
		if err != nil || !bytes.Equal(k.root, raw) || k.Pinned() != (name == "pinned") {
			t.Errorf("%s: %v", name, err)
		}
	}
	k, err := ParseKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"", "sha256:" + pin} {
		again, err := ParseKey(k.JWK(want))
		if err != nil || !bytes.Equal(again.root, raw) || again.Pinned() != (want != "") {
			t.Errorf("JWK with pin %q: %v", want, err)
		}
	}
	for name, in := range map[string]string{
		"nothing": "", "short": u[:40], "standard base64": base64.StdEncoding.EncodeToString(raw), "two": u + u,
		"no JSON": "{" + u, "EC": `{"kty":"EC","k":"` + u + `"}`, "no k": `{"kty":"oct"}`,
		"no digest": `{"kty":"oct","k":"` + u + `","manifest":"` + pin + `"}`,
		"cut":       `{"kty":"oct","k":"` + u + `","manifest":"sha256:` + pin[2:] + `"}`, "long": strings.Repeat("A", MaxKey+1),
	} {
		if _, err := ParseKey([]byte(in)); !errors.Is(err, ErrKey) || strings.Contains(fmt.Sprint(err), u[:10]) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestAnythingMovedIsFound moves, cuts, mixes and changes sealed bytes.
func TestAnythingMovedIsFound(t *testing.T) {
	k := testKey(t)
	content := func(id, path string) func(Header) (*Cipher, error) {
		return func(h Header) (*Cipher, error) { return k.Content(h, id, path) }
	}
	plain := bytes.Repeat([]byte("weights "), 3*SegmentSize/8)
	object := sealObject(t, content("1", "a"), plain)
	same := sealObject(t, content("1", "a"), plain)
	if got, err := open(content("1", "a"), slices.Clone(object)); err != nil || !bytes.Equal(got, plain) {
		t.Fatal(err)
	}
	changed := func(f func([]byte) []byte) []byte { return f(slices.Clone(object)) }
	for name, in := range map[string][]byte{
		"nothing":              nil,
		"header only":          object[:HeaderSize],
		"cut in a segment":     object[:SegmentSize+100],
		"cut between segments": object[:2*SegmentSize],
		"longer":               changed(func(b []byte) []byte { return append(b, 0) }),
		"a bit":                changed(func(b []byte) []byte { b[2*SegmentSize+9] ^= 1; return b }),
		"salt":                 changed(func(b []byte) []byte { b[1] ^= 1; return b }),
		"header length":        changed(func(b []byte) []byte { b[0]++; return b }),
		"segments exchanged": changed(func(b []byte) []byte {
			return slices.Concat(b[:SegmentSize], b[2*SegmentSize:3*SegmentSize], b[SegmentSize:2*SegmentSize], b[3*SegmentSize:])
		}),
		"segment twice":              changed(func(b []byte) []byte { return slices.Concat(b[:2*SegmentSize], b[SegmentSize:]) }),
		"segment of another sealing": changed(func(b []byte) []byte { copy(b[SegmentSize:2*SegmentSize], same[SegmentSize:]); return b }),
	} {
		if got, err := open(content("1", "a"), in); !errors.Is(err, ErrIntegrity) || got != nil {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	for name, c := range map[string]func(Header) (*Cipher, error){
		"another path": content("1", "b"), "another model": content("2", "a"), "the manifest": k.Manifest,
		"another key": func(h Header) (*Cipher, error) { return testKey(t).Content(h, "1", "a") },
	} {
		if _, err := open(c, slices.Clone(object)); !errors.Is(err, ErrIntegrity) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

const id = "000102030405060708090a0b0c0d0e0f"

func goodManifest() *Manifest {
	return &Manifest{Version: 1, ID: id, Name: "tiny", Created: time.Date(2026, 8, 1, 0, 0, 0, 0, time.UTC), Files: []File{
		{Path: "artifacts/model.safetensors", Object: "o1", Size: 5, Mode: 0o644, Sealed: true},
		{Path: "config.yml", Object: "config.yml", Size: 7, Mode: 0o600, SHA256: strings.Repeat("0f", 32)},
	}}
}

func TestManifest(t *testing.T) {
	k := testKey(t)
	text, err := json.Marshal(goodManifest())
	if err != nil {
		t.Fatal(err)
	}
	stored := sealObject(t, k.Manifest, text)
	m, err := OpenManifest(k, slices.Clone(stored))
	if err != nil || m.Total() != 12 || len(m.Files) != 2 {
		t.Fatal(m, err)
	}
	sum := sha256.Sum256(stored)
	k.pin = sum[:]
	if _, err := OpenManifest(k, slices.Clone(stored)); err != nil {
		t.Fatal(err)
	}
	// An older version under the same key is authentic, and still not the one.
	if _, err := OpenManifest(k, sealObject(t, k.Manifest, text)); !errors.Is(err, ErrPin) {
		t.Error(err)
	}
	k.pin = nil
	if _, err := OpenManifest(testKey(t), slices.Clone(stored)); !errors.Is(err, ErrIntegrity) {
		t.Error(err)
	}
	if _, err := OpenManifest(k, make([]byte, MaxManifest+1)); !errors.Is(err, podvm.ErrTooLarge) {
		t.Error(err)
	}
	for _, in := range []string{"", "null", "[]", `{"version":1}`, string(text) + "x", strings.Replace(string(text), `"name"`, `"nick"`, 1)} {
		if _, err := OpenManifest(k, sealObject(t, k.Manifest, []byte(in))); !errors.Is(err, ErrManifest) {
			t.Errorf("%.40q: %v", in, err)
		}
	}
}

func TestCheck(t *testing.T) {
	for name, change := range map[string]func(*Manifest){
		"version":            func(m *Manifest) { m.Version = 2 },
		"id":                 func(m *Manifest) { m.ID = strings.ToUpper(id) },
		"short id":           func(m *Manifest) { m.ID = id[2:] },
		"name":               func(m *Manifest) { m.Name = strings.Repeat("x", 257) },
		"listed twice":       func(m *Manifest) { m.Files[1].Path = m.Files[0].Path },
		"object twice":       func(m *Manifest) { m.Files[1].Object = m.Files[0].Object },
		"manifest":           func(m *Manifest) { m.Files[0].Object = ManifestObject },
		"file and folder":    func(m *Manifest) { m.Files[1].Path = "artifacts" },
		"deep file, folder":  func(m *Manifest) { m.Files[0].Path = "config.yml/a/b" },
		"negative":           func(m *Manifest) { m.Files[0].Size = -1 },
		"huge":               func(m *Manifest) { m.Files[0].Size = MaxSize + 1 },
		"huge in all":        func(m *Manifest) { m.Files[0].Size, m.Files[1].Size = MaxSize, 1 },
		"setuid":             func(m *Manifest) { m.Files[0].Mode = 0o4755 },
		"sealed and public":  func(m *Manifest) { m.Files[1].Sealed = true },
		"neither":            func(m *Manifest) { m.Files[0].Sealed = false },
		"short digest":       func(m *Manifest) { m.Files[1].SHA256 = hex.EncodeToString([]byte("x")) },
		"parent":             func(m *Manifest) { m.Files[0].Path = "../x" },
		"parent inside":      func(m *Manifest) { m.Files[0].Path = "a/../../x" },
		"absolute":           func(m *Manifest) { m.Files[0].Path = "/etc/passwd" },
		"dot":                func(m *Manifest) { m.Files[0].Path = "." },
		"not clean":          func(m *Manifest) { m.Files[0].Path = "a//b" },
		"folder":             func(m *Manifest) { m.Files[0].Path = "a/" },
		"empty":              func(m *Manifest) { m.Files[0].Path = "" },
		"NUL":                func(m *Manifest) { m.Files[0].Path = "a\x00" },
		"newline":            func(m *Manifest) { m.Files[0].Path = "a\nb" },
		"not UTF-8":          func(m *Manifest) { m.Files[0].Path = "a\xff" },
		"long name":          func(m *Manifest) { m.Files[0].Path = strings.Repeat("a", 241) },
		"long path":          func(m *Manifest) { m.Files[0].Path = strings.Repeat("a/", 600) + "b" },
		"in progress":        func(m *Manifest) { m.Files[0].Path = "a/.b.part" },
		"notes of progress":  func(m *Manifest) { m.Files[0].Path = ".b.part.map/x" },
		"object above":       func(m *Manifest) { m.Files[0].Object = "../other/model" },
		"object is a folder": func(m *Manifest) { m.Files[0].Object = "o/" },
	} {
		m := goodManifest()
		if err := m.Check(); err != nil {
			t.Fatal(err)
		}
		if change(m); m.Check() == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func FuzzParseManifest(f *testing.F) {
	text, err := json.Marshal(goodManifest())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"version":1,"id":"` + id + `","files":[{"path":"a","object":"b","size":1e3}]}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		m, err := ParseManifest(in)
		if err != nil {
			return
		}
		for _, file := range m.Files {
			if strings.HasPrefix(file.Path, "/") || strings.Contains("/"+file.Path+"/", "/../") || file.Size < 0 {
				t.Fatalf("accepted %+v", file)
			}
		}
	})
}

// FuzzOpenManifest opens hostile objects: none is under the key.
func FuzzOpenManifest(f *testing.F) {
	k := testKey(f)
	f.Add([]byte{})
	f.Add(append([]byte{HeaderSize}, make([]byte, 60)...))
	f.Fuzz(func(t *testing.T, in []byte) {
		if m, err := OpenManifest(k, in); err == nil {
			t.Fatalf("opened %v", m)
		}
	})
}

func FuzzParseKey(f *testing.F) {
	f.Add([]byte(`{"kty":"oct","k":"` + strings.Repeat("A", 43) + `","manifest":"sha256:` + strings.Repeat("0", 64) + `"}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		if k, err := ParseKey(in); err == nil && len(k.root) != KeySize {
			t.Fatalf("a key of %d bytes", len(k.root))
		}
	})
}

// BenchmarkOpen is the speed of one core.
func BenchmarkOpen(b *testing.B) {
	k := testKey(b)
	object := sealObject(b, k.Manifest, make([]byte, SegmentSize+restPlain))
	h, err := ParseHeader(object)
	if err != nil {
		b.Fatal(err)
	}
	c, err := k.Manifest(h)
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, SegmentSize)
	b.SetBytes(restPlain)
	b.ReportAllocs()
	for b.Loop() {
		copy(buf, object[SegmentSize:2*SegmentSize])
		if _, err := c.Open(1, false, buf); err != nil {
			b.Fatal(err)
		}
	}
}
