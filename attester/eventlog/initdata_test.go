package eventlog

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sealpod/sealpod/podvm"
)

var someDigest = bytes.Repeat([]byte{0xAB}, 48)

// The bytes a verifier looks for, put together by hand.
func TestBindInitDataIsTheFirstEventOfRTMR3(t *testing.T) {
	for _, size := range []int{32, 48, 64} {
		host, b := podvm.Host{Root: t.TempDir()}, newBank(sha384)
		l, err := Open(t.Context(), options(host, b))
		if err != nil {
			t.Fatal(err)
		}
		seven := uint64(7) // RTMR0
		if err := l.Extend(t.Context(), "d", "o", "c", &seven); err != nil {
			t.Fatal(err)
		}
		before, err := os.ReadFile(host.Path(Path))
		if err != nil {
			t.Fatal(err)
		}
		digest := bytes.Repeat([]byte{0xAB}, size)
		for range 3 { // the same again changes nothing, before other events and after
			if err := l.BindInitData(t.Context(), digest); err != nil {
				t.Fatal(err)
			}
			if l, err = Open(t.Context(), options(host, b)); err != nil {
				t.Fatal(err)
			}
		}
		text := "github.com/sealpod/sealpod BindInitData " + strings.Repeat("ab", size)
		event := append([]byte{'L', 'E', 'A', 'A', byte(len(text)), 0, 0, 0}, text...)
		want := append([]byte{4, 0, 0, 0, 6, 0, 0, 0, 1, 0, 0, 0, 0x0c, 0}, sha384.sum(event)...)
		want = append(append(want, byte(len(event)), 0, 0, 0), event...)
		got, err := os.ReadFile(host.Path(Path))
		if d := cmp.Diff(want, got[len(before):]); d != "" || err != nil {
			t.Error(d, err)
		}
		if live, _ := b.Read(4); !bytes.Equal(live, sha384.sum(make([]byte, 48), sha384.sum(event))) {
			t.Errorf("RTMR3 is %x", live)
		}
		if err := l.Extend(t.Context(), "d", "o", "c", nil); err != nil {
			t.Fatal(err)
		}
		if err := l.BindInitData(t.Context(), digest); err != nil || agrees(t, host, b) != 3 {
			t.Error(err)
		}
	}
}

// A crash at any step never binds twice, never leaves what cannot be replayed,
// and binding goes through after it.
func TestBindInitDataCrashes(t *testing.T) {
	steps := crashes(t, sha384, func(*Log) error { return nil }, func(l *Log) error {
		return l.BindInitData(t.Context(), someDigest)
	}, func(l *Log, events int, finished bool) int {
		if events > 1 || finished && events != 1 {
			t.Errorf("%d events", events)
		}
		for range 2 {
			if err := l.BindInitData(t.Context(), someDigest); err != nil {
				t.Fatal(err)
			}
		}
		return 1
	})
	if steps != 5 {
		t.Errorf("%d steps", steps)
	}
}

func TestBindInitDataRefuses(t *testing.T) {
	other := bytes.Repeat([]byte{1}, 48)
	for name, tt := range map[string]struct {
		before func(l *Log, b *bank) error
		digest []byte
		want   error
		says   string
	}{
		"other init data was bound": {
			before: func(l *Log, _ *bank) error { return l.BindInitData(t.Context(), other) },
			want:   ErrBound, says: "other init data was bound"},
		"another length of the same": {
			before: func(l *Log, _ *bank) error { return l.BindInitData(t.Context(), someDigest[:32]) },
			want:   ErrBound, says: "other init data was bound"},
		"an event came first": {
			before: func(l *Log, _ *bank) error { return l.Extend(t.Context(), "d", "o", "c", nil) },
			want:   ErrBound, says: "an event was recorded in RTMR3 before"},
		"an event came first, then it": {
			before: func(l *Log, _ *bank) error {
				return errors.Join(l.Extend(t.Context(), "d", "o", "c", nil),
					l.Extend(t.Context(), Domain, BindInitDataOperation, strings.Repeat("ab", 48), nil))
			},
			want: ErrBound, says: "an event was recorded in RTMR3 before"},
		"extended past the log": {
			before: func(_ *Log, b *bank) error { return b.Extend(4, make([]byte, 48)) },
			want:   ErrBound, says: "not in the event log"},
		"extended past the log after it": {
			before: func(l *Log, b *bank) error {
				return errors.Join(l.BindInitData(t.Context(), someDigest), b.Extend(4, make([]byte, 48)))
			},
			want: ErrBound, says: "not in the event log"},
		"a log of another start of the machine": {
			before: func(l *Log, b *bank) error {
				err := l.BindInitData(t.Context(), someDigest)
				clear(b.values)
				return err
			},
			want: ErrBound, says: "not in the event log"},
		"a log that is none": {
			before: func(l *Log, _ *bank) error { return l.disk.write(Path, []byte("junk")) },
			want:   ErrLog, says: "malformed"},
		"no digest":           {digest: []byte{}, want: ErrEvent, says: "32, 48 or 64 bytes"},
		"a digest cut short":  {digest: someDigest[:47], want: ErrEvent, says: "32, 48 or 64 bytes"},
		"the register failed": {before: func(_ *Log, b *bank) error { b.fail = errCrash; return nil }, want: errCrash},
	} {
		t.Run(name, func(t *testing.T) {
			host, b := podvm.Host{Root: t.TempDir()}, newBank(sha384)
			l, err := Open(t.Context(), options(host, b))
			if err != nil {
				t.Fatal(err)
			}
			if tt.before != nil {
				if err := tt.before(l, b); err != nil {
					t.Fatal(err)
				}
			}
			log, err := os.ReadFile(host.Path(Path))
			if err != nil {
				t.Fatal(err)
			}
			live, _ := b.Read(4)
			if tt.digest == nil {
				tt.digest = someDigest
			}
			if err := l.BindInitData(t.Context(), tt.digest); !errors.Is(err, tt.want) || !strings.Contains(podvm.Cause(err), tt.says) {
				t.Errorf("got %v", err)
			}
			after, _ := b.Read(4)
			if now, err := os.ReadFile(host.Path(Path)); err != nil || !bytes.Equal(now, log) || !bytes.Equal(after, live) {
				t.Errorf("the refusal left a trace: %v", err)
			}
		})
	}
}

func FuzzHistory(f *testing.F) {
	one := newEntry(sha384, 4, "d o c").marshal()
	f.Add(one)
	f.Add(append(bytes.Clone(one), newEntry(sha384, 3, "d o c").marshal()...))
	f.Add(one[:40])
	f.Fuzz(func(t *testing.T, raw []byte) {
		first, value, err := history(sha384, raw, 4)
		if err != nil {
			return
		}
		if (first == nil) != bytes.Equal(value, make([]byte, 48)) || first != nil && !bytes.Contains(raw, first) {
			t.Fatalf("%x leads to %x after %x", raw, value, first)
		}
	})
}
