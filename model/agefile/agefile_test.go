package agefile

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"testing/iotest"

	"filippo.io/age"
	"filippo.io/age/armor"

	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// encrypt makes a file for whoever has the identity.
func encrypt(t testing.TB, id *age.X25519Identity, plain []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := age.Encrypt(&out, id.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plain); err != nil || w.Close() != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func newIdentity(t testing.TB) (*age.X25519Identity, *Identity) {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	i, err := ParseIdentity([]byte("# a comment\n" + id.String() + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	return id, i
}

// open returns what of object is in the file afterwards.
func open(t testing.TB, i *Identity, object io.Reader) ([]byte, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, err := i.Open(t.Context(), object, f)
	got, rerr := os.ReadFile(path)
	if rerr != nil {
		t.Fatal(rerr)
	}
	if err == nil && n != int64(len(got)) {
		t.Errorf("%d bytes, says %d", len(got), n)
	}
	return got, err
}

func TestOpen(t *testing.T) {
	id, i := newIdentity(t)
	_, stranger := newIdentity(t)
	for _, size := range []int{0, 1, 64 << 10, 64<<10 + 1, 3<<20 + 5} {
		plain := make([]byte, size)
		rand.Read(plain)
		object := encrypt(t, id, plain)
		if got, err := open(t, i, iotest.HalfReader(bytes.NewReader(object))); err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("%d bytes: %v", size, err)
		}
		for name, bad := range map[string][]byte{
			"a byte less":  object[:len(object)-1],
			"a byte more":  append(bytes.Clone(object), 0),
			"a bit":        append(bytes.Clone(object[:len(object)-1]), object[len(object)-1]^1),
			"no last part": object[:max(len(object)-64<<10-16, 0)],
			"nothing":      nil,
			"half":         object[:len(object)/2],
		} {
			if got, err := open(t, i, bytes.NewReader(bad)); !errors.Is(err, sealed.ErrIntegrity) && !errors.Is(err, ErrFormat) || len(got) > 0 {
				t.Errorf("%d bytes, %s: %d are left, %v", size, name, len(got), err)
			}
		}
		if _, err := open(t, stranger, bytes.NewReader(object)); !errors.Is(err, sealed.ErrIntegrity) {
			t.Errorf("another identity: %v", err)
		}
		broken := errors.New("broken")
		for _, at := range []int{10, len(object) - 1} {
			in := io.MultiReader(bytes.NewReader(object[:at]), iotest.ErrReader(broken))
			if got, err := open(t, i, in); !errors.Is(err, broken) || len(got) > 0 {
				t.Errorf("%d bytes, broken at %d: %v", size, at, err)
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := i.Open(ctx, bytes.NewReader(encrypt(t, id, []byte("x"))), f); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestArmor is refused: a model as text is a third larger and nobody has one.
func TestArmor(t *testing.T) {
	id, i := newIdentity(t)
	var text bytes.Buffer
	w := armor.NewWriter(&text)
	if _, err := w.Write(encrypt(t, id, []byte("x"))); err != nil || w.Close() != nil {
		t.Fatal(err)
	}
	if _, err := open(t, i, &text); !errors.Is(err, ErrFormat) {
		t.Error(err)
	}
}

// TestFilesOfTheProgram: what the program age wrote is read.
func TestFilesOfTheProgram(t *testing.T) {
	program := testenv.Tool(t, "age")
	id, i := newIdentity(t)
	cmd := exec.CommandContext(t.Context(), program, "-r", id.Recipient().String())
	cmd.Stdin = bytes.NewReader([]byte("weights"))
	object, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := open(t, i, bytes.NewReader(object)); err != nil || string(got) != "weights" {
		t.Errorf("%q %v", got, err)
	}
}

func TestParseIdentity(t *testing.T) {
	id, _ := newIdentity(t)
	if !Is([]byte(id.String())) || Is([]byte(id.Recipient().String())) {
		t.Error("which is an identity?")
	}
	for _, in := range []string{"", "x", id.Recipient().String(), id.String()[:30], "AGE-SECRET-KEY-1\n"} {
		if _, err := ParseIdentity([]byte(in)); !errors.Is(err, sealed.ErrKey) || bytes.Contains([]byte(err.Error()), []byte("SECRET")) {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func FuzzOpen(f *testing.F) {
	id, i := newIdentity(f)
	f.Add(encrypt(f, id, []byte("weights")))
	f.Add([]byte("age-encryption.org/v1\n-> X25519 x\n--- y\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		if got, err := open(t, i, bytes.NewReader(in)); err != nil && len(got) > 0 {
			t.Errorf("%d bytes are left after %v", len(got), err)
		}
	})
}
