package secret

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sealpod/sealpod/podvm"
)

func TestSigningKeys(t *testing.T) {
	w := newWorld(t)
	good := jwkOf(t, w.key)
	d, err := w.key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	off := bytes.Repeat([]byte{1}, 32)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	big, err := p384.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	long := func(name string) object {
		return good.with(name, b64(append([]byte{0}, unb64(t, good[name].(string))...)))
	}
	tests := map[string]struct {
		jwk   []byte
		class error // nil: the secret comes out
	}{
		"public":                       {jwk: good.json(t)},
		"private":                      {jwk: good.with("d", b64(d)).json(t)},
		"with a line end":              {jwk: append(good.json(t), '\n')},
		"what else it says of itself":  {jwk: good.with("kid", "x").with("use", "enc").with("alg", "ES512").with("key_ops", []string{}).json(t)},
		"a d that is none":             {jwk: good.with("d", "%").json(t)}, // not looked at
		"nothing":                      {jwk: []byte{}, class: ErrJSON},
		"PEM":                          {jwk: []byte("-----BEGIN PUBLIC KEY-----"), class: ErrJSON},
		"bytes after it":               {jwk: append(good.json(t), "{}"...), class: ErrJSON},
		"x twice":                      {jwk: append([]byte(`{"x":"AA",`), good.json(t)[1:]...), class: ErrJSON},
		"a list of keys":               {jwk: append(append([]byte("["), good.json(t)...), ']'), class: ErrJSON},
		"a key set":                    {jwk: object{"keys": []object{good}}.json(t), class: ErrSigningKey},
		"no kty":                       {jwk: good.without("kty").json(t), class: ErrSigningKey},
		"kty in lower case":            {jwk: good.with("kty", "ec").json(t), class: ErrSigningKey},
		"kty RSA":                      {jwk: good.with("kty", "RSA").json(t), class: ErrSigningKey},
		"kty oct":                      {jwk: object{"kty": "oct", "k": "AAAA"}.json(t), class: ErrSigningKey},
		"crv P-384":                    {jwk: object{"kty": "EC", "crv": "P-384", "x": b64(big[1:49]), "y": b64(big[49:])}.json(t), class: ErrSigningKey},
		"crv P-384 said to be P-256":   {jwk: object{"kty": "EC", "crv": "P-256", "x": b64(big[1:49]), "y": b64(big[49:])}.json(t), class: ErrSigningKey},
		"crv null":                     {jwk: good.with("crv", nil).json(t), class: ErrSigningKey},
		"no x":                         {jwk: good.without("x").json(t), class: ErrSigningKey},
		"no y":                         {jwk: good.without("y").json(t), class: ErrSigningKey},
		"x padded":                     {jwk: good.with("x", good["x"].(string)+"=").json(t), class: ErrSigningKey},
		"x with a line end":            {jwk: good.with("x", good["x"].(string)+"\n").json(t), class: ErrSigningKey},
		"x of 33 bytes":                {jwk: long("x").json(t), class: ErrSigningKey},
		"y of 31 bytes":                {jwk: good.with("y", b64(make([]byte, 31))).json(t), class: ErrSigningKey},
		"not on the curve":             {jwk: good.with("x", b64(off)).with("y", b64(off)).json(t), class: ErrSigningKey},
		"the point at infinity":        {jwk: good.with("x", b64(make([]byte, 32))).with("y", b64(make([]byte, 32))).json(t), class: ErrSigningKey},
		"coordinates beyond the field": {jwk: good.with("x", b64(bytes.Repeat([]byte{0xff}, 32))).json(t), class: ErrSigningKey},
		"larger than any key":          {jwk: good.with("pad", strings.Repeat("x", maxKey)).json(t), class: ErrSigningKey},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w.asked, w.given = nil, nil
			w.resources[keyURI] = tt.jwk
			got, err := w.unsealer(t.TempDir(), false).Unseal(t.Context(), []byte(w.seal(t, vault)))
			if tt.class != nil {
				refused(t, got, err, tt.class, "the signing key "+keyURI)
			} else if string(got) != "hunter2" || err != nil {
				t.Fatalf("%q, %v", []byte(got), err)
			}
			w.wiped(t)
		})
	}
}

