package eventlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/attester/internal/gate"
	"github.com/sealpod/sealpod/podvm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errCrash = errors.New("crash")

// fuse counts steps and ends the process, so to speak, at one of them: that
// step is not done, or half done, and none after it is.
type fuse struct {
	left int // steps until the crash; below 0 means never
	torn bool
	dead bool
	seen int
}

func (f *fuse) step() (half bool, err error) {
	if f.dead {
		return false, errCrash
	}
	f.seen++
	if f.left == 0 {
		f.dead = true
		return f.torn, errCrash
	}
	f.left--
	return false, nil
}

// bank is a TEE's registers.
type bank struct {
	gate.Gate
	alg    Algorithm
	values map[uint32][]byte
	fuse   *fuse
	fail   error // of the next Extend
	anyway bool  // it extends all the same
}

func newBank(alg Algorithm) *bank {
	return &bank{Gate: gate.New(), alg: alg, values: map[uint32][]byte{}, fuse: &fuse{left: -1}}
}

func (b *bank) Read(i uint32) ([]byte, error) {
	if v, ok := b.values[i]; ok {
		return v, nil
	}
	return make([]byte, b.alg.Size), nil
}

func (b *bank) Extend(i uint32, digest []byte) error {
	half, crash := b.fuse.step()
	if crash != nil && !half {
		return crash
	}
	err := b.fail
	if b.fail = nil; err == nil || b.anyway {
		old, _ := b.Read(i)
		b.values[i] = b.alg.sum(old, digest)
	}
	return errors.Join(err, crash) // half an extension: done, and then the crash
}

// crashing is files behind a fuse.
type crashing struct {
	files
	fuse *fuse
}

func (c crashing) do(full, half func() error) error {
	torn, crash := c.fuse.step()
	switch {
	case crash == nil:
		return full()
	case torn && half != nil:
		return errors.Join(crash, half())
	}
	return crash
}

func (c crashing) create(p string) error {
	return c.do(func() error { return c.files.create(p) }, nil)
}
func (c crashing) write(p string, b []byte) error {
	return c.do(func() error { return c.files.write(p, b) }, func() error { return c.files.write(p, b[:len(b)/2]) })
}
func (c crashing) writeAt(p string, o int64, b []byte) error {
	return c.do(func() error { return c.files.writeAt(p, o, b) }, func() error { return c.files.writeAt(p, o, b[:len(b)/2]) })
}
func (c crashing) rename(a, b string) error {
	return c.do(func() error { return c.files.rename(a, b) }, nil)
}
func (c crashing) remove(p string) error {
	return c.do(func() error { return c.files.remove(p) }, nil)
}

// options are those of a platform with the bank's algorithm: TDX, or a TPM.
func options(host podvm.Host, b *bank) Options {
	o := Options{Host: host, Registers: b, DefaultPCR: 17, Log: slog.New(slog.DiscardHandler)}
	o.Platform, _ = PlatformOf("tdx")
	if b.alg.ID == sha256.ID {
		o.Platform, _ = PlatformOf("tpm")
		o.DefaultPCR = 23
	}
	return o
}

// agrees fails unless the log explains every register, and returns how many
// events it has.
func agrees(t *testing.T, host podvm.Host, b *bank) int {
	t.Helper()
	raw, err := os.ReadFile(host.Path(Path))
	if err != nil {
		t.Fatal(err)
	}
	values, n := map[uint32][]byte{}, 0
	for r := (reader{buf: raw}); len(raw) > r.at; n++ {
		register, kind, digests, alg := r.u32(), r.u32(), r.u32(), r.u16()
		digest := bytes.Clone(r.take(uint32(b.alg.Size)))
		event := r.take(r.u32())
		if r.short || kind != 6 || digests != 1 || alg != b.alg.ID || !bytes.Equal(b.alg.sum(event), digest) {
			t.Fatalf("entry %d is malformed: %x", n, raw)
		}
		old := values[register]
		if old == nil {
			old = make([]byte, b.alg.Size)
		}
		values[register] = b.alg.sum(old, digest)
	}
	for i := range uint32(24) {
		live, _ := b.Read(i)
		want := values[i]
		if want == nil {
			want = make([]byte, b.alg.Size)
		}
		if !bytes.Equal(live, want) {
			t.Fatalf("the log does not explain register %d", i)
		}
	}
	return n
}

