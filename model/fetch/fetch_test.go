package fetch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/model/room"
	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// files have sizes at the edges of pieces and runs.
func files() map[string][]byte {
	out := map[string][]byte{"a/b/empty": {}, "tiny": random(3), "tokenizer.json": random(9<<20 + 1)}
	l := sealed.Layout{Size: sealed.MaxSize}
	eight, _ := l.Plain(8)
	for _, n := range []int64{piece, eight, eight - 1, eight + 1, 2*8<<20 + 77, 24 << 20} {
		out["weights/"+strconv.FormatInt(n, 10)] = random(int(n))
	}
	return out
}

func TestFetch(t *testing.T) {
	want := files()
	sealedStore, sealedPlan := sealedModel(t, want, "tokenizer.json")
	plainStore, plainPlan := plainModel(maps.Clone(want))
	for name, noRanges := range map[string]bool{"ranges": false, "one stream": true} {
		for kind, plan := range map[string][]File{"sealed": sealedPlan, "plain": plainPlan} {
			t.Run(kind+" by "+name, func(t *testing.T) {
				sealedStore.noRanges, plainStore.noRanges = noRanges, noRanges
				dir := t.TempDir()
				f := openFolder(t, dir)
				if err := f.Fetch(t.Context(), slices.Clone(plan), 3); err != nil {
					t.Fatal(err)
				}
				holds(t, dir, want)
				var total int64
				for _, b := range want {
					total += int64(len(b))
				}
				if f.Stats.Bytes.Load() != total || f.Stats.Files.Load() != int64(len(want)) || f.Stats.Resumed.Load() != 0 {
					t.Errorf("%d of %d bytes, %d files, %d from before", f.Stats.Bytes.Load(), total, f.Stats.Files.Load(), f.Stats.Resumed.Load())
				}
				if st, err := os.Stat(filepath.Join(dir, "tiny")); err != nil || st.Mode() != 0o644 {
					t.Errorf("%v %v: the model server may be another user", st.Mode(), err)
				}
			})
		}
	}
}

func TestUnknownSize(t *testing.T) {
	want := files()
	_, plan := plainModel(want)
	for i := range plan {
		plan[i].Size, plan[i].Object.Size = -1, -1
	}
	dir := t.TempDir()
	if err := openFolder(t, dir).Fetch(t.Context(), plan, 2); err != nil {
		t.Fatal(err)
	}
	holds(t, dir, want)
	if plan[0].Size < 0 {
		t.Error("the size stays unknown")
	}
}

func TestTransform(t *testing.T) {
	s, plan := plainModel(map[string][]byte{"good": []byte("shout"), "zbad": []byte("x")})
	errBad := errors.New("bad")
	for i := range plan {
		plan[i].Size = -1
		plan[i].Transform = func(_ context.Context, object io.Reader, file *os.File) (int64, error) {
			b, err := io.ReadAll(object)
			if err != nil || string(b) == "x" {
				return 0, errors.Join(err, errBad)
			}
			n, err := file.WriteAt(bytes.ToUpper(b), 0)
			return int64(n), err
		}
	}
	dir := t.TempDir()
	if err := openFolder(t, dir).Fetch(t.Context(), plan, 1); !errors.Is(err, errBad) {
		t.Error(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "good")); err != nil || string(b) != "SHOUT" || s.sent.Load() != 6 {
		t.Errorf("%q %v", b, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "zbad")); err == nil {
		t.Error("it has its name")
	}
}

