package luks

import (
	"bytes"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/podvm"
)

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
