package jwe

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/sealpod/sealpod/model/sealed"
)

func key(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}

// opened opens object with the key and returns what is in the file then.
func opened(t testing.TB, raw []byte, object io.Reader) ([]byte, error) {
	t.Helper()
	k, err := ParseKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Wipe()
	file, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	n, err := k.Open(t.Context(), object, file)
	got, rerr := os.ReadFile(file.Name())
	if rerr != nil || int64(len(got)) != n {
		t.Fatalf("%d bytes, said to be %d: %v", len(got), n, rerr)
	}
	return got, err
}

// What jwcrypto 1.6.1 made of "the weights of a small model", which KServe uses.
var vectors = map[string]string{
	"A256KW A256GCM": "eyJhbGciOiAiQTI1NktXIiwgImVuYyI6ICJBMjU2R0NNIn0.o2YznrcWL4aXRZZ1em_9IeHSfVrRYQinexZT-pw760iehC1sNk5jqw.4fdJCaHaf1HtxYXA.E-MfbMoPfopMP1L2BgcpcwUT8dpH7D5WHnu1fQ.Pd_dr2UN8A3WdrT80B6vbQ",
	"dir A256GCM":    "eyJhbGciOiAiZGlyIiwgImVuYyI6ICJBMjU2R0NNIn0..2pRYi5dSJqqTZC_5.Yb6x0iEjEVimdP_myd87s06VS5Mi7Pa6uB2u0w.XZzwa_m8AJ7k8vlcqbUN5w",
	"A128KW A128GCM": "eyJhbGciOiAiQTEyOEtXIiwgImVuYyI6ICJBMTI4R0NNIn0.Z0uaA7CBNyLetOGOzfMIBj_YmryuiXij.ou7rXPRUvctsk5UW.Kuq1CyUoyRPPExqXzvhos1tOu3BwPrCjKNTOhw.X0H79pZPNKHDxuNXhX4Qkg",
}

// Its default, which is refused by name.
const cbc = "eyJhbGciOiAiQTI1NktXIiwgImVuYyI6ICJBMjU2Q0JDLUhTNTEyIn0.pz1vJKiCT5J9_IbsbK5NyWzaTJeAAWATD-JTNG2rSiBGnqN1DEbGCpEyzkppjwxST6nZHrb8AgnhNjGU8winvS8iYHX3OSKv.7knVIP-cECpQ7ous53CzSw.j5O8agpMx3SxyKuwlwG0bWNHhqqCixZQAhc-HFBAlo4.lZNHs6muiy0DtlUC_DRKUTLEIe_ytthGjUIWIq5b2-Q"

func TestJwcrypto(t *testing.T) {
	for name, in := range vectors {
		raw := key(32)
		if strings.HasPrefix(name, "A128") {
			raw = key(16)
		}
		if got, err := opened(t, raw, strings.NewReader(in+"\n")); err != nil || string(got) != "the weights of a small model" {
			t.Errorf("%s: %q %v", name, got, err)
		}
	}
	if _, err := opened(t, key(32), strings.NewReader(cbc)); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "A256CBC-HS512") {
		t.Error(err)
	}
}

func seal(t testing.TB, raw, plain []byte) string {
	t.Helper()
	e, err := jose.NewEncrypter(jose.A256GCM, jose.Recipient{Algorithm: jose.A256KW, Key: raw}, nil)
	if err != nil {
		t.Fatal(err)
	}
	j, err := e.Encrypt(plain)
	if err != nil {
		t.Fatal(err)
	}
	text, err := j.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestOpen(t *testing.T) {
	raw := key(32)
	for _, n := range []int{0, 1, 2, 3, 4095, 4096, 4097, 768 << 10, 768<<10 + 1, 5<<20 + 2} {
		plain := make([]byte, n)
		rand.Read(plain)
		text := seal(t, raw, plain)
		for name, r := range map[string]io.Reader{"at once": strings.NewReader(text), "in halves": iotest.HalfReader(strings.NewReader(text))} {
			if got, err := opened(t, raw, r); err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%d bytes %s: %d bytes, %v", n, name, len(got), err)
			}
		}
	}
}

