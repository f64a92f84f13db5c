package sealed

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sealpod/sealpod/podvm"
)

// Limits of a manifest.
const (
	MaxManifest = 32 << 20 // bytes of the stored object
	MaxFiles    = 100_000
	maxPath     = 1024
	maxName     = 240 // of one element: room for what a name in progress has more
)

// Manifest lists the files of a model: these and no others are written.
type Manifest struct {
	Version int       `json:"version"` // 1
	ID      string    `json:"id"`      // 16 random bytes in lower-case hexadecimal
	Name    string    `json:"name"`    // for people, at most 256 bytes
	Created time.Time `json:"created"`
	Files   []File    `json:"files"`
}

// File is one file of a model.
type File struct {
	Path   string `json:"path"`   // in the volume
	Object string `json:"object"` // in the bucket, below the manifest's folder
	Size   int64  `json:"size"`   // of the plaintext, in bytes
	Mode   uint32 `json:"mode"`   // permissions, at most 0777

	// Either the object is sealed, or it is the file itself with this digest in
	// hexadecimal.
	Sealed bool   `json:"sealed,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
}

// Total is how many bytes of plaintext the model has.
func (m *Manifest) Total() (n int64) {
	for _, f := range m.Files {
		n += f.Size
	}
	return n
}

// OpenManifest decrypts and checks a stored manifest, which is used up. Errors:
// ErrPin, ErrIntegrity, ErrManifest, podvm.ErrTooLarge.
func OpenManifest(k *Key, stored []byte) (*Manifest, error) {
	if len(stored) > MaxManifest {
		return nil, fmt.Errorf("manifest: %w: longer than %d bytes", podvm.ErrTooLarge, MaxManifest)
	}
	if err := k.CheckPin(stored); err != nil {
		return nil, err
	}
	plain, err := open(k.Manifest, stored)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	m, err := ParseManifest(plain)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	return m, nil
}

// open decrypts a whole object in memory.
func open(cipher func(Header) (*Cipher, error), object []byte) ([]byte, error) {
	h, err := ParseHeader(object)
	if err != nil {
		return nil, err
	}
	c, err := cipher(h)
	if err != nil {
		return nil, err
	}
	var plain []byte
	at := HeaderSize
	for i := int64(0); ; i++ {
		end := min(int(i+1)*SegmentSize, len(object))
		piece, err := c.Open(i, end == len(object), object[at:end])
		if err != nil {
			return nil, err
		}
		plain = append(plain, piece...)
		if at = end; at == len(object) {
			return plain, nil
		}
	}
}

// ParseManifest reads the text of a manifest. Members it does not know are
// refused: they would mean something.
func ParseManifest(text []byte) (*Manifest, error) {
	var m Manifest
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return nil, fmt.Errorf("reading JSON: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("data after its end")
	}
	if err := m.Check(); err != nil {
		return nil, err
	}
	return &m, nil
}

// Check says what is wrong with m.
func (m *Manifest) Check() error {
	if m.Version != 1 {
		return fmt.Errorf("version %d: this program knows 1", m.Version)
	}
	if id, err := hex.DecodeString(m.ID); err != nil || len(id) != 16 || m.ID != strings.ToLower(m.ID) {
		return errors.New("its id is not 32 lower-case hexadecimal digits")
	}
	if len(m.Name) > 256 {
		return errors.New("its name is longer than 256 bytes")
	}
	if len(m.Files) > MaxFiles {
		return fmt.Errorf("%d files: at most %d", len(m.Files), MaxFiles)
	}
	paths, objects := map[string]bool{}, map[string]bool{ManifestObject: true}
	var total int64
	for _, f := range m.Files {
		if err := f.check(); err != nil {
			return fmt.Errorf("file %q: %w", podvm.Printable(f.Path, 200), err)
		}
		if total += f.Size; total > MaxSize {
			return errors.New("its files are larger than 16 TiB in all")
		}
		if paths[f.Path] || objects[f.Object] {
			return fmt.Errorf("file %q: listed twice", podvm.Printable(f.Path, 200))
		}
		paths[f.Path], objects[f.Object] = true, true
	}
	for _, f := range m.Files {
		for dir := path.Dir(f.Path); dir != "."; dir = path.Dir(dir) {
			if paths[dir] {
				return fmt.Errorf("file %q: %q is a file, too", podvm.Printable(f.Path, 200), podvm.Printable(dir, 200))
			}
		}
	}
	return nil
}

func (f *File) check() error {
	if err := CheckPath(f.Path); err != nil {
		return err
	}
	if err := CheckPath(f.Object); err != nil {
		return fmt.Errorf("object %q: %w", podvm.Printable(f.Object, 200), err)
	}
	if f.Size < 0 || f.Size > MaxSize {
		return fmt.Errorf("a size of %d bytes", f.Size)
	}
	if f.Mode > uint32(fs.ModePerm) {
		return fmt.Errorf("mode %#o: only permissions", f.Mode)
	}
	if f.Sealed {
		if f.SHA256 != "" {
			return errors.New("sealed, and with a digest")
		}
		return nil
	}
	if sum, err := hex.DecodeString(f.SHA256); err != nil || len(sum) != 32 {
		return errors.New("neither sealed nor with a SHA-256 digest")
	}
	return nil
}

// CheckPath says why p is not the path of a file in a model: relative, clean,
// printable UTF-8, at most 1024 bytes and 240 for each element, and not a name
// that a file in progress has.
func CheckPath(p string) error {
	switch {
	case p == "" || len(p) > maxPath:
		return fmt.Errorf("a path of %d bytes: want 1 to %d", len(p), maxPath)
	case !utf8.ValidString(p) || strings.ContainsFunc(p, unicode.IsControl):
		return errors.New("a path with control characters or not in UTF-8")
	case p == "." || !fs.ValidPath(p):
		return errors.New("a path that is not relative and clean")
	}
	for name := range strings.SplitSeq(p, "/") {
		if len(name) > maxName {
			return fmt.Errorf("a name of %d bytes: at most %d", len(name), maxName)
		}
		if InProgress(name) {
			return errors.New("a name of files in progress")
		}
	}
	return nil
}

// InProgress tells whether a file of this name is one that is not complete yet,
// or what is known about it.
func InProgress(name string) bool {
	return strings.HasPrefix(name, ".") && (strings.HasSuffix(name, ".part") || strings.HasSuffix(name, ".part.map"))
}
