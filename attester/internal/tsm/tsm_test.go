package tsm

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/report"

	"github.com/sealpod/sealpod/attester/internal/tsmtest"
	"github.com/sealpod/sealpod/podvm"
)

func echo(in []byte) ([]byte, error) { return append([]byte("quote:"), in...), nil }

// Every outcome leaves no entry behind.
func TestGet(t *testing.T) {
	races := func(n int) func() bool { return func() bool { n--; return n >= 0 } }
	var generation *report.GenerationErr
	boom := errors.New("boom")
	tests := map[string]struct {
		driver tsmtest.Driver
		want   string // start of the report
		is     error
		as     bool // a *report.GenerationErr
		says   string
	}{
		"a report":                {driver: tsmtest.Driver{Provider: "p\n", Out: echo}, want: "quote:abc\x00"},
		"provider without a line": {driver: tsmtest.Driver{Provider: "p", Out: echo}, want: "quote:abc\x00"},
		"another provider":        {driver: tsmtest.Driver{Provider: "q\n", Out: echo}, is: ErrProvider},
		"no provider":             {driver: tsmtest.Driver{Out: echo}, is: ErrProvider},
		"empty report":            {driver: tsmtest.Driver{Provider: "p\n"}, is: ErrEmpty},
		"the driver fails":        {driver: tsmtest.Driver{Provider: "p\n", Out: func([]byte) ([]byte, error) { return nil, boom }}, says: "boom"},
		"one race is retried":     {driver: tsmtest.Driver{Provider: "p\n", Out: echo, Bump: races(1)}, want: "quote:abc\x00"},
		"four races are retried":  {driver: tsmtest.Driver{Provider: "p\n", Out: echo, Bump: races(4)}, want: "quote:abc\x00"},
		"five are too many":       {driver: tsmtest.Driver{Provider: "p\n", Out: echo, Bump: races(5)}, as: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			client, sub := tsmtest.Fake(&tt.driver)
			data, err := PadReportData([]byte("abc"))
			if err != nil {
				t.Fatal(err)
			}
			out, err := New(client, "p").Get(t.Context(), data, false)
			switch {
			case len(sub.Entries) != 0:
				t.Errorf("%d entries left", len(sub.Entries))
			case tt.want != "":
				if err != nil || !bytes.HasPrefix(out.Out, []byte(tt.want)) || len(out.Out) != 6+64 {
					t.Errorf("got %q, %v", out.Out, err)
				}
			case err == nil || out.Out != nil:
				t.Errorf("no error but %q", out.Out)
			case tt.is != nil && !errors.Is(err, tt.is), tt.as && !errors.As(err, &generation), !strings.Contains(err.Error(), tt.says):
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestGetStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	d := &tsmtest.Driver{Provider: "p\n", Out: echo, Bump: func() bool { cancel(); return true }}
	client, sub := tsmtest.Fake(d)
	if _, err := New(client, "p").Get(ctx, [64]byte{}, false); !errors.Is(err, context.Canceled) || len(sub.Entries) != 0 {
		t.Errorf("got %v, %d entries", err, len(sub.Entries))
	}
}

// stubborn is a configfs whose entries cannot be removed.
type stubborn struct{ configfsi.Client }

func (stubborn) RemoveAll(string) error { return syscall.EBUSY }

func TestAnEntryThatStaysIsAnError(t *testing.T) {
	client, _ := tsmtest.Fake(&tsmtest.Driver{Provider: "p\n", Out: echo})
	if _, err := New(stubborn{client}, "p").Get(t.Context(), [64]byte{}, false); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("got %v", err)
	}
}

func TestPadReportData(t *testing.T) {
	for n, ok := range map[int]bool{0: true, 1: true, 48: true, 64: true, 65: false, 1000: false} {
		in := bytes.Repeat([]byte{7}, n)
		out, err := PadReportData(in)
		if ok != (err == nil) || !ok && !errors.Is(err, ErrReportData) {
			t.Errorf("%d bytes: %v", n, err)
		}
		if ok && !bytes.Equal(out[:], append(in, make([]byte, 64-n)...)) {
			t.Errorf("%d bytes: %x", n, out)
		}
	}
}

// tree is a configfs of real files below a directory.
func tree(t *testing.T, d *tsmtest.Driver) (*tsmtest.Files, string) {
	t.Helper()
	host := podvm.Host{Root: t.TempDir()}
	dir := host.Path(configfsi.TsmPrefix + "/report")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return &tsmtest.Files{Client: HostClient(host), Driver: d, Root: host.Root}, dir
}

// A hundred reports over real files leave no entry and no file descriptor.
func TestNothingIsLeftBehind(t *testing.T) {
	client, dir := tree(t, &tsmtest.Driver{Provider: "p\n", Out: echo, Aux: func() ([]byte, error) { return []byte("aux"), nil }})
	r := New(client, "p")
	before := openFiles(t)
	for range 100 {
		out, err := r.Get(t.Context(), [64]byte{1}, true)
		if err != nil || string(out.Aux) != "aux" {
			t.Fatal(out, err)
		}
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d files open, before %d", after, before)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

func TestHostClientBounds(t *testing.T) {
	client, dir := tree(t, &tsmtest.Driver{Provider: "p\n", Out: func([]byte) ([]byte, error) { return make([]byte, MaxAttribute+1), nil }})
	if _, err := New(client, "p").Get(t.Context(), [64]byte{}, false); err == nil || !strings.Contains(err.Error(), "too large") {
		t.Errorf("got %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
	if err := client.Client.WriteFile("/not/there", nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("writing an attribute that is missing: %v", err)
	}
	if _, err := New(HostClient(podvm.Host{Root: t.TempDir()}), "p").Get(t.Context(), [64]byte{}, false); !errors.Is(err, ErrUnavailable) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without configfs: %v", err)
	}
}

func BenchmarkGet(b *testing.B) {
	client, _ := tsmtest.Fake(&tsmtest.Driver{Provider: "p\n", Out: echo})
	r := New(client, "p")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Get(b.Context(), [64]byte{}, false); err != nil {
			b.Fatal(err)
		}
	}
}
