package initdata

import (
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/podvm"
)

const document = "algorithm = \"sha256\"\nversion = \"0.1.0\"\n\n[data]\n\"aa.toml\" = '''\n[token_configs]\n'''\n"

// The digests are sha256sum, sha384sum and sha512sum over the exact bytes.
func TestParse(t *testing.T) {
	for alg, want := range map[string]string{
		"sha256": "4862637fbe75f17110c2bd6a27fdfe42a1630837a30efdc6358911e9d3580c24",
		"sha384": "7422f763bb2d4634e8e066eb4d65c55ac51246b25a7007ee9858645f9dc7d8cfbe6b1a0f13bf82a04fc1dcda53b82483",
		"sha512": "c1361ece4735af9cce6bca07c49e8a87301041972471c9ed4904ab76800016055644189c5ce4be04a9108d1ac3614f4c28b5b1b696c02e014793bb2af84b846c",
	} {
		text := strings.Replace(document, "sha256", alg, 1)
		d, err := Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if d.Text != text || d.Algorithm != alg || d.Version != "0.1.0" || d.Data["aa.toml"] != "[token_configs]\n" {
			t.Errorf("%s: read as %+v", alg, d)
		}
		if got := hex.EncodeToString(d.Digest()); !strings.HasPrefix(got, want) {
			t.Errorf("%s: digest %s", alg, got)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":            "",
		"not TOML":           "algorithm = ",
		"no algorithm":       "version = \"0.1.0\"",
		"algorithm as MD5":   "algorithm = \"md5\"",
		"algorithm SM3":      "algorithm = \"sm3\"",
		"hyphen":             "algorithm = \"sha-256\"",
		"capitals":           "algorithm = \"SHA256\"",
		"data is not a map":  "algorithm = \"sha256\"\ndata = 7",
		"data with a number": "algorithm = \"sha256\"\n[data]\nx = 7",
		"not UTF-8":          "algorithm = \"sha256\"\n# \xff",
	} {
		if d, err := Parse([]byte(text)); !errors.Is(err, ErrInitData) || d != nil {
			t.Errorf("%s: %+v, %v", name, d, err)
		}
	}
	if _, err := Parse(make([]byte, MaxBytes+1)); !errors.Is(err, podvm.ErrTooLarge) {
		t.Errorf("oversized: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(document))
	f.Add([]byte("algorithm='sha512'\n[data]\n'a.b'=\"\"\"\n\"\"\""))
	f.Fuzz(func(t *testing.T, raw []byte) {
		d, err := Parse(raw)
		if err == nil && (d.Text != string(raw) || len(d.Digest()) < 32) {
			t.Fatalf("%q read as %+v", raw, d)
		}
	})
}
