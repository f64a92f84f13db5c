package layer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

func TestRingCarriesBytesInOrder(t *testing.T) {
	in := []byte(noise(20*chunkSize + 7))
	r := newRing(t.Context(), newPool())
	var tap bytes.Buffer
	go func() {
		n, err := r.pump(iotest.HalfReader(bytes.NewReader(in)), &tap, int64(len(in)))
		if n != int64(len(in)) {
			err = errors.New("wrong count")
		}
		r.close(err)
	}()
	out, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(in, out) || !bytes.Equal(in, tap.Bytes()) {
		t.Errorf("%d of %d bytes, %v", len(out), len(in), err)
	}
}

// TestRingIsBounded holds that a sender whose receiver is slow stops after
// ringDepth buffers, and that buffers are used again.
func TestRingIsBounded(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	p := newPool()
	r := newRing(ctx, p)
	for range ringDepth {
		if err := r.send(p.get()); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := r.send(p.get()); !errors.Is(err, context.Canceled) {
		t.Errorf("one more buffer: %v", err)
	}
	if _, err := r.next(); !errors.Is(err, context.Canceled) {
		t.Errorf("a buffer after the end of the context: %v", err)
	}
	b := p.get()
	p.put(b[:1])
	if again := p.get(); &again[0] != &b[0] || len(again) != chunkSize {
		t.Error("not used again")
	}
}

func TestPumpPassesOnErrors(t *testing.T) {
	broken := errors.New("broken")
	tests := map[string]struct {
		src  io.Reader
		max  int64
		sent int64
		err  error
	}{
		"end":                 {bytes.NewReader(make([]byte, 10)), 10, 10, nil},
		"one byte too many":   {bytes.NewReader(make([]byte, 11)), 10, 0, ErrTooLarge},
		"error":               {io.MultiReader(bytes.NewReader(make([]byte, 10)), iotest.ErrReader(broken)), 100, 10, broken},
		"EOF inside an error": {iotest.ErrReader(errors.Join(broken, io.EOF)), 100, 0, broken},
		"unexpected EOF":      {iotest.ErrReader(io.ErrUnexpectedEOF), 100, 0, io.ErrUnexpectedEOF},
		"no progress":         {stuck{}, 100, 0, io.ErrNoProgress},
	}
	for n, tt := range tests {
		t.Run(n, func(t *testing.T) {
			r := newRing(t.Context(), newPool())
			if sent, err := r.pump(tt.src, nil, tt.max); !errors.Is(err, tt.err) || (err != nil) != (tt.err != nil) || sent != tt.sent {
				t.Errorf("%d bytes, %v", sent, err)
			}
		})
	}
}

type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }
