package aliyun

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"software.sslmate.com/src/go-pkcs12"

	"github.com/sealpod/sealpod/podvm/testenv"
)

const testPassword = "c0ffee00c0ffee00"

// certificate makes a self-signed certificate for key.
func certificate(t testing.TB, public, key any) *x509.Certificate {
	t.Helper()
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "KAAP.0123"}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, public, key)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return c
}

// sharedKey is the RSA key of the client keys, made once because it takes long.
var sharedKey = sync.OnceValue(newRSAKey)

func newRSAKey() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
}

// file puts PKCS#12 data in a client key file.
func file(id string, p12 []byte) []byte {
	b, _ := json.Marshal(map[string]string{"KeyId": id, "PrivateKeyData": base64.StdEncoding.EncodeToString(p12)})
	return b
}

// clientKeyFile makes a client key as Alibaba Cloud does: the certificate under
// 40-bit RC2, the key under triple DES.
func clientKeyFile(t testing.TB, key *rsa.PrivateKey) []byte {
	t.Helper()
	p12, err := pkcs12.LegacyRC2.Encode(key, certificate(t, key.Public(), key), nil, testPassword)
	if err != nil {
		t.Fatal(err)
	}
	return file("KAAP.0123", p12)
}

// What OpenSSL makes, with its old algorithms and with today's, opens.
func TestClientKeyMadeByOpenSSL(t *testing.T) {
	openssl := testenv.Tool(t, "openssl")
	key := sharedKey()
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in.pem"), filepath.Join(dir, "out.p12")
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate(t, key.Public(), key).Raw})...)
	if err := os.WriteFile(in, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"RC2 and triple DES": {"-legacy", "-certpbe", "PBE-SHA1-RC2-40", "-keypbe", "PBE-SHA1-3DES"},
		"RC2 with 128 bits":  {"-legacy", "-certpbe", "PBE-SHA1-RC2-128", "-keypbe", "PBE-SHA1-RC2-128"},
		"AES":                nil,
	} {
		args = append([]string{"pkcs12", "-export", "-in", in, "-out", out, "-passout", "pass:" + testPassword}, args...)
		if msg, err := exec.CommandContext(t.Context(), openssl, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", name, err, msg)
		}
		p12, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseClientKey(file("KAAP.0123", p12), []byte(testPassword))
		if err != nil || !got.key.Equal(key) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestClientKeyFiles(t *testing.T) {
	key := sharedKey()
	good := clientKeyFile(t, key)
	var parts map[string]string
	if err := json.Unmarshal(good, &parts); err != nil {
		t.Fatal(err)
	}
	p12, _ := base64.StdEncoding.DecodeString(parts["PrivateKeyData"])
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	encode := func(e *pkcs12.Encoder, k, public any, password string) []byte {
		b, err := e.Encode(k, certificate(t, public, k), nil, password)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, tt := range map[string]struct {
		file     []byte
		password string
		want     string // in the error; "" for none
	}{
		"as the console gives it out":   {good, `{"ClientKeyPassword":"` + testPassword + `"}`, ""},
		"white space after a password":  {good, testPassword + " \r\n\u2003", ""},
		"white space before a password": {good, " " + testPassword, "password is wrong"},
		"another password":              {good, "x", "password is wrong"},
		"a password not in UTF-8":       {good, "\xff", "not UTF-8"},
		"a password not text in JSON":   {good, `{"ClientKeyPassword":1}`, "not a string"},
		"JSON without a password":       {good, `{}`, "is missing"},
		"an id of two lines":            {file("a\r\nx-kms-apiname: Evil", p12), testPassword, "KeyId"},
		"no id":                         {[]byte(`{"PrivateKeyData":""}`), testPassword, `"KeyId" is missing`},
		"no key":                        {[]byte(`{"KeyId":"a"}`), testPassword, `"PrivateKeyData" is missing`},
		"not base64":                    {[]byte(`{"KeyId":"a","PrivateKeyData":"%"}`), testPassword, "base64"},
		"not PKCS#12":                   {file("a", []byte("PKCS")), testPassword, "not PKCS#12"},
		"nothing":                       {file("a", nil), testPassword, "not PKCS#12"},
		"cut short":                     {file("a", p12[:len(p12)/2]), testPassword, "not PKCS#12"},
		"data after it":                 {file("a", append(p12[:len(p12):len(p12)], 0)), testPassword, "pkcs12"},
		"a flipped bit":                 {file("a", flip(p12, 200)), testPassword, "password is wrong"},
		"no password, no MAC":           {file("a", encode(pkcs12.Passwordless, key, key.Public(), "")), "", "not PKCS#12 with a password"},
		"an EC key":                     {file("a", encode(pkcs12.LegacyRC2, ec, ec.Public(), testPassword)), testPassword, "not an RSA key"},
		"a MAC of hidden costs":         {file("a", encode(pkcs12.Modern2026, key, key.Public(), testPassword)), testPassword, "MAC"},
		"a MAC that takes hours":        {file("a", iterations(t, p12, 1<<30)), testPassword, "MAC"},
		"a MAC of no iterations":        {file("a", iterations(t, p12, -1)), testPassword, "MAC"},
	} {
		got, err := parseClientKey(tt.file, []byte(tt.password))
		switch {
		case tt.want == "" && (err != nil || got.id != "KAAP.0123" || !got.key.Equal(key)):
			t.Errorf("%s: %v", name, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
	if _, err := parseClientKey(good, []byte("x")); !errors.Is(err, errPassword) {
		t.Error(err)
	}
}

func flip(b []byte, i int) []byte {
	b = append([]byte(nil), b...)
	b[i] ^= 1
	return b
}

// iterations changes how often the MAC's hash is repeated.
func iterations(t testing.TB, p12 []byte, n int) []byte {
	t.Helper()
	type mac struct {
		Info       asn1.RawValue
		Salt       []byte
		Iterations int `asn1:"optional,default:1"`
	}
	var pfx struct {
		Version  int
		AuthSafe asn1.RawValue
		MAC      mac
	}
	if _, err := asn1.Unmarshal(p12, &pfx); err != nil {
		t.Fatal(err)
	}
	if pfx.MAC.Iterations < 1 {
		t.Fatal("the MAC was not found")
	}
	pfx.MAC.Iterations = n
	out, err := asn1.Marshal(pfx)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func FuzzClientKey(f *testing.F) {
	good := clientKeyFile(f, sharedKey())
	f.Add(good, []byte(testPassword))
	f.Add([]byte(`{"KeyId":"a","PrivateKeyData":"MAA="}`), []byte(`{"ClientKeyPassword":""}`))
	f.Fuzz(func(t *testing.T, raw, password []byte) {
		key, err := parseClientKey(raw, password)
		if (err == nil) != (key != nil) || err == nil && !isName(key.id) {
			t.Fatalf("%v beside %v", key, err)
		}
	})
}
