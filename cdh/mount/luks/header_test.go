package luks

import (
	"bytes"
	"context"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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

// rewrite changes the JSON text of both copies and makes their checksums right,
// as a host would.
func rewrite(area []byte, change func(string) string) []byte {
	area = bytes.Clone(area)
	size := int(binary.BigEndian.Uint64(area[offHeaderSize:]))
	doc, _, _ := bytes.Cut(area[binarySize:size], []byte{0})
	text := change(string(doc))
	for at := 0; at < 2*size; at += size {
		part := area[at : at+size]
		clear(part[binarySize:])
		copy(part[binarySize:], text)
		sign(part)
	}
	return area
}

func sign(part []byte) {
	sum := checksum(part)
	copy(part[offChecksum:], sum[:])
}

func refuses(t *testing.T, area []byte, why string) {
	t.Helper()
	_, err := parseArea(area)
	if !errors.Is(err, ErrHeader) || !strings.Contains(err.Error(), why) {
		t.Errorf("error %v, want ErrHeader with %q", err, why)
	}
	if podvm.Cause(err) == "" {
		t.Error("no cause")
	}
}

func TestHostileMetadataIsRefused(t *testing.T) {
	area := realArea(t)
	if _, err := parseArea(rewrite(area, func(s string) string { return s })); err != nil {
		t.Fatalf("unchanged: %v", err)
	}
	if err := opens(t, rewrite(area, func(s string) string { return s })); err != nil {
		t.Fatalf("unchanged, by cryptsetup: %v", err)
	}
	const segment = `"segments":{"0":{`
	tests := map[string]struct {
		old, new string
		n        int // which occurrence
		why      string
	}{
		"null cipher for the data":       {`"encryption":"aes-xts-plain64","sector_size"`, `"encryption":"cipher_null-ecb","sector_size"`, 1, "encryption"},
		"null cipher for the key slot":   {`"encryption":"aes-xts-plain64","key_size"`, `"encryption":"cipher_null-ecb","key_size"`, 1, "encryption"},
		"another cipher":                 {`"encryption":"aes-xts-plain64","sector_size"`, `"encryption":"aes-cbc-null","sector_size"`, 1, "encryption"},
		"another cipher of the slot":     {`"encryption":"aes-xts-plain64","key_size"`, `"encryption":"aes-ecb","key_size"`, 1, "encryption"},
		"a short key":                    {`"key_size":64`, `"key_size":16`, 1, "key_size"},
		"an odd key":                     {`"key_size":64`, `"key_size":48`, 1, "48 bytes"},
		"a short key of the area":        {`"key_size":64}`, `"key_size":16}`, 1, "key size"},
		"a linear segment":               {`"type":"crypt"`, `"type":"linear"`, 1, "type"},
		"a hardware segment":             {`"type":"crypt"`, `"type":"hw-opal"`, 1, "type"},
		"a second segment":               {segment, `"segments":{"1":{"type":"linear","offset":"0","size":"512"},"0":{`, 1, "segments"},
		"a segment of another name":      {segment, `"segments":{"1":{`, 1, "segments"},
		"a segment flag":                 {segment, segment + `"flags":["backup-final"],`, 1, "flags"},
		"data over the header":           {`"offset":"16777216"`, `"offset":"-1"`, 1, "offset"},
		"an unaligned offset":            {`"offset":"16777216"`, `"offset":"16777217"`, 1, "offset"},
		"an offset beyond any device":    {`"offset":"16777216"`, `"offset":"18446744073709547520"`, 1, "offset"},
		"an offset that is not decimal":  {`"offset":"16777216"`, `"offset":"0x1000000"`, 1, "offset"},
		"an offset with leading zeros":   {`"offset":"16777216"`, `"offset":"016777216"`, 1, "offset"},
		"a size":                         {`"size":"dynamic"`, `"size":"4096"`, 1, "size"},
		"an IV tweak":                    {`"iv_tweak":"0"`, `"iv_tweak":"8"`, 1, "iv_tweak"},
		"sectors of 1536":                {`"sector_size":`, `"sector_size":1536,"x":`, 1, "not supported"},
		"integrity that is none":         {`"size":"dynamic"`, `"size":"dynamic","integrity":{"type":"none","journal_encryption":"none","journal_integrity":"none"}`, 1, "integrity"},
		"integrity without a key":        {`"size":"dynamic"`, `"size":"dynamic","integrity":{"type":"crc32","journal_encryption":"none","journal_integrity":"none"}`, 1, "integrity"},
		"a token":                        {`"tokens":{}`, `"tokens":{"0":{"type":"luks2-keyring","keyslots":["0"],"key_description":"x"}}`, 1, "tokens"},
		"a requirement":                  {`"config":{`, `"config":{"requirements":{"mandatory":["online-reencrypt-v2"]},`, 1, "requirements"},
		"an unknown flag":                {`"config":{`, `"config":{"flags":["no-such-flag"],`, 1, "flag"},
		"the journal switched off":       {`"config":{`, `"config":{"flags":["no-journal"],`, 1, "flag"},
		"a slot that reencrypts":         {`"type":"luks2"`, `"type":"reencrypt"`, 1, "type"},
		"an unknown member":              {`{"keyslots":`, `{"evil":1,"keyslots":`, 1, "evil"},
		"a member twice":                 {`{"keyslots":`, `{"tokens":{},"keyslots":`, 1, "twice"},
		"half a million iterations more": {`"iterations":1000,"salt"`, `"iterations":500000000,"salt"`, 1, "iterations"},
		"hardly any iterations":          {`"iterations":1000,"salt"`, `"iterations":1,"salt"`, 1, "iterations"},
		"argon2 with all memory":         {`"type":"pbkdf2","hash":"sha256","iterations":1000,`, `"type":"argon2id","time":4,"memory":4194304,"cpus":4,`, 1, "memory"},
		"argon2 for hours":               {`"type":"pbkdf2","hash":"sha256","iterations":1000,`, `"type":"argon2id","time":4294967295,"memory":1048576,"cpus":4,`, 1, "time"},
		"argon2 with many threads":       {`"type":"pbkdf2","hash":"sha256","iterations":1000,`, `"type":"argon2id","time":4,"memory":1024,"cpus":64,`, 1, "cpus"},
		"an unknown derivation":          {`"type":"pbkdf2","hash":"sha256","iterations":1000,`, `"type":"none","hash":"sha256","iterations":1000,`, 1, "type"},
		"a weak hash":                    {`"type":"pbkdf2","hash":"sha256"`, `"type":"pbkdf2","hash":"md5"`, 1, "hash"},
		"no stripes":                     {`"stripes":4000`, `"stripes":1`, 1, "stripes"},
		"key material over the header":   {`"offset":"32768"`, `"offset":"0"`, 1, "offset"},
		"key material over the data":     {`"offset":"32768"`, `"offset":"16773120"`, 1, "overlaps"},
		"key material that wraps":        {`"size":"258048"`, `"size":"18446744073709518848"`, 1, "size"},
		"key slots beyond the data":      {`"keyslots_size":"16744448"`, `"keyslots_size":"16748544"`, 1, "add up"},
		"key slots of any size":          {`"keyslots_size":"16744448"`, `"keyslots_size":"18446744073709547520"`, 1, "keyslots_size"},
		"no digest":                      {`"digests":{"0":`, `"digests":{},"x":{"0":`, 1, "x"},
		"a digest for another slot":      {`"keyslots":["0"]`, `"keyslots":["1"]`, 1, "keyslots"},
		"a digest that repeats":          {`"segments":["0"]`, `"segments":["0","0"]`, 1, "segments"},
		"bytes after the text":           {`}`, "}", 1, ""},
		"a slot nobody vouches for":      {`"keyslots":{"0":`, `"keyslots":{"1":{"type":"luks2","key_size":64,"af":{"type":"luks1","stripes":4000,"hash":"sha256"},"area":{"type":"raw","offset":"290816","size":"258048","encryption":"aes-xts-plain64","key_size":64},"kdf":{"type":"pbkdf2","hash":"sha256","iterations":1000,"salt":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}},"0":`, 1, "keyslots"},
		"two slots in one place":         {`"keyslots":{"0":`, `"keyslots":{"1":{"type":"luks2","key_size":64,"af":{"type":"luks1","stripes":4000,"hash":"sha256"},"area":{"type":"raw","offset":"32768","size":"258048","encryption":"aes-xts-plain64","key_size":64},"kdf":{"type":"pbkdf2","hash":"sha256","iterations":1000,"salt":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}},"0":`, 2, "overlaps"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			changed := rewrite(area, func(s string) string {
				if !strings.Contains(s, tt.old) {
					t.Fatalf("%q is not in %s", tt.old, s)
				}
				if name == "bytes after the text" {
					return s + "\x00x"
				}
				s = strings.Replace(s, tt.old, tt.new, 1)
				if tt.n == 2 { // the digest vouches for both
					s = strings.Replace(s, `"keyslots":["0"]`, `"keyslots":["0","1"]`, 1)
				}
				return s
			})
			refuses(t, changed, tt.why)
		})
	}
}