// crashes does one operation over and over, with a crash at every step of it,
// before the step or in the middle, and then at every step of the recovery. None
// leaves a log that does not explain the registers, nor a start that is refused.
// prepare comes before do, then comes after the last recovery with the number
// of events there are and whether do had finished. It returns how many steps do
// has.
func crashes(t *testing.T, alg Algorithm, prepare, do func(*Log) error, then func(l *Log, events int, finished bool) int) (steps int) {
	t.Helper()
	for _, torn := range []bool{false, true} {
		finished := false
		for at := 0; !finished; at++ {
			steps = at
			for again := -1; ; again++ { // -1: the recovery does not crash
				host, b := podvm.Host{Root: t.TempDir()}, newBank(alg)
				l, err := Open(t.Context(), options(host, b))
				if err != nil {
					t.Fatal(err)
				}
				if err := prepare(l); err != nil {
					t.Fatal(err)
				}
				b.fuse = &fuse{left: at, torn: torn}
				l.disk = crashing{files{host}, b.fuse}
				err = do(l)
				finished = err == nil
				if err != nil && !errors.Is(err, errCrash) {
					t.Fatal(err)
				}
				b.fuse = &fuse{left: again, torn: torn}
				_, err = open(t.Context(), options(host, b), crashing{files{host}, b.fuse})
				recovered := err == nil
				if again < 0 && !recovered {
					t.Fatalf("torn %v, step %d: %v", torn, at, err)
				}
				b.fuse = &fuse{left: -1}
				l, err = Open(t.Context(), options(host, b))
				if err != nil {
					t.Fatalf("torn %v, step %d, then step %d: %v", torn, at, again, err)
				}
				if want := then(l, agrees(t, host, b), finished); agrees(t, host, b) != want {
					t.Fatalf("torn %v, step %d, then %d: not %d events in the end", torn, at, again, want)
				}
				if _, err := os.Stat(host.Path(walPath)); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("the file of the event in progress stays: %v", err)
				}
				if recovered && again >= 0 {
					break
				}
			}
		}
	}
	return steps
}

func TestCrashAtEveryStep(t *testing.T) {
	seven := uint64(7)
	for name, alg := range map[string]Algorithm{"RTMRs": sha384, "PCRs": sha256} {
		t.Run(name, func(t *testing.T) {
			steps := crashes(t, alg, func(l *Log) error {
				return l.Extend(t.Context(), "d", "first", "c", nil)
			}, func(l *Log) error {
				// Another register than the default: recovery must use it too.
				return l.Extend(t.Context(), "d", "second", "c", &seven)
			}, func(l *Log, events int, finished bool) int {
				if events < 1 || events > 2 || finished && events != 2 {
					t.Errorf("%d events", events)
				}
				if err := l.Extend(t.Context(), "d", "third", "c", nil); err != nil {
					t.Fatal(err)
				}
				return events + 1
			})
			if steps != 5 { // write, rename, extend, write, remove
				t.Errorf("an event has %d steps", steps)
			}
		})
	}
}

