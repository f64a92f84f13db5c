package initdata

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/podvm"
)

func TestDecode(t *testing.T) {
	encoded, err := Encode([]byte(document))
	if err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(string(encoded), "\r\n") {
		t.Error("more than a line")
	}
	// As `gzip -n | base64 -w 40` writes it, of the text "x\n".
	const foreign = "H4sIAAAAAAAAA6vgAgAfCOpGAgAAAA==\n"
	for name, tt := range map[string]struct{ in, want string }{
		"as encoded":      {string(encoded), document},
		"by other tools":  {foreign, "x\n"},
		"newline at end":  {string(encoded) + "\n", document},
		"lines":           {string(encoded[:8]) + "\r\n" + string(encoded[8:]) + "\n", document},
		"several members": {string(twice(t)), document + document},
	} {
		if got, err := Decode([]byte(tt.in)); err != nil || string(got) != tt.want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// twice returns two gzip members, which make one text.
func twice(t *testing.T) []byte {
	t.Helper()
	one, err := Encode([]byte(document))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := base64.StdEncoding.DecodeString(string(one))
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.AppendEncode(nil, append(raw, raw...))
}

func TestDecodeRefuses(t *testing.T) {
	good, err := Encode([]byte(document))
	if err != nil {
		t.Fatal(err)
	}
	packed, _ := base64.StdEncoding.DecodeString(string(good))
	flipped := bytes.Clone(packed)
	flipped[len(flipped)-8] ^= 1 // the checksum
	for name, tt := range map[string]struct{ in, says string }{
		"nothing":           {"", "not gzip"},
		"the document bare": {document, "not base64"},
		"URL alphabet":      {"-_-_", "not base64"},
		"not padded":        {strings.TrimRight(base64.StdEncoding.EncodeToString(append(packed, 0)), "="), "not"},
		"base64 of text":    {base64.StdEncoding.EncodeToString([]byte(document)), "not gzip"},
		"cut":               {base64.StdEncoding.EncodeToString(packed[:len(packed)-4]), "ends too early"},
		"checksum":          {base64.StdEncoding.EncodeToString(flipped), "not gzip"},
	} {
		got, err := Decode([]byte(tt.in))
		if !errors.Is(err, ErrInitData) || got != nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := Decode(make([]byte, MaxEncodedBytes+1)); !errors.Is(err, podvm.ErrTooLarge) {
		t.Errorf("oversized: %v", err)
	}
}

// TestDecodeStopsAGzipBomb inflates 64 MiB of zeros, of which no more than the
// cap may ever be in memory.
func TestDecodeStopsAGzipBomb(t *testing.T) {
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(z, zeros{}, 1<<26); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	bomb := base64.StdEncoding.AppendEncode(nil, packed.Bytes())
	if len(bomb) > 1<<20 {
		t.Fatalf("a bomb of %d bytes", len(bomb))
	}
	if _, err := Decode(bomb); !errors.Is(err, podvm.ErrTooLarge) || !errors.Is(err, ErrInitData) {
		t.Errorf("got %v", err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func FuzzDecode(f *testing.F) {
	good, err := Encode([]byte(document))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("H4sIAAAAAAAAA6vgAgAfCOpGAgAAAA==\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		text, err := Decode(in)
		if err != nil {
			if !errors.Is(err, ErrInitData) || text != nil {
				t.Fatalf("%q, %v", text, err)
			}
			return
		}
		again, err := Encode(text)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := Decode(again); err != nil || !bytes.Equal(back, text) {
			t.Fatalf("%q became %q, %v", text, back, err)
		}
	})
}