// The attack this is all for (CVE-2025-59054): a host that knows no
// key writes a header with the null cipher for slot and data. Any passphrase
// opens it in an unpatched cryptsetup, the owner's too, and the host reads along.
func TestTheNullCipherAttackIsRefused(t *testing.T) {
	const slot = 32 << 10 // where the key material of slot 0 is
	area := realArea(t, "--luks2-metadata-size", "16k")
	volumeKey := bytes.Repeat([]byte("host"), 16)
	material := make([]byte, 64*afStripes)
	copy(material[len(material)-64:], volumeKey)
	merged := make([]byte, 64)
	for range afStripes - 1 { // all stripes but the last are zero
		for block := range 2 {
			sum := sha256.Sum256(append(binary.BigEndian.AppendUint32(nil, uint32(block)), merged[32*block:32*block+32]...))
			copy(merged[32*block:], sum[:])
		}
	}
	for i, b := range merged {
		material[len(material)-64+i] ^= b
	}
	copy(area[slot:], material)
	digest, err := pbkdf2.Key(sha256.New, string(volumeKey), make([]byte, 32), 1000, 32)
	if err != nil {
		t.Fatal(err)
	}
	hostile := rewrite(area, func(s string) string {
		s = strings.Replace(s, `"encryption":"aes-xts-plain64","key_size":64`, `"encryption":"cipher_null-ecb","key_size":32`, 1)
		s = strings.Replace(s, `"encryption":"aes-xts-plain64","sector_size"`, `"encryption":"cipher_null-ecb","sector_size"`, 1)
		at := strings.Index(s, `"digests":{"0":`)
		s = s[:at] + `"digests":{"0":{"type":"pbkdf2","keyslots":["0"],"segments":["0"],"hash":"sha256","iterations":1000,"salt":"` +
			base64.StdEncoding.EncodeToString(make([]byte, 32)) + `","digest":"` + base64.StdEncoding.EncodeToString(digest) + `"}},` + s[strings.Index(s, `"config":`):]
		return s
	})
	if err := opens(t, hostile); err != nil {
		t.Logf("this cryptsetup refuses it itself: %v", err)
	} else {
		t.Log("this cryptsetup opens it with the owner's passphrase")
	}
	refuses(t, hostile, "encryption")
}

