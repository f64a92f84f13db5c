package sysfs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/semaphore"
)

func newGroup(t *testing.T, p Provider) *group {
	return &group{
		ctx: t.Context(), log: slog.New(slog.DiscardHandler), provider: p, driver: drivers[p.Name()],
		gate: semaphore.NewWeighted(1), entries: map[string]*entry{},
	}
}

// fill writes report data to an entry as an open file does.
func fill(t *testing.T, e *entry, data string) {
	t.Helper()
	w := &inblobWrite{entry: e}
	if _, errno := w.Write(t.Context(), []byte(data), 0); errno != 0 {
		t.Fatal(errno)
	}
	w.Flush(t.Context())
	w.Release(t.Context())
}

// The counter of writes may not come round to what was read; the kernel refuses
// writes before that until the report is read.
func TestTheGenerationNeverComesRound(t *testing.T) {
	e, err := newGroup(t, &fake{name: "sev_guest"}).make("e")
	if err != nil {
		t.Fatal(err)
	}
	fill(t, e, data64)
	if _, err := e.outblob(t.Context()); err != nil {
		t.Fatal(err)
	}
	e.written = e.read - 1 // 2⁶⁴ - 1 writes later
	if err := e.setPrivlevel([]byte("1")); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("privlevel: %v", err)
	}
	fill(t, e, strings.Repeat("e", 64)) // a close has nobody to tell
	if out, err := e.outblob(t.Context()); err != nil || string(out) != report0 {
		t.Errorf("outblob %q, %v", out, err)
	}
	if err := e.setPrivlevel([]byte("1")); err != nil {
		t.Errorf("after a read: %v", err)
	}
}

// A program that forgets its entries fills no memory, and hinders the others
// only from making new ones until it or somebody else removes them.
func TestEntriesAreCapped(t *testing.T) {
	g := newGroup(t, &fake{name: "tdx_guest"})
	for i := range maxEntries {
		if _, err := g.make(fmt.Sprint(i)); err != nil {
			t.Fatal(i, err)
		}
	}
	if _, err := g.make("one more"); !errors.Is(err, syscall.ENOMEM) {
		t.Errorf("got %v", err)
	}
	if err := g.remove("7"); err != nil {
		t.Fatal(err)
	}
	if _, err := g.make("one more"); err != nil {
		t.Errorf("after a removal: %v", err)
	}
}

// Writing and closing without ever reading keeps nothing but the last write.
func TestWritesNobodyReadsAreNotKept(t *testing.T) {
	e, err := newGroup(t, &fake{name: "tdx_guest"}).make("e")
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		fill(t, e, data64)
	}
	if len(e.closing) != 0 || e.written != 100 {
		t.Errorf("%d kept, generation %d", len(e.closing), e.written)
	}
}

// Some closes of one open file count as one write, unless somebody looks.
func TestDuplicatesOfAFileDescriptorAreOneWrite(t *testing.T) {
	e, err := newGroup(t, &fake{name: "tdx_guest"}).make("e")
	if err != nil {
		t.Fatal(err)
	}
	w := &inblobWrite{entry: e}
	for off := 0; off < 64; off += 16 {
		w.Write(t.Context(), []byte(data64[:16]), int64(off))
		w.Flush(t.Context())
	}
	w.Release(t.Context())
	if text, err := e.generation(); text != "1\n" || err != nil {
		t.Errorf("generation %q, %v", text, err)
	}
	if out, err := e.outblob(t.Context()); err != nil || string(out) != "report "+data64+" level 0" {
		t.Errorf("%q, %v", out, err)
	}
}

// One report is made at a time; who waits for it can give up.
func TestAWaitForAReportCanBeInterrupted(t *testing.T) {
	p, release, started := &fake{name: "tdx_guest"}, make(chan struct{}), make(chan struct{})
	p.set(func(context.Context, []byte, uint) ([]byte, error) {
		close(started)
		<-release
		return []byte("late"), nil
	})
	g := newGroup(t, p)
	a, _ := g.make("a")
	b, _ := g.make("b")
	fill(t, a, data64)
	fill(t, b, data64)
	var wg sync.WaitGroup
	wg.Go(func() {
		if out, err := a.outblob(t.Context()); string(out) != "late" || err != nil {
			t.Errorf("%q, %v", out, err)
		}
	})
	<-started
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.outblob(ctx); errnoOf(err) != syscall.EINTR {
		t.Errorf("the wait: %v", err)
	}
	if text, err := b.generation(); text != "1\n" || err != nil {
		t.Errorf("what needs no report waits: %q, %v", text, err)
	}
	close(release)
	wg.Wait()
}

// Who waited for a report that another program asked for gets the same one.
func TestReadersOfOneEntryShareAReport(t *testing.T) {
	p := &fake{name: "tdx_guest"}
	waiting := make(chan struct{}, 8)
	p.set(func(_ context.Context, in []byte, _ uint) ([]byte, error) {
		for range cap(waiting) {
			<-waiting
		}
		return in, nil
	})
	e, err := newGroup(t, p).make("e")
	if err != nil {
		t.Fatal(err)
	}
	fill(t, e, data64)
	var wg sync.WaitGroup
	for range cap(waiting) {
		wg.Go(func() {
			waiting <- struct{}{}
			if out, err := e.outblob(t.Context()); string(out) != data64 || err != nil {
				t.Errorf("%q, %v", out, err)
			}
		})
	}
	wg.Wait()
	if n := p.calls.Load(); n != 1 {
		t.Errorf("made %d times", n)
	}
}

