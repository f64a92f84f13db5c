package layer

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/podvm"
)

// panicking reads as its Reader does and panics when that ends.
type panicking struct{ io.Reader }

func (p panicking) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	if err != nil {
		panic("boom\n")
	}
	return n, nil
}

func TestPanicOfTheBlobIsAnErrorOfTheLayer(t *testing.T) {
	raw := tarOf(t, "a", "b")
	s := plainLayer(oci, raw, raw)
	_, err := Apply(t.Context(), panicking{bytes.NewReader(s.blob[:10])}, s.spec, nil, t.TempDir(), Options{Mode: Plain})
	var p *panicError
	if !errors.As(err, &p) || !strings.Contains(string(p.stack), "contain_test.go") || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %v", err)
	}
	if podvm.Cause(err) != "" {
		t.Errorf("cause %q", podvm.Cause(err))
	}
}

// TestPanicTellsNothingOfUnauthenticBytes: a stage that panics counts as one
// that fails: the ciphertext is read to its end and judged first.
func TestPanicTellsNothingOfUnauthenticBytes(t *testing.T) {
	raw := tarOf(t, "big", noise(4<<20))
	good, _ := seal(t, plainLayer(oci+"+gzip", gz(t, raw), raw))
	forged := good.with(func(s *sample) { s.blob[len(s.blob)-1] ^= 1; s.redigest() })
	stages := map[string]func(*run){
		"cipher":   func(r *run) { r.decrypter = func(io.Reader, *Key) (io.Reader, error) { panic("boom") } },
		"inflater": func(r *run) { r.inflater = func(compression, io.Reader) (io.ReadCloser, error) { panic("boom") } },
		"its reads": func(r *run) {
			r.inflater = func(_ compression, in io.Reader) (io.ReadCloser, error) {
				return io.NopCloser(panicking{io.LimitReader(in, 1000)}), nil
			}
		},
	}
	for name, broken := range stages {
		for _, s := range []sample{good, forged} {
			authentic := &s.blob[0] == &good.blob[0]
			blob := &counting{Reader: bytes.NewReader(s.blob)}
			r, err := newRun(s.spec, s.key, Options{Mode: Plain})
			must(t, err)
			broken(r)
			_, err = r.apply(t.Context(), blob, t.TempDir())
			if blob.n != len(s.blob) {
				t.Errorf("%s: read %d of %d bytes", name, blob.n, len(s.blob))
			}
			var p *panicError
			if want := !authentic || name == "cipher"; errors.Is(err, ErrDecrypt) != want || errors.As(err, &p) == want {
				t.Errorf("%s, authentic %t: error %v", name, authentic, err)
			}
		}
	}
}

// TestFailedStageEndsAReadThatHangs: without it a full disk is reported when the
// registry goes on sending.
func TestFailedStageEndsAReadThatHangs(t *testing.T) {
	raw := tarOf(t, "a", "b")
	s := plainLayer(oci, raw, raw)
	blob := &hanging{bytes.NewReader(nil), make(chan struct{}), make(chan struct{})}
	_, err := Apply(t.Context(), blob, s.spec, nil, t.TempDir()+"/none", Options{Mode: Plain})
	if err == nil || errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("error %v", err)
	}
}
