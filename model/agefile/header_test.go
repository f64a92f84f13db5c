package agefile

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
)

// endless is text again and again, and counts what is taken of it, up to a limit.
type endless struct {
	text  string
	taken int
}

var errTaken = errors.New("somebody reads for ever")

func (e *endless) Read(b []byte) (int, error) {
	if e.taken > 64<<20 {
		return 0, errTaken
	}
	n := 0
	for n < len(b) {
		n += copy(b[n:], e.text[(e.taken+n)%len(e.text):])
	}
	e.taken += n
	return n, nil
}

// TestHeaderWithoutEnd: what comes before the content fits into memory.
func TestHeaderWithoutEnd(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	identity, err := ParseIdentity([]byte(id.String()))
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ start, rest string }{
		"line":     {"age-encryption.org/v1\n-> X25519 ", "A"},
		"stanzas":  {"age-encryption.org/v1\n", "-> x y\nAAAA\n"},
		"body":     {"age-encryption.org/v1\n-> x y\n", strings.Repeat("A", 64) + "\n"},
		"no magic": {"age-encryption.org/", "A"},
	} {
		file, err := os.Create(filepath.Join(t.TempDir(), "f"))
		if err != nil {
			t.Fatal(err)
		}
		rest := &endless{text: tt.rest}
		if _, err := identity.Open(t.Context(), io.MultiReader(strings.NewReader(tt.start), rest), file); !errors.Is(err, ErrFormat) || rest.taken > 4<<20 {
			t.Errorf("%s: %v after %d bytes", name, err, rest.taken)
		}
		if err := file.Close(); err != nil {
			t.Error(err)
		}
	}
}