func TestExtend(t *testing.T) {
	host, b := podvm.Host{Root: t.TempDir()}, newBank(sha384)
	l, err := Open(t.Context(), options(host, b))
	if err != nil {
		t.Fatal(err)
	}
	if agrees(t, host, b) != 0 {
		t.Error("a new log has events")
	}
	for _, pcr := range []uint64{0, 1, 7, 3, 8, 17, 1 << 40} {
		if err := l.Extend(t.Context(), "d", "o", fmt.Sprint(pcr), &pcr); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Extend(t.Context(), "d", "o", "default", nil); err != nil {
		t.Fatal(err)
	}
	if n := agrees(t, host, b); n != 8 {
		t.Errorf("%d events", n)
	}
	// The same after a restart.
	if l, err = Open(t.Context(), options(host, b)); err != nil {
		t.Fatal(err)
	}
	if err := l.Extend(t.Context(), "d", "o", "c", nil); err != nil || agrees(t, host, b) != 9 {
		t.Error(err)
	}
}

// The evidence of a guest with both logs: what Combined returns has the events
// in the form other readers expect.
func TestTheLogReplaysElsewhere(t *testing.T) {
	host, b := machine(t, "", map[string]string{CCELPath: string(join(specRecord(), make([]byte, 64)))}), newBank(sha384)
	l, err := Open(t.Context(), options(host, b))
	if err != nil {
		t.Fatal(err)
	}
	for pcr := range uint64(20) {
		if err := l.Extend(t.Context(), "domain", "operation", "content", &pcr); err != nil {
			t.Fatal(err)
		}
	}
	log, err := Combined(host)
	if err != nil {
		t.Fatal(err)
	}
	rtmrs := make([][]byte, 4)
	for i := range rtmrs {
		rtmrs[i], _ = b.Read(uint32(i + 1))
	}
	replay(t, log, rtmrs)
}

func TestExtendAtOnce(t *testing.T) {
	host, b := podvm.Host{Root: t.TempDir()}, newBank(sha384)
	l, err := Open(t.Context(), options(host, b))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range uint64(20) {
		wg.Go(func() {
			if err := l.Extend(t.Context(), "d", "o", "c", &i); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := agrees(t, host, b); n != 20 {
		t.Errorf("%d events", n)
	}
}

func TestExtendFails(t *testing.T) {
	boom := errors.New("boom")
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tt := range map[string]struct {
		ctx     context.Context
		content string
		fail    bool // the register says no
		anyway  bool // and is extended all the same
		want    error
		events  int // after one more that succeeds
	}{
		"bad content":                     {content: "\n", want: ErrEvent, events: 1},
		"caller gave up":                  {ctx: canceled, want: context.Canceled, events: 1},
		"the register says no":            {fail: true, want: boom, events: 1},
		"it says no but does":             {fail: true, anyway: true, want: boom, events: 2},
		"the text is as long as the file": {content: strings.Repeat("x", maxText), want: ErrEvent, events: 1},
	} {
		t.Run(name, func(t *testing.T) {
			host, b := podvm.Host{Root: t.TempDir()}, newBank(sha384)
			l, err := Open(t.Context(), options(host, b))
			if err != nil {
				t.Fatal(err)
			}
			ctx := tt.ctx
			if ctx == nil {
				ctx = t.Context()
			}
			if tt.fail {
				b.fail, b.anyway = boom, tt.anyway
			}
			if err := l.Extend(ctx, "d", "o", tt.content, nil); !errors.Is(err, tt.want) {
				t.Errorf("got %v", err)
			}
			if err := l.Extend(t.Context(), "d", "o", "next", nil); err != nil {
				t.Fatal(err)
			}
			if n := agrees(t, host, b); n != tt.events {
				t.Errorf("%d events", n)
			}
		})
	}
}

// Whoever may add events cannot make the log so long that evidence fails.
func TestAFullLogStaysReadable(t *testing.T) {
	host, b := podvm.Host{Root: t.TempDir()}, newBank(sha384)
	l, err := Open(t.Context(), options(host, b))
	if err != nil {
		t.Fatal(err)
	}
	content := strings.Repeat("x", maxText-100)
	n := 0
	for ; ; n++ {
		if err = l.Extend(t.Context(), "d", "o", content, nil); err != nil {
			break
		}
	}
	if !errors.Is(err, ErrFull) || podvm.Cause(err) == "" || n != 8 {
		t.Errorf("%d events, then %v", n, err)
	}
	if agrees(t, host, b) != n {
		t.Error("the event that did not fit left a trace")
	}
	if _, err := Combined(host); err != nil {
		t.Error(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	p := pending{offset: 0, expected: bytes.Repeat([]byte{1}, 48), entry: newEntry(sha384, 4, "a b c")}
	fresh := pending{offset: 9, expected: sha384.sum(make([]byte, 48), p.entry.digest), entry: p.entry}
	long := fresh
	long.offset = 0
	for name, tt := range map[string]struct {
		wal, log string
		want     error
	}{
		"junk":                       {wal: "junk", want: ErrWAL},
		"empty":                      {want: ErrWAL},
		"register of another value":  {wal: string(p.marshal()), want: ErrWAL},
		"the log is shorter than it": {wal: string(fresh.marshal()), log: "12345678", want: ErrWAL},
		"the log went on without it": {wal: string(long.marshal()), log: strings.Repeat("x", 1000), want: ErrWAL},
		"text that is not UTF-8":     {wal: string(fresh.marshal()) + "\xff", want: ErrWAL},
		"longer than any event":      {wal: strings.Repeat("x", maxText+200), want: podvm.ErrTooLarge},
		"offset no log can have":     {wal: "\x7f" + string(fresh.marshal()[1:]), want: ErrWAL},
	} {
		t.Run(name, func(t *testing.T) {
			host, b := machine(t, "", map[string]string{walPath: tt.wal, Path: tt.log}), newBank(sha384)
			_, err := Open(t.Context(), options(host, b))
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), walPath) {
				t.Errorf("got %v", err)
			}
			if got, err := os.ReadFile(host.Path(walPath)); err != nil || string(got) != tt.wal {
				t.Errorf("the file is gone: %v", err)
			}
		})
	}
	o := options(podvm.Host{Root: t.TempDir()}, newBank(sha256))
	o.Platform, _ = PlatformOf("tpm")
	o.DefaultPCR = 24
	if _, err := Open(t.Context(), o); !errors.Is(err, ErrRegister) {
		t.Errorf("default PCR 24: %v", err)
	}
}

// A register whose driver answers nonsense is not extended.
func TestShortRegister(t *testing.T) {
	host, b := podvm.Host{Root: t.TempDir()}, newBank(sha384)
	l, err := Open(t.Context(), options(host, b))
	if err != nil {
		t.Fatal(err)
	}
	b.values[4] = []byte("short")
	if err := l.Extend(t.Context(), "d", "o", "c", nil); err == nil || string(b.values[4]) != "short" {
		t.Errorf("got %v", err)
	}
}

func BenchmarkExtend(b *testing.B) {
	host, r := podvm.Host{Root: b.TempDir()}, newBank(sha384)
	l, err := Open(b.Context(), options(host, r))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := l.Extend(b.Context(), "d", "o", "c", nil); errors.Is(err, ErrFull) {
			if err := os.Truncate(host.Path(Path), 0); err != nil {
				b.Fatal(err)
			}
		} else if err != nil {
			b.Fatal(err)
		}
	}
}
