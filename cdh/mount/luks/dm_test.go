package luks

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/podvm"
)

// answer is what the kernel returns for a table with one target.
func answer(kind, params string) []byte {
	buf := make([]byte, 1024)
	binary.NativeEndian.PutUint32(buf[16:], dmHeader)
	binary.NativeEndian.PutUint32(buf[20:], 1)
	binary.NativeEndian.PutUint32(buf[24:], 2)
	binary.NativeEndian.PutUint64(buf[40:], 0xfd03)
	copy(buf[dmHeader+24:], kind)
	copy(buf[dmHeader+dmTarget:], params)
	return buf
}

// two answers for mappings by name.
type tables map[string]*mapping

func (s tables) status(name string) (*mapping, error) { return s[name], nil }
func (s tables) remove(string) error                  { return nil }

const keyText = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestMappingsThatAreAccepted(t *testing.T) {
	v := &Volume{Number: 0xfc10} // 252:16
	good := "aes-xts-plain64 :64:logon:cryptsetup:1111-d0 0 252:16 32768 2 allow_discards sector_size:4096"
	w := wants{16 << 20, 4096, 64, false}
	for name, tt := range map[string]struct {
		kind, params, why string
	}{
		"as asked for":        {"crypt", good, ""},
		"key in hexadecimal":  {"crypt", strings.Replace(good, ":64:logon:cryptsetup:1111-d0", keyText, 1), ""},
		"null cipher":         {"crypt", strings.Replace(good, "aes-xts-plain64", "cipher_null-ecb", 1), "cipher"},
		"short key":           {"crypt", strings.Replace(good, ":64:", ":32:", 1), "key size"},
		"short hexadecimal":   {"crypt", strings.Replace(good, ":64:logon:cryptsetup:1111-d0", keyText[:64], 1), "key size"},
		"no key":              {"crypt", strings.Replace(good, ":64:logon:cryptsetup:1111-d0", "-", 1), "key size"},
		"another IV":          {"crypt", strings.Replace(good, " 0 252", " 8 252", 1), "IV"},
		"another device":      {"crypt", strings.Replace(good, "252:16", "252:32", 1), "device"},
		"another offset":      {"crypt", strings.Replace(good, "32768", "0", 1), "offset"},
		"another sector size": {"crypt", strings.Replace(good, "4096", "512", 1), "sector size"},
		"not encrypted":       {"linear", "252:16 32768", "offset"},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := parseStatus(answer(tt.kind, tt.params))
			if err != nil {
				t.Fatal(err)
			}
			if m.open != 2 || m.number != 0xfd03 {
				t.Errorf("%+v", m)
			}
			d := &Driver{dm: tables{"x": m}}
			err = d.check("x", v, w)
			if tt.why == "" && err != nil || tt.why != "" && (!errors.Is(err, errMapping) || !strings.Contains(podvm.Cause(err), tt.why)) {
				t.Errorf("%v, want %q", err, tt.why)
			}
			if err != nil && strings.Contains(err.Error(), keyText[:16]) {
				t.Error("the key is in the error")
			}
		})
	}
	d := &Driver{dm: tables{}}
	if err := d.check("x", v, w); !errors.Is(err, errMapping) {
		t.Errorf("no mapping: %v", err)
	}
}

func TestMappingsWithIntegrity(t *testing.T) {
	v := &Volume{Number: 0xfc10}
	w := wants{16 << 20, 4096, 96, true}
	const upper = "capi:authenc(hmac(sha256),xts(aes))-plain64 :96:logon:x 0 253:3 0 2 integrity:32:aead sector_size:4096"
	const lower = "252:16 32768 32 J 3 block_size:4096 fix_padding fix_hmac"
	for name, tt := range map[string]struct {
		upper, lower, why string
	}{
		"as asked for":        {upper, lower, ""},
		"no lower mapping":    {upper, "", "integrity layer"},
		"no tags":             {upper, strings.Replace(lower, " 32 J", " 0 J", 1), "integrity layer"},
		"another lower one":   {strings.Replace(upper, "253:3", "253:9", 1), lower, "device below"},
		"tags unused":         {strings.Replace(upper, "integrity:32:aead ", "", 1), lower, "integrity option"},
		"not authenticated":   {strings.Replace(upper, "capi:authenc(hmac(sha256),xts(aes))-plain64", cipher, 1), lower, "cipher"},
		"lower one elsewhere": {upper, strings.Replace(lower, "252:16", "8:0", 1), "device"},
		"lower one displaced": {upper, strings.Replace(lower, "32768", "0", 1), "offset"},
	} {
		t.Run(name, func(t *testing.T) {
			m := tables{}
			var err error
			if m["x"], err = parseStatus(answer("crypt", tt.upper)); err != nil {
				t.Fatal(err)
			}
			if tt.lower != "" {
				if m["x_dif"], err = parseStatus(answer("integrity", tt.lower)); err != nil {
					t.Fatal(err)
				}
			}
			err = (&Driver{dm: m}).check("x", v, w)
			if tt.why == "" && err != nil || tt.why != "" && (!errors.Is(err, errMapping) || !strings.Contains(podvm.Cause(err), tt.why)) {
				t.Errorf("%v, want %q", err, tt.why)
			}
		})
	}
}

func FuzzStatus(f *testing.F) {
	f.Add(answer("crypt", "aes-xts-plain64 :64:logon:x 0 8:0 0 1 sector_size:4096"))
	f.Add(answer("integrity", "8:0 0 32 J 0"))
	f.Add(make([]byte, dmHeader))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := parseStatus(b); (m == nil) && err == nil {
			t.Fatal("neither a mapping nor an error")
		}
	})
}
