package sealed

import (
	"bytes"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"testing"

	"github.com/tink-crypto/tink-go/v2/streamingaead/subtle"
)

// sizes sit at every edge of a segment.
var sizes = []int64{
	0, 1, 15, 16, 17, firstPlain - 1, firstPlain, firstPlain + 1, SegmentSize,
	firstPlain + restPlain - 1, firstPlain + restPlain, firstPlain + restPlain + 1, 3*SegmentSize + 5,
}

// tink is the reference for objects.
func tink(t *testing.T, root []byte, use string) *subtle.AESGCMHKDF {
	t.Helper()
	shared, err := hkdf.Key(sha256.New, root, nil, use, 32)
	if err != nil {
		t.Fatal(err)
	}
	a, err := subtle.NewAESGCMHKDF(shared, "SHA256", 32, SegmentSize, 0)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func testKey(t testing.TB) *Key {
	t.Helper()
	raw := make([]byte, KeySize)
	rand.Read(raw)
	k, err := ParseKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// sealObject is an object of ours for plain.
func sealObject(t testing.TB, c func(Header) (*Cipher, error), plain []byte) []byte {
	t.Helper()
	var h Header
	rand.Read(h[:])
	h[0] = HeaderSize
	ci, err := c(h)
	if err != nil {
		t.Fatal(err)
	}
	l := Layout{Size: int64(len(plain))}
	out := h[:]
	for i := range l.Segments() {
		if at, _ := l.Stored(i); at != int64(len(out)) {
			t.Fatalf("segment %d is said to be at %d, and is at %d", i, at, len(out))
		}
		off, n := l.Plain(i)
		out = ci.Seal(out, i, i == l.Segments()-1, plain[off:off+n])
	}
	if l.Sealed() != int64(len(out)) {
		t.Fatalf("an object of %d bytes, said to have %d", len(out), l.Sealed())
	}
	return out
}

func TestTinkReadsOurs(t *testing.T) {
	k := testKey(t)
	for _, size := range sizes {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			plain := make([]byte, size)
			rand.Read(plain)
			object := sealObject(t, func(h Header) (*Cipher, error) { return k.Content(h, "0123", "a/b") }, plain)
			r, err := tink(t, k.root, contentInfo).NewDecryptingReader(bytes.NewReader(object), []byte("sealed-model/v1\x000123\x00a/b"))
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, plain) {
				t.Fatalf("%d bytes of %d: %v", len(got), size, err)
			}
		})
	}
}

func TestWeReadTinks(t *testing.T) {
	k := testKey(t)
	for _, size := range sizes {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			plain := make([]byte, size)
			rand.Read(plain)
			var object bytes.Buffer
			w, err := tink(t, k.root, manifestInfo).NewEncryptingWriter(&object, []byte("sealed-model/v1"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(plain); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			got, err := open(k.Manifest, object.Bytes())
			if err != nil || !bytes.Equal(got, plain) {
				t.Fatalf("%d bytes of %d: %v", len(got), size, err)
			}
		})
	}
}