// TestWrong changes a JWE in each of its parts.
func TestWrong(t *testing.T) {
	raw := key(32)
	text := seal(t, raw, bytes.Repeat([]byte("x"), 1<<20))
	parts := strings.Split(text, ".")
	flip := func(i, at int) string {
		p := []byte(parts[i])
		p[at] = map[bool]byte{true: 'B', false: 'A'}[p[at] == 'A']
		out := append([]string(nil), parts...)
		out[i] = string(p)
		return strings.Join(out, ".")
	}
	header := func(h string) string {
		return strings.Join(append([]string{base64.RawURLEncoding.EncodeToString([]byte(h))}, parts[1:]...), ".")
	}
	for name, tt := range map[string]struct {
		in   string
		want error
	}{
		"key":           {flip(1, 5), sealed.ErrIntegrity},
		"nonce":         {flip(2, 5), sealed.ErrIntegrity},
		"ciphertext":    {flip(3, 700_000), sealed.ErrIntegrity},
		"tag":           {flip(4, 5), sealed.ErrIntegrity},
		"header":        {header(`{"enc":"A256GCM","alg":"A256KW"}`), sealed.ErrIntegrity},
		"other key":     {header(`{"alg":"A128KW","enc":"A256GCM"}`), sealed.ErrIntegrity},
		"other content": {header(`{"alg":"A256KW","enc":"A128GCM"}`), sealed.ErrIntegrity},
		"RSA":           {header(`{"alg":"RSA-OAEP","enc":"A256GCM"}`), ErrFormat},
		"none":          {header(`{"alg":"none","enc":"A256GCM"}`), ErrFormat},
		"zip":           {header(`{"alg":"A256KW","enc":"A256GCM","zip":"DEF"}`), ErrFormat},
		"crit":          {header(`{"alg":"A256KW","enc":"A256GCM","crit":["x"]}`), ErrFormat},
		"dir with key":  {header(`{"alg":"dir","enc":"A256GCM"}`), ErrFormat},
		"no JSON":       {"AAAA." + strings.Join(parts[1:], "."), ErrFormat},
		"nothing":       {"", ErrFormat},
		"no dots":       {strings.Repeat("A", 20000), ErrFormat},
		"cut":           {text[:len(text)/2], ErrFormat},
		"no tag":        {strings.Join(parts[:4], "."), ErrFormat},
		"short tag":     {text[:len(text)-4], ErrFormat},
		"six parts":     {text + ".AAAA", ErrFormat},
		"long tag":      {text + strings.Repeat("A", 2000), ErrFormat},
		"line break":    {strings.Join(parts[:3], ".") + "." + parts[3][:100] + "\n" + parts[3][100:] + "." + parts[4], ErrFormat},
		"padding":       {strings.Join(parts[:3], ".") + "." + parts[3] + "==." + parts[4], ErrFormat},
	} {
		if got, err := opened(t, raw, strings.NewReader(tt.in)); !errors.Is(err, tt.want) || len(got) > 0 {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	if got, err := opened(t, bytes.Repeat([]byte{7}, 32), strings.NewReader(text)); !errors.Is(err, sealed.ErrIntegrity) || len(got) > 0 {
		t.Error(err)
	}
	broken := errors.New("broken")
	if _, err := opened(t, raw, io.MultiReader(strings.NewReader(text[:500_000]), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	k, err := ParseKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := k.Open(ctx, strings.NewReader(text), file); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestParseKey(t *testing.T) {
	raw := key(32)
	text := base64.RawURLEncoding.EncodeToString(raw)
	for name, in := range map[string]string{
		"raw": string(raw), "text": text, "padded": text + "=\n", "JWK": fmt.Sprintf(`{"kty":"oct","k":%q,"alg":"A256KW"}`, text),
	} {
		if k, err := ParseKey([]byte(in)); err != nil || !bytes.Equal(k.secret, raw) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, in := range []string{"", "short", `{"kty":"RSA","n":"AQAB"}`, text + text, strings.Repeat("A", 5000)} {
		if _, err := ParseKey([]byte(in)); !errors.Is(err, sealed.ErrKey) {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func FuzzOpen(f *testing.F) {
	for _, v := range vectors {
		f.Add([]byte(v))
	}
	f.Add([]byte(cbc))
	k, err := ParseKey(bytes.Repeat([]byte{9}, 32))
	if err != nil {
		f.Fatal(err)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, in []byte) {
		file, err := os.CreateTemp(dir, "")
		if err != nil {
			t.Fatal(err)
		}
		defer os.Remove(file.Name())
		defer file.Close()
		if _, err := k.Open(t.Context(), bytes.NewReader(in), file); err == nil {
			t.Fatal("opened under a key that sealed nothing")
		}
		if st, err := file.Stat(); err != nil || st.Size() > 0 {
			t.Fatalf("%d bytes are left, %v", st.Size(), err)
		}
	})
}
