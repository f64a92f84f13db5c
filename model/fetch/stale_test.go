package fetch

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// errBroken is what a store says after its first bytes.
var errBroken = errors.New("broken")

// TestNotesOfAnotherFileInProgress: a file that keeps no notes is written over one
// that has some.
func TestNotesOfAnotherFileInProgress(t *testing.T) {
	want := map[string][]byte{"big": random(30 << 20)}
	for name, other := range map[string]func(*File){
		"short":             func(f *File) { f.Size, f.Object.Size = 3<<20, 3<<20 },
		"without a version": func(f *File) { f.ID = [32]byte{} },
		"of unknown size":   func(f *File) { f.Size, f.Object.Size = -1, -1 },
		"transformed": func(f *File) {
			f.Size, f.ID = -1, [32]byte{}
			f.Transform = func(_ context.Context, r io.Reader, file *os.File) (int64, error) {
				b := make([]byte, 1<<20)
				n, _ := io.ReadFull(r, b)
				_, err := file.WriteAt(b[:n], 0)
				return 0, errors.Join(err, errBroken)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s, plan := sealedModel(t, want)
			s.fault = func(_ source.Object, off, _ int64) ([]byte, error) {
				if off > 20<<20 {
					return nil, errBroken
				}
				return nil, nil
			}
			if err := openFolder(t, dir).Fetch(t.Context(), plan, 1); !errors.Is(err, errBroken) {
				t.Fatal(err)
			}
			_, foreign := plainModel(map[string][]byte{"big": random(30 << 20)})
			foreign[0].ID[0] ^= 1
			other(&foreign[0])
			foreign[0].Source = cutOff{foreign[0].Source}
			if err := openFolder(t, dir).Fetch(t.Context(), foreign, 1); !errors.Is(err, errBroken) {
				t.Fatal(err)
			}
			s.fault = nil
			if err := openFolder(t, dir).Fetch(t.Context(), plan, 1); err != nil {
				t.Fatal(err)
			}
			holds(t, dir, want)
		})
	}
}

// cutOff sends 2 MiB of an object and breaks.
type cutOff struct{ source.Source }

func (c cutOff) Open(ctx context.Context, o source.Object, off, n int64) (io.ReadCloser, error) {
	r, err := c.Source.Open(ctx, o, off, n)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(io.LimitReader(r, 2<<20), brokenReader{}), r}, nil
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errBroken }

// TestFinishedFileOfAnotherModel: of three runs that are ended, the second one
// fetches other files of the same names and sizes.
func TestFinishedFileOfAnotherModel(t *testing.T) {
	first := map[string][]byte{"a": random(1000), "z": random(10)}
	second := map[string][]byte{"a": random(1000), "z": random(10)}
	s1, plan1 := sealedModel(t, first)
	s2, plan2 := sealedModel(t, second)
	noEnd := func(o source.Object, _, _ int64) ([]byte, error) {
		if o.Path == "z" {
			return nil, errBroken
		}
		return nil, nil
	}
	s1.fault, s2.fault = noEnd, noEnd
	dir := t.TempDir()
	for _, plan := range [][]File{plan1, plan2} {
		if err := openFolder(t, dir).Fetch(t.Context(), plan, 1); !errors.Is(err, errBroken) {
			t.Fatal(err)
		}
	}
	s1.fault = nil
	if err := openFolder(t, dir).Fetch(t.Context(), plan1, 1); err != nil {
		t.Fatal(err)
	}
	holds(t, dir, first)
}

// TestReadOnlyFileInProgress: a run was killed when the file had its mode and not
// yet its name.
func TestReadOnlyFileInProgress(t *testing.T) {
	testenv.Root(t)
	dir := t.TempDir()
	_, plan := plainModel(map[string][]byte{"x": []byte("weights")})
	f := openFolder(t, dir)
	if err := errors.Join(os.Chown(dir, 65534, 65534), os.WriteFile(filepath.Join(dir, ".x.part"), []byte("wei"), 0o444), os.Chown(filepath.Join(dir, ".x.part"), 65534, 65534)); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its user
		if _, err := unix.SetfsuidRetUid(65534); err != nil {
			done <- err
			return
		}
		p, err := f.begin(t.Context(), &plan[0])
		if err == nil {
			p.close()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
