package luks

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
)

var testKey = []byte("correct horse battery staple")

// cryptsetup runs the real program with the test key as its input.
func cryptsetup(t testing.TB, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(context.Background(), testenv.Tool(t, "cryptsetup"), args...)
	cmd.Stdin = bytes.NewReader(testKey)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("cryptsetup %v: %v\n%s", args, err, out)
	}
	return out
}

// image makes a sparse file.
func image(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, size)); err != nil {
		t.Fatal(err)
	}
	return path
}

// cheap options keep the derivation short.
var cheap = []string{"--batch-mode", "luksFormat", "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", "-"}

// realArea is the header of a volume that the real cryptsetup made.
func realArea(t testing.TB, options ...string) []byte {
	t.Helper()
	img := image(t, 32<<20)
	cryptsetup(t, append(append(append([]string{}, cheap...), options...), img)...)
	f, err := os.Open(img)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	area, err := readArea(f)
	if err != nil {
		t.Fatalf("%v: %v", options, err)
	}
	return area
}

// opens tells whether the real cryptsetup opens area with the test key.
func opens(t testing.TB, area []byte) error {
	t.Helper()
	header := filepath.Join(t.TempDir(), "header")
	if err := os.WriteFile(header, area, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(testenv.Tool(t, "cryptsetup"), "open", "--test-passphrase", "--type", "luks2", "--header", header, "--key-file", "-", image(t, 64<<20))
	cmd.Stdin = bytes.NewReader(testKey)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// Headers the real program makes are read as it reads them itself, and the copy
// alone, which is all it gets from us, is enough for it.
func TestHeadersOfTheRealProgram(t *testing.T) {
	tests := map[string]struct {
		options []string
		keySize uint64
		sector  uint64
	}{
		"defaults":             {nil, 64, 0},
		"sectors of 512":       {[]string{"--sector-size", "512"}, 64, 512},
		"sectors of 4096":      {[]string{"--sector-size", "4096"}, 64, 4096},
		"AES-128":              {[]string{"--key-size", "256"}, 32, 0},
		"argon2id":             {[]string{"--pbkdf", "argon2id", "--pbkdf-memory", "32", "--pbkdf-force-iterations", "4"}, 64, 0},
		"argon2i":              {[]string{"--pbkdf", "argon2i", "--pbkdf-memory", "32", "--pbkdf-force-iterations", "4"}, 64, 0},
		"small header":         {[]string{"--luks2-metadata-size", "16k", "--luks2-keyslots-size", "512k"}, 64, 0},
		"large metadata":       {[]string{"--luks2-metadata-size", "256k"}, 64, 0},
		"a label and a UUID":   {[]string{"--label", "data", "--uuid", "11111111-2222-3333-4444-555555555555"}, 64, 0},
		"SHA-512":              {[]string{"--hash", "sha512"}, 64, 0},
		"as we make them":      {append([]string{"--key-size", "512", "--hash", "sha256"}, passphrase...), 64, 0},
		"random from urandom":  {[]string{"--use-urandom"}, 64, 0},
		"key slot number five": {[]string{"--key-slot", "5"}, 64, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			area := realArea(t, tt.options...)
			m, err := parseArea(area)
			if err != nil {
				t.Fatal(err)
			}
			header := filepath.Join(t.TempDir(), "header")
			if err := os.WriteFile(header, area, 0o600); err != nil {
				t.Fatal(err)
			}
			var dump struct {
				Keyslots map[string]struct {
					KeySize uint64 `json:"key_size"`
				}
				Segments map[string]struct {
					Offset     string
					SectorSize uint64 `json:"sector_size"`
				}
			}
			if err := json.Unmarshal(cryptsetup(t, "luksDump", "--dump-json-metadata", header), &dump); err != nil {
				t.Fatal(err)
			}
			segment := dump.Segments["0"]
			if got := podvm.Printable(segment.Offset, 20); got != "16777216" && tt.options == nil || m.sectorSize != segment.SectorSize || len(m.slots) != len(dump.Keyslots) {
				t.Errorf("%+v, cryptsetup says %+v", m, dump)
			}
			for _, s := range dump.Keyslots {
				if m.keySize != tt.keySize || s.KeySize != tt.keySize {
					t.Errorf("key of %d bytes, cryptsetup says %d, want %d", m.keySize, s.KeySize, tt.keySize)
				}
			}
			if tt.sector != 0 && m.sectorSize != tt.sector {
				t.Errorf("sectors of %d, want %d", m.sectorSize, tt.sector)
			}
			if err := opens(t, area); err != nil {
				t.Errorf("cryptsetup does not open the copy: %v", err)
			}
		})
	}
}

// A format that is cut off leaves no header, or one that is made whole.
func TestCommitCutOffAnywhere(t *testing.T) {
	area := realArea(t)
	img := image(t, 32<<20)
	carries := func() bool {
		f, err := os.Open(img)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		yes, err := carriesLUKS(f)
		if err != nil {
			t.Fatal(err)
		}
		return yes
	}
	if carries() {
		t.Fatal("an empty device carries a header")
	}
	// Everything but the two binary headers.
	cut := bytes.Clone(area)
	clear(cut[:binarySize])
	clear(cut[minHeaderSize : minHeaderSize+binarySize])
	if err := os.WriteFile(img, append(cut, make([]byte, 16<<20)...), 0o600); err != nil {
		t.Fatal(err)
	}
	if carries() {
		t.Fatal("an unfinished header counts")
	}
	// And the second copy.
	copy(cut[minHeaderSize:], area[minHeaderSize:2*minHeaderSize])
	if err := os.WriteFile(img, append(cut, make([]byte, 16<<20)...), 0o600); err != nil {
		t.Fatal(err)
	}
	if !carries() {
		t.Fatal("a header with its second copy alone does not count")
	}
	f, err := os.Open(img)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mended, err := readArea(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := opens(t, mended); err != nil {
		t.Fatalf("cryptsetup does not open the mended header: %v", err)
	}
	if err := commit(img, mended); err != nil {
		t.Fatal(err)
	}
	cryptsetup(t, "open", "--test-passphrase", "--type", "luks2", "--key-file", "-", img)
	if out := cryptsetup(t, "luksDump", img); bytes.Contains(out, []byte("WARNING")) {
		t.Errorf("%s", out)
	}
	// A device whose first block is overwritten is damaged, not unfinished.
	if _, err := rand.Read(mended[:512]); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(img, mended, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readArea(f); !errors.Is(err, ErrHeader) {
		t.Errorf("overwritten: %v", err)
	}
}

func FuzzHeader(f *testing.F) {
	f.Add([]byte(`{"keyslots":{},"tokens":{},"segments":{},"digests":{},"config":{"json_size":"12288","keyslots_size":"4096"}}`), uint16(0), byte(0))
	f.Add([]byte(`{"keyslots":{"0":{"type":"luks2","key_size":64,"af":{"type":"luks1","stripes":4000,"hash":"sha256"},"area":{"type":"raw","offset":"32768","size":"258048","encryption":"aes-xts-plain64","key_size":64},"kdf":{"type":"pbkdf2","hash":"sha256","iterations":1000,"salt":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}}},"tokens":{},"segments":{"0":{"type":"crypt","offset":"16777216","size":"dynamic","iv_tweak":"0","encryption":"aes-xts-plain64","sector_size":4096}},"digests":{"0":{"type":"pbkdf2","keyslots":["0"],"segments":["0"],"hash":"sha256","iterations":1000,"salt":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","digest":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}},"config":{"json_size":"12288","keyslots_size":"524288"}}`), uint16(7), byte(1))
	f.Fuzz(func(t *testing.T, doc []byte, at uint16, value byte) {
		disk := synthetic(doc)
		disk[int(at)%len(disk)] ^= value
		area, err := readArea(bytes.NewReader(disk))
		if err != nil {
			if !errors.Is(err, ErrHeader) {
				t.Fatal(err)
			}
			return
		}
		m, err := parseArea(area)
		if err != nil {
			return
		}
		if len(area) > maxAreaSize || m.keySize < 32 || m.offset > maxSegmentOffset || len(m.slots) == 0 {
			t.Fatalf("%+v", m)
		}
		for _, s := range m.slots {
			if s.offset+s.size > uint64(len(area)) {
				t.Fatalf("%+v beyond %d", s, len(area))
			}
		}
	})
}

// synthetic is a disk with both copies of a header that carries doc.
func synthetic(doc []byte) []byte {
	disk := make([]byte, 1<<20)
	for i, magic := range [][]byte{magicPrimary, magicSecondary} {
		part := disk[i*minHeaderSize : (i+1)*minHeaderSize]
		copy(part, magic)
		part[offVersion+1] = 2
		binary.BigEndian.PutUint64(part[offHeaderSize:], minHeaderSize)
		binary.BigEndian.PutUint64(part[offOffset:], uint64(i*minHeaderSize))
		copy(part[offChecksumAlg:], "sha256")
		copy(part[offUUID:], "11111111-2222-3333-4444-555555555555")
		copy(part[binarySize:], doc)
		sign(part)
	}
	return disk
}
