package gunzip

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"testing"
	"testing/iotest"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var samples = map[string][]byte{
	"nothing":     {},
	"a byte":      {'x'},
	"words":       words(600 << 10),
	"noise":       noise(300 << 10),
	"zeros":       make([]byte, 600<<10),
	"three bytes": bytes.Repeat([]byte("abc"), 200<<10),
	"mixed":       slices.Concat(words(100<<10), noise(70<<10), make([]byte, 100<<10), words(100<<10)),
}

func TestReadsWhatCompressorsWrite(t *testing.T) {
	for name, plain := range samples {
		for _, level := range []int{-2, 0, 1, 6, 9} {
			t.Run(fmt.Sprint(name, " ", level), func(t *testing.T) {
				got, err := gunzip(bytes.NewReader(compress(t, level, plain)))
				if err != nil || !bytes.Equal(got, plain) {
					t.Errorf("%d of %d bytes, %v", len(got), len(plain), err)
				}
			})
		}
	}
}

// TestEveryDistanceAndLength copies from every distance there is, with every
// length for the short ones, where source and target overlap.
func TestEveryDistanceAndLength(t *testing.T) {
	seed := noise(window32)
	var s stream
	s.stored(0, seed)
	s.put(1|1<<1, 3)
	plain := bytes.Clone(seed)
	add := func(length, distance uint) {
		s.match(fixedLit, fixedDist, length, distance)
		for range length {
			plain = append(plain, plain[len(plain)-int(distance)])
		}
	}
	for d := uint(1); d <= window32; d++ {
		add(3+d%40, d)
	}
	for d := uint(1); d <= 40; d++ {
		for n := uint(3); n <= 258; n++ {
			add(n, d)
			s.symbol(fixedLit, int(n&255)) // so that runs differ
			plain = append(plain, byte(n))
		}
	}
	s.symbol(fixedLit, 256)
	got, err := agree(t, member(s.b, plain))
	if err != nil || !bytes.Equal(got, plain) {
		t.Errorf("%d of %d bytes, %v", len(got), len(plain), err)
	}
}

const window32 = 32 << 10

func TestChunksMakeNoDifference(t *testing.T) {
	plain := samples["mixed"]
	raw := slices.Concat(compress(t, 6, plain), compress(t, 0, plain[:1000]), compress(t, 9, nil), compress(t, 1, plain))
	want := slices.Concat(plain, plain[:1000], plain)
	for name, wrap := range map[string]func(io.Reader) io.Reader{
		"whole":          func(r io.Reader) io.Reader { return r },
		"byte by byte":   iotest.OneByteReader,
		"half":           iotest.HalfReader,
		"EOF with bytes": iotest.DataErrReader,
		"13 bytes":       func(r io.Reader) io.Reader { return &odd{r, 13} },
		"4099 bytes":     func(r io.Reader) io.Reader { return &odd{r, 4099} },
	} {
		for _, size := range []int{1, 7, 4096, 1 << 20} {
			t.Run(fmt.Sprint(name, " into ", size), func(t *testing.T) {
				g := NewReader(wrap(bytes.NewReader(raw)), Options{})
				defer g.Close()
				var got bytes.Buffer
				if _, err := io.CopyBuffer(struct{ io.Writer }{&got}, struct{ io.Reader }{g}, make([]byte, size)); err != nil || !bytes.Equal(got.Bytes(), want) {
					t.Errorf("%d of %d bytes, %v", got.Len(), len(want), err)
				}
				if n, err := g.Read(make([]byte, 1)); n != 0 || err != io.EOF { //nolint:errorlint // as it is
					t.Errorf("after the end: %d bytes, %v", n, err)
				}
			})
		}
		t.Run(name+" WriteTo", func(t *testing.T) {
			var got bytes.Buffer
			if n, err := NewReader(wrap(bytes.NewReader(raw)), Options{}).WriteTo(&got); err != nil || n != int64(len(want)) || !bytes.Equal(got.Bytes(), want) {
				t.Errorf("%d of %d bytes, %v", n, len(want), err)
			}
		})
	}
}