// Every single byte of both copies counts.
func TestTamperedHeadersAreRefused(t *testing.T) {
	area := realArea(t, "--luks2-metadata-size", "16k", "--luks2-keyslots-size", "512k")
	for at := 0; at < 2*minHeaderSize; at++ {
		if in := at % minHeaderSize; in > 512 && at%61 != 0 {
			continue
		}
		bad := bytes.Clone(area)
		bad[at] ^= 1
		if _, err := parseArea(bad); !errors.Is(err, ErrHeader) {
			t.Fatalf("byte %d flipped: %v", at, err)
		}
	}
	for _, n := range []int{0, 1, binarySize, minHeaderSize, 2*minHeaderSize - 1, 2 * minHeaderSize, len(area) - 1} {
		if _, err := parseArea(area[:n]); !errors.Is(err, ErrHeader) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

// Fields of the binary header that a host can change with the checksum.
func TestHostileBinaryHeadersAreRefused(t *testing.T) {
	area := realArea(t, "--luks2-metadata-size", "16k", "--luks2-keyslots-size", "512k")
	tests := map[string]struct {
		change func(first, second []byte)
		why    string
	}{
		"LUKS1":                   {func(a, b []byte) { a[offVersion+1], b[offVersion+1] = 1, 1 }, "version 1"},
		"another checksum":        {func(a, b []byte) { copy(a[offChecksumAlg:], "crc32\x00"); copy(b[offChecksumAlg:], "crc32\x00") }, "SHA-256"},
		"copies of different age": {func(_, b []byte) { b[offSequence+7]++ }, "differ"},
		"copies of other volumes": {func(_, b []byte) { b[offUUID] ^= 1 }, "differ"},
		"a size that overlaps":    {func(a, _ []byte) { binary.BigEndian.PutUint64(a[offHeaderSize:], 4096) }, "metadata size"},
		"a size of all memory":    {func(a, _ []byte) { binary.BigEndian.PutUint64(a[offHeaderSize:], 1<<62) }, "metadata size"},
		"a moved copy":            {func(_, b []byte) { binary.BigEndian.PutUint64(b[offOffset:], 0) }, "elsewhere"},
		"a UUID that is a path":   {func(a, b []byte) { copy(a[offUUID:], "../../"); copy(b[offUUID:], "../../") }, "UUID"},
		"the other copy's JSON":   {func(_, b []byte) { b[binarySize+2] = 'K' }, "differ"},
		"no second copy":          {func(_, b []byte) { clear(b) }, "copy 2"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			bad := bytes.Clone(area)
			a, b := bad[:minHeaderSize], bad[minHeaderSize:2*minHeaderSize]
			tt.change(a, b)
			sign(a)
			sign(b)
			refuses(t, bad, tt.why)
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