// TestNothingWrongHasAName changes what a store sends.
func TestNothingWrongHasAName(t *testing.T) {
	const n = 20 << 20
	type fault = func(s *store, o source.Object)
	for name, tt := range map[string]struct {
		fault fault
		want  error
	}{
		"bit in a run":     {func(s *store, o source.Object) { s.objects[o.Path][12<<20] ^= 1 }, sealed.ErrIntegrity},
		"bit in the first": {func(s *store, o source.Object) { s.objects[o.Path][100] ^= 1 }, sealed.ErrIntegrity},
		"cut":              {func(s *store, o source.Object) { s.objects[o.Path] = s.objects[o.Path][:15<<20] }, sealed.ErrIntegrity},
		"gone":             {func(s *store, o source.Object) { delete(s.objects, o.Path) }, source.ErrNotFound},
		"changed": {func(s *store, _ source.Object) {
			s.fault = func(_ source.Object, off, _ int64) ([]byte, error) {
				if off > 8<<20 {
					return nil, source.ErrChanged
				}
				return nil, nil
			}
		}, source.ErrChanged},
	} {
		t.Run(name, func(t *testing.T) {
			s, plan := sealedModel(t, map[string][]byte{"secret": random(n), "public": random(n)}, "public")
			for i := range plan {
				tt.fault(s, plan[i].Object)
			}
			for i := range plan {
				for _, stream := range []bool{false, true} {
					if s.noRanges = stream; stream && name == "changed" {
						continue
					}
					dir := t.TempDir()
					if err := openFolder(t, dir).Fetch(t.Context(), plan[i:i+1], 2); !errors.Is(err, tt.want) || !strings.HasPrefix(err.Error(), plan[i].Path) {
						t.Errorf("%s: %v", plan[i].Path, err)
					}
					nothingNamed(t, dir)
				}
			}
		})
	}
}

func TestObjectOfAnotherSize(t *testing.T) {
	s, plan := sealedModel(t, map[string][]byte{"a": random(100)})
	plan[0].Object.Size++
	if err := openFolder(t, t.TempDir()).Fetch(t.Context(), plan, 1); !errors.Is(err, sealed.ErrIntegrity) || s.sent.Load() != 0 {
		t.Error(err)
	}
	// A store that lists no sizes, and sends more.
	plan[0].Object.Size, s.noRanges = -1, true
	big := map[string][]byte{"a": random(9 << 20)}
	s, plan = sealedModel(t, big)
	s.noRanges = true
	plan[0].Object.Size = -1
	s.objects["a"] = append(s.objects["a"], 0)
	dir := t.TempDir()
	if err := openFolder(t, dir).Fetch(t.Context(), plan, 1); !errors.Is(err, sealed.ErrIntegrity) {
		t.Error(err)
	}
	nothingNamed(t, dir)
}

// TestContinued fails half-way, and then fetches the rest only.
func TestContinued(t *testing.T) {
	want := map[string][]byte{"0first": random(1 << 20), "big": random(48 << 20)}
	errHalf := errors.New("half")
	for kind, make := range map[string]func() (*store, []File){
		"sealed": func() (*store, []File) { return sealedModel(t, want) },
		"public": func() (*store, []File) { return sealedModel(t, want, "big", "0first") },
		"plain":  func() (*store, []File) { return plainModel(want) },
	} {
		t.Run(kind, func(t *testing.T) {
			s, plan := make()
			s.fault = func(_ source.Object, off, _ int64) ([]byte, error) {
				if off > 28<<20 {
					return nil, errHalf
				}
				return nil, nil
			}
			dir := t.TempDir()
			if err := openFolder(t, dir).Fetch(t.Context(), plan, 2); !errors.Is(err, errHalf) {
				t.Fatal(err)
			}
			s.fault = nil
			first := s.sent.Swap(0)
			f := openFolder(t, dir)
			if err := f.Fetch(t.Context(), plan, 2); err != nil {
				t.Fatal(err)
			}
			holds(t, dir, want)
			// What was not noted yet, and a request that asks for the header.
			if again := first + s.sent.Load() - 49<<20; again > 3*(runPieces<<20)+1<<20 {
				t.Errorf("%d bytes were fetched twice", again)
			}
			if f.Stats.Resumed.Load() == 0 || f.Stats.Bytes.Load() != 49<<20 {
				t.Errorf("%d bytes, %d from before", f.Stats.Bytes.Load(), f.Stats.Resumed.Load())
			}
		})
	}
}