// odd reads at most n bytes at once and sometimes none.
type odd struct {
	io.Reader
	n int
}

func (o *odd) Read(p []byte) (int, error) {
	if o.n = -o.n; o.n > 0 {
		return 0, nil
	}
	return o.Reader.Read(p[:min(len(p), -o.n)])
}

// short has all kinds of blocks and two members.
func short(t testing.TB) (raw, plain []byte) {
	var s stream
	s.stored(0, []byte("stored"))
	s.stored(0, nil)
	s.put(1<<1, 3)
	s.match(fixedLit, fixedDist, 5, 6)
	s.symbol(fixedLit, '!')
	s.symbol(fixedLit, 256)
	s.put(1|1<<1, 3)
	s.symbol(fixedLit, 256)
	head := []byte("storedstore!")
	tail := words(600)
	return slices.Concat(member(s.b, head), compress(t, 9, tail)), slices.Concat(head, tail)
}

func TestTruncatedAnywhere(t *testing.T) {
	raw, plain := short(t)
	first := len(raw) - len(compress(t, 9, plain[12:]))
	for n := range raw {
		got, err := agree(t, raw[:n])
		switch {
		case n == first:
			if err != nil {
				t.Errorf("after the first member: %v", err)
			}
		case !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, ErrCorrupt):
			t.Errorf("%d bytes: %v", n, err)
		}
		if !bytes.HasPrefix(plain, got) {
			t.Errorf("%d bytes: wrong bytes before the end", n)
		}
	}
}

func TestErrorsOfTheReaderBelowPassThrough(t *testing.T) {
	raw, plain := short(t)
	broken := errors.New("broken")
	for n := range len(raw) + 1 {
		got, err := gunzip(io.MultiReader(bytes.NewReader(raw[:n]), iotest.ErrReader(broken)))
		if err != broken { //nolint:errorlint // as it is
			t.Errorf("after %d bytes: %v", n, err)
		}
		if !bytes.HasPrefix(plain, got) {
			t.Errorf("after %d bytes: wrong bytes", n)
		}
	}
	if _, err := gunzip(stuck{}); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("a reader that never reads: %v", err)
	}
}

type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

func TestReadsOnlyWhenReadFrom(t *testing.T) {
	g := NewReader(iotest.ErrReader(errors.New("touched")), Options{})
	if n, err := g.Read(nil); n != 0 || err != nil {
		t.Errorf("reading nothing: %d, %v", n, err)
	}
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	if _, err := g.Read(make([]byte, 1)); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if _, err := g.WriteTo(io.Discard); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestCloseInTheMiddle(t *testing.T) {
	g := NewReader(bytes.NewReader(compress(t, 6, samples["words"])), Options{})
	if n, err := g.Read(make([]byte, 100)); n == 0 || err != nil {
		t.Fatal(n, err)
	}
	g.Close()
	g.Close()
	if n, err := g.Read(make([]byte, 1)); n != 0 || !errors.Is(err, fs.ErrClosed) {
		t.Errorf("after Close: %d, %v", n, err)
	}
}

func TestWriterThatFails(t *testing.T) {
	raw := compress(t, 6, samples["words"])
	for _, want := range []error{io.ErrClosedPipe, io.ErrShortWrite} {
		g := NewReader(bytes.NewReader(raw), Options{})
		if n, err := g.WriteTo(&limited{5, want}); !errors.Is(err, want) || n != 5 {
			t.Errorf("%d bytes, %v", n, err)
		}
		g.Close()
	}
}

// limited writes n bytes of many; err is io.ErrShortWrite if it does not say so.
type limited struct {
	n   int
	err error
}

func (l *limited) Write(p []byte) (int, error) {
	if errors.Is(l.err, io.ErrShortWrite) {
		return min(l.n, len(p)), nil
	}
	return min(l.n, len(p)), l.err
}
