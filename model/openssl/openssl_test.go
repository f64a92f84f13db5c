package openssl

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/podvm/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// encrypted is plain as the program openssl encrypts it.
func encrypted(t *testing.T, plain, keyFile []byte) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, keyFile, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), testenv.Tool(t, "openssl"), "enc", "-aes-256-cbc", "-pbkdf2", "-kfile", path)
	cmd.Stdin = bytes.NewReader(plain)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func opened(t testing.TB, ctx context.Context, keyFile []byte, object io.Reader) ([]byte, error) {
	t.Helper()
	p, err := ParseKeyFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Wipe()
	file, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	n, err := p.Open(ctx, object, file)
	got, rerr := os.ReadFile(file.Name())
	if rerr != nil || err == nil && int64(len(got)) != n {
		t.Fatalf("%d bytes, said to be %d: %v", len(got), n, rerr)
	}
	return got, err
}

func TestOpen(t *testing.T) {
	for _, n := range []int{0, 1, 15, 16, 17, 1<<20 - 16, 1<<20 - 1, 1 << 20, 1<<20 + 1, 5<<20 + 3} {
		plain := make([]byte, n)
		rand.Read(plain)
		object := encrypted(t, plain, []byte("correct horse\n"))
		for name, r := range map[string]io.Reader{"at once": bytes.NewReader(object), "in halves": iotest.HalfReader(bytes.NewReader(object))} {
			if got, err := opened(t, t.Context(), []byte("correct horse"), r); err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%d bytes %s: %d bytes, %v", n, name, len(got), err)
			}
		}
	}
}

// TestKeyFiles asks the program what it makes of key files.
func TestKeyFiles(t *testing.T) {
	for _, raw := range []string{"ab", "pass\r\nmore", "pass\n", "with \x00 zero\n", " blanks \n", strings.Repeat("a", 127) + "\n", strings.Repeat("b", 600) + "\n"} {
		object := encrypted(t, []byte("weights"), []byte(raw))
		if got, err := opened(t, t.Context(), []byte(raw), bytes.NewReader(object)); err != nil || string(got) != "weights" {
			t.Errorf("%.20q: %q %v", raw, got, err)
		}
	}
	for _, raw := range []string{"", "a", "\npass", "a\x00bcd"} {
		if _, err := ParseKeyFile([]byte(raw)); !errors.Is(err, sealed.ErrKey) {
			t.Errorf("%.20q: %v", raw, err)
		}
	}
}

func TestWrong(t *testing.T) {
	pass := []byte("correct horse")
	object := encrypted(t, bytes.Repeat([]byte("x"), 2<<20), pass)
	for name, tt := range map[string]struct {
		in   []byte
		want error
	}{
		"nothing":        {nil, ErrFormat},
		"no salt":        {object[:12], ErrFormat},
		"no block":       {object[:16], ErrFormat},
		"half a block":   {object[:len(object)-8], ErrFormat},
		"another format": {append([]byte("Unsalted"), object[8:]...), ErrFormat},
	} {
		if _, err := opened(t, t.Context(), pass, bytes.NewReader(tt.in)); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	wrong := 0
	for _, p := range []string{"aa", "bb", "cc", "dd"} { // one in 255 is not found out
		if got, err := opened(t, t.Context(), []byte(p), bytes.NewReader(object)); errors.Is(err, sealed.ErrIntegrity) && len(got) == 0 {
			wrong++
		}
	}
	if wrong < 3 {
		t.Errorf("%d of 4 wrong passphrases found out", wrong)
	}
	broken := errors.New("broken")
	if _, err := opened(t, t.Context(), pass, io.MultiReader(bytes.NewReader(object[:1<<20]), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := opened(t, ctx, pass, bytes.NewReader(object)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func FuzzOpen(f *testing.F) {
	f.Add([]byte(magic + "12345678" + strings.Repeat("b", 32)))
	p, err := ParseKeyFile([]byte("pass"))
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
		if n, err := p.Open(t.Context(), bytes.NewReader(in), file); err == nil && n > int64(len(in)) {
			t.Fatalf("%d bytes of %d", n, len(in))
		}
	})
}