// The end of the mount ends a report, whoever still waits for it.
func TestTheEndOfAMountEndsReports(t *testing.T) {
	p := &fake{name: "tdx_guest"}
	g := newGroup(t, p)
	ctx, end := context.WithCancel(t.Context())
	g.ctx = ctx
	p.set(func(ctx context.Context, _ []byte, _ uint) ([]byte, error) {
		end()
		<-ctx.Done()
		return nil, ctx.Err()
	})
	e, err := g.make("e")
	if err != nil {
		t.Fatal(err)
	}
	fill(t, e, data64)
	if _, err := e.outblob(t.Context()); !errors.Is(err, syscall.EINTR) {
		t.Errorf("the one being made: %v", err)
	}
	if _, err := e.outblob(t.Context()); !errors.Is(err, syscall.ENODEV) || p.calls.Load() != 1 {
		t.Errorf("the next one: %v, %d calls", err, p.calls.Load())
	}
}

// Whatever the program does, a report has 30 s.
func TestAReportHasADeadline(t *testing.T) {
	p := &fake{name: "tdx_guest"}
	p.set(func(ctx context.Context, _ []byte, _ uint) ([]byte, error) {
		if end, ok := ctx.Deadline(); !ok || time.Until(end) > reportTimeout {
			t.Errorf("deadline %v, %v", end, ok)
		}
		return nil, context.DeadlineExceeded
	})
	e, err := newGroup(t, p).make("e")
	if err != nil {
		t.Fatal(err)
	}
	fill(t, e, data64)
	if _, err := e.outblob(t.Context()); !errors.Is(err, syscall.ETIMEDOUT) {
		t.Errorf("got %v", err)
	}
}

// A write while a report is made makes that report an old one.
func TestAWriteDuringAReport(t *testing.T) {
	p := &fake{name: "tdx_guest"}
	e, err := newGroup(t, p).make("e")
	if err != nil {
		t.Fatal(err)
	}
	fill(t, e, data64)
	p.set(func(_ context.Context, in []byte, _ uint) ([]byte, error) {
		if p.calls.Load() == 1 {
			fill(t, e, strings.Repeat("e", 64))
		}
		return in, nil
	})
	for _, want := range []string{data64, strings.Repeat("e", 64)} {
		if out, err := e.outblob(t.Context()); string(out) != want || err != nil {
			t.Errorf("%q, %v", out, err)
		}
	}
	if text, _ := e.generation(); text != "2\n" {
		t.Errorf("generation %q", text)
	}
}

func TestTreesThatCannotBe(t *testing.T) {
	tests := map[string]Tree{
		"an unknown driver":            {Reports: &fake{name: "arm_cca_guest"}},
		"a file outside":               {Files: map[string][]byte{"../x": nil}},
		"an absolute file":             {Files: map[string][]byte{"/x": nil}},
		"a file without a name":        {Files: map[string][]byte{"": nil}},
		"a file at the top":            {Files: map[string][]byte{".": nil}},
		"too long a name":              {Files: map[string][]byte{strings.Repeat("x", 256): nil}},
		"a file that is a directory":   {Files: map[string][]byte{"kernel": nil}},
		"a file in configfs":           {Files: map[string][]byte{reportPath + "/x": nil}},
		"a directory that is a file":   {Files: map[string][]byte{"x": nil}, Dirs: []string{"x"}},
		"a directory below a file":     {Files: map[string][]byte{"x": nil}, Dirs: []string{"x/y"}},
		"a register that is a path":    {Measurements: &fakeRegisters{values: map[string][]byte{"a/b": nil}}},
		"a register without a name":    {Measurements: &fakeRegisters{values: map[string][]byte{"": nil}}},
		"a file in place of registers": {Measurements: newRegisters(), Files: map[string][]byte{registerPath: nil}},
	}
	for name, tree := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if f, err := Mount(t.Context(), dir, tree); !errors.Is(err, ErrTree) {
				t.Errorf("got %v, %v", f, err)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
				t.Errorf("left %v, %v", left, err)
			}
		})
	}
}

func TestParseUint(t *testing.T) {
	for text, want := range map[string]uint32{
		"0": 0, "3\n": 3, "+2": 2, "010": 8, "0x1f": 31, "0X1F\n": 31, "4294967295": 1<<32 - 1, "1\x00junk": 1, "00": 0,
	} {
		if got, err := parseUint([]byte(text)); got != want || err != nil {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
	for text, want := range map[string]syscall.Errno{
		"": syscall.EINVAL, "\n": syscall.EINVAL, "1\n\n": syscall.EINVAL, " 1": syscall.EINVAL, "-1": syscall.EINVAL,
		"++1": syscall.EINVAL, "08": syscall.EINVAL, "0x": syscall.EINVAL, "0x+1": syscall.EINVAL, "1_0": syscall.EINVAL, "0b1": syscall.EINVAL,
		"0o7": syscall.EINVAL, "\x001": syscall.EINVAL, "4294967296": syscall.ERANGE, strings.Repeat("9", 30): syscall.ERANGE,
	} {
		if got, err := parseUint([]byte(text)); !errors.Is(err, want) {
			t.Errorf("%q: %d, %v, want %v", text, got, err, want)
		}
	}
}

func FuzzParseUint(f *testing.F) {
	for _, s := range []string{"", "0", "3\n", "0x1f", "010", "+1", "4294967296", "1\x00", "_1"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := parseUint(b)
		if err != nil {
			if n != 0 || !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ERANGE) {
				t.Errorf("%d, %v", n, err)
			}
			return
		}
		if again, err := parseUint(fmt.Appendf(nil, "%d\n", n)); again != n || err != nil {
			t.Errorf("%d became %d, %v", n, again, err)
		}
	})
}
