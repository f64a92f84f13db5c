package layer

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/sealpod/sealpod/podvm"
)

// TestUniformDecryptError holds that whatever is wrong with an encrypted
// layer, the answer is the same sentence, and that the blob is read in full
// before it is given.
func TestUniformDecryptError(t *testing.T) {
	raw := tarOf(t, "a", noise(600<<10), "b", "x")
	gzS, _ := seal(t, plainLayer(oci+"+gzip", gz(t, raw), raw))
	zsS, _ := seal(t, plainLayer(oci+"+zstd", zst(t, raw), raw))
	tarS, _ := seal(t, plainLayer(oci, raw, raw))
	flip := func(s sample, at int, redigest bool) sample {
		return s.with(func(s *sample) {
			s.blob[at] ^= 1
			if redigest {
				s.redigest()
			}
		})
	}
	tests := map[string]sample{
		"other blob digest": gzS.with(func(s *sample) { s.spec.Digest = digest.FromString("x").String() }),
		"wrong key":         gzS.with(func(s *sample) { s.key.symKey[5] ^= 1 }),
		"wrong hmac":        gzS.with(func(s *sample) { s.key.hmac[31] ^= 1 }),
		"wrong nonce":       gzS.with(func(s *sample) { s.key.nonce[15] ^= 1 }),
		"wrong nonce, no PLBCO digest to tell, gzip sees it": gzS.with(func(s *sample) { s.key.nonce[15] ^= 1; s.key.plain = digest.FromString("") }),
		"wrong hmac, no PLBCO digest":                        tarS.with(func(s *sample) { s.key.hmac[0] ^= 1; s.key.plain = "" }),
		"wrong PLBCO digest":                                 gzS.with(func(s *sample) { s.key.plain = digest.FromString("x") }),
		"short nonce":                                        gzS.with(func(s *sample) { s.key.nonce = s.key.nonce[:12] }),
		"no hmac":                                            gzS.with(func(s *sample) { s.key.hmac = nil }),
		"wrong key, tar":                                     tarS.with(func(s *sample) { s.key.symKey[0] ^= 1 }),
		"ciphertext cut":                                     gzS.with(func(s *sample) { s.blob = s.blob[:300<<10]; s.redigest() }),
		"ciphertext extended":                                gzS.with(func(s *sample) { s.blob = append(s.blob, 0); s.redigest() }),
		"ciphertext empty":                                   gzS.with(func(s *sample) { s.blob = nil; s.redigest() }),
		"swapped for another":                                gzS.with(func(s *sample) { s.blob = bytes.Clone(zsS.blob); s.redigest() }),
	}
	for n, s := range map[string]sample{"gzip": gzS, "zstd": zsS, "tar": tarS} {
		for where, at := range map[string]int{"first byte": 0, "in the tar header": 100, "middle": len(s.blob) / 2, "last byte": len(s.blob) - 1} {
			tests[name("%s, %s flipped", n, where)] = flip(s, at, false)
			tests[name("%s, %s flipped and descriptor made to fit", n, where)] = flip(s, at, true)
		}
	}
	for n, s := range tests {
		t.Run(n, func(t *testing.T) {
			blob := &counting{Reader: bytes.NewReader(s.blob)}
			st, err := Apply(t.Context(), blob, s.spec, s.key, t.TempDir(), Options{Mode: Plain, MaxBytes: 100 << 20})
			if !errors.Is(err, ErrDecrypt) {
				t.Fatalf("got %v", err)
			}
			want := "applying layer " + s.spec.Digest + ": " + decryptText +
				": decrypting the layer: blob, HMAC, digest and key do not fit together"
			if err.Error() != want || podvm.Cause(err) != decryptText {
				t.Errorf("got %q, public cause %q", err, podvm.Cause(err))
			}
			if st != (Stats{}) {
				t.Errorf("stats tell of the plaintext: %+v", st)
			}
			if blob.n != len(s.blob) || !blob.eof {
				t.Errorf("stopped after %d of %d bytes", blob.n, len(s.blob))
			}
		})
	}
}

type counting struct {
	io.Reader
	n   int
	eof bool
}

func (c *counting) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += n
	c.eof = c.eof || err == io.EOF
	return n, err
}

// TestDetailsOfAuthenticLayers holds that an authentic encrypted layer tells
// what is wrong with it like a plain one.
func TestDetailsOfAuthenticLayers(t *testing.T) {
	onceIsEnough(t)
	raw := tarOf(t, "a", noise(8<<20)) // more than all rings hold
	tests := map[string]struct {
		s   sample
		err error
	}{
		"not gzip":             {plainLayer(oci+"+gzip", raw, raw), ErrArchive},
		"broken tar":           {plainLayer(oci, []byte(noise(5000)), []byte(noise(5000))), ErrArchive},
		"forbidden name":       {plainLayer(oci, tarOf(t, "../x", "1"), tarOf(t, "../x", "1")), ErrArchive},
		"beyond the cap":       {plainLayer(oci+"+gzip", gz(t, tarOf(t, "a", noise(17<<20))), nil), ErrTooLarge},
		"garbage after it all": {plainLayer(oci+"+gzip", concat(gz(t, raw), []byte("garbage")), raw), ErrArchive},
		"diffID":               {plainLayer(oci, raw, []byte("other")), ErrDiffID},
	}
	for n, tt := range tests {
		t.Run(n, func(t *testing.T) {
			s, _ := seal(t, tt.s)
			blob := &counting{Reader: bytes.NewReader(s.blob)}
			_, err := Apply(t.Context(), blob, s.spec, s.key, t.TempDir(), Options{Mode: Plain, MaxBytes: 16 << 20})
			if !errors.Is(err, tt.err) || errors.Is(err, ErrDecrypt) || strings.Contains(err.Error(), decryptText) {
				t.Errorf("error %v, want %v", err, tt.err)
			}
			if blob.n != len(s.blob) {
				t.Errorf("stopped after %d of %d bytes", blob.n, len(s.blob))
			}
		})
	}
	t.Run("no PLBCO digest", func(t *testing.T) {
		s, _ := seal(t, plainLayer(oci, raw, raw))
		if _, _, err := apply(t, s.with(func(s *sample) { s.key.plain = "" })); err != nil {
			t.Error(err)
		}
	})
}

// TestSizeOfEncryptedLayers holds that a wrong length, which says nothing of
// the plaintext, is told apart, so that a broken connection can be retried.
func TestSizeOfEncryptedLayers(t *testing.T) {
	raw := tarOf(t, "a", noise(1000))
	s, _ := seal(t, plainLayer(oci+"+gzip", gz(t, raw), raw))
	for delta, want := range map[int64]error{-1: ErrTooLarge, 1: ErrTruncated} {
		_, _, err := apply(t, s.with(func(s *sample) { s.spec.Size += delta }))
		if !errors.Is(err, want) || errors.Is(err, ErrDecrypt) {
			t.Errorf("size %+d: %v", delta, err)
		}
	}
}