func unb64(t *testing.T, s string) []byte {
	t.Helper()
	b, err := b64Decode(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestWhereSigningKeysAre(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, KeyDir)
	w := newWorld(t)
	jwk := jwkOf(t, w.key).json(t)
	write := func(path string, content []byte) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := func(target, name string) {
		t.Helper()
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(dir, "signing"), jwk)
	write(filepath.Join(dir, "team/signing"), jwk)
	write(filepath.Join(dir, "kbs:"), jwk)
	write(filepath.Join(dir, "large"), bytes.Repeat([]byte(" "), maxKey+1))
	write(filepath.Join(dir, "text"), []byte("no key"))
	write(filepath.Join(root, podvm.CDHRunDir, "outside"), jwk)
	write(filepath.Join(root, podvm.CDHRunDir, "sealed-secret-2/signing"), jwk)
	link("signing", "linked")
	link("../outside", "out")
	link(filepath.Join(root, podvm.CDHRunDir, "outside"), "absolute")
	link("..", "up")
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.resources["kbs+plugin://h:1/k?v=2"] = jwk
	tests := map[string]error{
		"signing": nil, "team/signing": nil, "team/../signing": nil, "linked": nil, "kbs:": nil,
		KeyDir + "/signing": nil, keyURI: nil, "kbs+plugin://h:1/k?v=2": nil,

		"": ErrIO, ".": ErrIO, "..": ErrIO, "/": ErrIO, "team": ErrIO, "none": ErrIO, "pipe": ErrIO, "large": ErrIO, "signing/": ErrIO, "signing\x00": ErrIO,
		"../outside": ErrIO, "team/../../outside": ErrIO, "out": ErrIO, "absolute": ErrIO, "up/outside": ErrIO,
		"../sealed-secret-2/signing": ErrIO, KeyDir + "/../outside": ErrIO, KeyDir + "-2/signing": ErrIO, podvm.CDHRunDir + "/outside": ErrIO,
		"/etc/passwd": ErrIO, "file:///etc/passwd": ErrIO, "https://h/key": ErrIO, "kbs:signing": ErrIO, "kbs://": ErrIO,
		"text": ErrJSON, "kbs:///none": ErrKeyFetch,
	}
	for kid, class := range tests {
		t.Run(kid, func(t *testing.T) {
			got, err := w.unsealer(root, false).Unseal(t.Context(), []byte(w.sealRaw(t, header.with("kid", kid).json(t), vault.json(t))))
			if class != nil {
				refused(t, got, err, class, "the signing key "+podvm.Printable(kid, 200))
			} else if string(got) != "hunter2" || err != nil {
				t.Fatalf("%q, %v", []byte(got), err)
			}
		})
	}
	// A guest into which nobody has put keys.
	got, err := w.unsealer(t.TempDir(), false).Unseal(t.Context(), []byte(w.sealRaw(t, header.with("kid", "signing").json(t), vault.json(t))))
	refused(t, got, err, ErrIO, "is not there")
	if !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func FuzzKey(f *testing.F) {
	w := newWorld(f)
	f.Add(jwkOf(f, w.key).json(f))
	f.Add(jwkOf(f, w.key).with("d", "AAAA").json(f))
	f.Add([]byte(`{"kty":"EC","crv":"P-256","x":"","y":""}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		pub, err := parseKey(raw)
		if err != nil {
			if errors.Is(err, ErrJSON) == errors.Is(err, ErrSigningKey) {
				t.Fatal(err)
			}
			return
		}
		if _, err := pub.ECDH(); err != nil { // which checks the point once more
			t.Fatal(err)
		}
	})
}