// TestNotContinued has files in progress that are of something else.
func TestNotContinued(t *testing.T) {
	want := map[string][]byte{"big": random(30 << 20)}
	errHalf := errors.New("half")
	for name, change := range map[string]func(t *testing.T, dir string) (*store, []File){
		"sealed again": func(t *testing.T, _ string) (*store, []File) { return sealedModel(t, want) },
		"notes cut": func(t *testing.T, dir string) (*store, []File) {
			if err := os.Truncate(filepath.Join(dir, ".big.part.map"), 30); err != nil {
				t.Fatal(err)
			}
			return nil, nil
		},
		"file gone": func(t *testing.T, dir string) (*store, []File) {
			if err := os.Remove(filepath.Join(dir, ".big.part")); err != nil {
				t.Fatal(err)
			}
			return nil, nil
		},
		"machine restarted": func(t *testing.T, dir string) (*store, []File) {
			name := filepath.Join(dir, ".big.part.map")
			b, err := os.ReadFile(name)
			now := bytes.Replace(b, []byte(bootID()), []byte(strings.Repeat("0", len(bootID()))), 1)
			if err != nil || bytes.Equal(b, now) {
				t.Fatal("the notes do not say of which boot they are:", err)
			}
			// The disk got the notes and not the content.
			if err := errors.Join(os.WriteFile(name, now, 0o600), os.WriteFile(filepath.Join(dir, ".big.part"), make([]byte, 30<<20), 0o600)); err != nil {
				t.Fatal(err)
			}
			return nil, nil
		},
		"list torn": func(t *testing.T, dir string) (*store, []File) {
			if err := os.WriteFile(filepath.Join(dir, doneName), random(40), 0o600); err != nil {
				t.Fatal(err)
			}
			return nil, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, plan := sealedModel(t, want)
			s.fault = func(_ source.Object, off, _ int64) ([]byte, error) {
				if off > 20<<20 {
					return nil, errHalf
				}
				return nil, nil
			}
			dir := t.TempDir()
			if err := openFolder(t, dir).Fetch(t.Context(), plan, 1); !errors.Is(err, errHalf) {
				t.Fatal(err)
			}
			s.fault = nil
			if _, p := change(t, dir); p != nil {
				plan = p
			}
			if err := openFolder(t, dir).Fetch(t.Context(), plan, 2); err != nil {
				t.Fatal(err)
			}
			holds(t, dir, want)
		})
	}
}

func TestCancelled(t *testing.T) {
	s, plan := sealedModel(t, map[string][]byte{"big": random(30 << 20), "next": random(5)})
	ctx, cancel := context.WithCancel(t.Context())
	s.fault = func(_ source.Object, off, _ int64) ([]byte, error) {
		if off > 10<<20 {
			cancel()
		}
		return nil, nil
	}
	dir := t.TempDir()
	if err := openFolder(t, dir).Fetch(ctx, plan, 1); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "big")); err == nil {
		t.Error("it has its name")
	}
}

// TestLinksLeadNowhere has a folder with links out of it.
func TestLinksLeadNowhere(t *testing.T) {
	outside, dir := t.TempDir(), t.TempDir()
	for _, name := range []string{"a", ".b.part"} {
		if err := os.Symlink(outside+"/x", filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	_, plan := plainModel(map[string][]byte{"a/x": {1}, "b": {2}})
	for i := range plan {
		if err := openFolder(t, dir).Fetch(t.Context(), plan[i:i+1], 1); err == nil {
			t.Errorf("%s: no error", plan[i].Path)
		}
	}
	if e, err := os.ReadDir(outside); err != nil || len(e) > 0 {
		t.Error(e, err)
	}
}

func TestNoSpace(t *testing.T) {
	testenv.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s, plan := sealedModel(t, map[string][]byte{"big": random(20 << 20)})
	f := openFolder(t, dir)
	if err := f.Fetch(t.Context(), plan, 2); !errors.Is(err, room.ErrSpace) || !strings.Contains(err.Error(), "23 MB needed, 16 MB free") || s.sent.Load() != 0 {
		t.Error(err)
	}
	// Nobody knows how much comes.
	s, plan = plainModel(map[string][]byte{"big": random(20 << 20)})
	plan[0].Size, plan[0].Object.Size = -1, -1
	if err := f.Fetch(t.Context(), plan, 2); !errors.Is(err, room.ErrSpace) || s.sent.Load() == 0 {
		t.Error(err)
	}
	f.Close()
	nothingNamed(t, dir)
}
