package notify

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// manager is the socket systemd listens on.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
}

func newManager(t *testing.T) *manager {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "")
	t.Setenv("WATCHDOG_PID", "")
	return &manager{t, conn}
}

// next returns the next message.
func (m *manager) next() string {
	m.t.Helper()
	b := make([]byte, 256)
	if err := m.conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		m.t.Fatal(err)
	}
	n, err := m.conn.Read(b)
	if err != nil {
		m.t.Fatal(err)
	}
	return string(b[:n])
}

// daemon runs Serving until the test ends it.
func (m *manager) daemon(alive func(context.Context) error) (end func()) {
	ctx, cancel := context.WithCancel(m.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { Serving(ctx, slog.New(slog.DiscardHandler), alive) })
	end = func() { cancel(); wg.Wait() }
	m.t.Cleanup(end)
	return end
}

func TestServingTellsReadyOnceTheDaemonAnswers(t *testing.T) {
	m := newManager(t)
	var asked atomic.Int32
	end := m.daemon(func(context.Context) error {
		if asked.Add(1) < 3 {
			return errors.New("not yet")
		}
		return nil
	})
	if got := m.next(); got != "READY=1" || asked.Load() != 3 {
		t.Errorf("%q after %d questions", got, asked.Load())
	}
	end()
	if got := m.next(); got != "STOPPING=1" || asked.Load() != 3 {
		t.Errorf("%q after %d questions: nobody asked for a watchdog", got, asked.Load())
	}
}

func TestWatchdogIsFedOnlyWhileTheDaemonAnswers(t *testing.T) {
	m := newManager(t)
	t.Setenv("WATCHDOG_USEC", "20000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	var asked atomic.Int32
	stuck := make(chan struct{})
	end := m.daemon(func(ctx context.Context) error {
		switch n := asked.Add(1); {
		case n <= 3: // ready, two pings
			return nil
		case n <= 6: // hangs as long as it may
			<-ctx.Done()
			return ctx.Err()
		case n == 7:
			close(stuck)
		}
		return nil
	})
	for _, want := range []string{"READY=1", "WATCHDOG=1", "WATCHDOG=1"} {
		if got := m.next(); got != want {
			t.Fatalf("%q, want %q", got, want)
		}
	}
	if got := m.next(); got != "WATCHDOG=1" {
		t.Fatal(got)
	}
	select {
	case <-stuck:
	default:
		t.Error("a ping while the daemon hung")
	}
	end()
	for got := m.next(); got != "STOPPING=1"; got = m.next() {
		if got != "WATCHDOG=1" {
			t.Fatal(got)
		}
	}
}

func TestNothingIsToldWhereNobodyAsks(t *testing.T) {
	never := func(context.Context) error { t.Error("asked"); return nil }
	t.Run("no manager", func(t *testing.T) {
		t.Setenv("NOTIFY_SOCKET", "")
		t.Setenv("WATCHDOG_USEC", "1000")
		Serving(t.Context(), slog.Default(), never)
		Watch(t.Context(), slog.Default(), never)
		Ready(slog.Default())
	})
	t.Run("the watchdog of another process", func(t *testing.T) {
		newManager(t)
		t.Setenv("WATCHDOG_USEC", "1000")
		t.Setenv("WATCHDOG_PID", "1")
		Watch(t.Context(), slog.Default(), never)
	})
	t.Run("an interval that is none", func(t *testing.T) {
		newManager(t)
		for _, usec := range []string{"999", "-5", "soon", "0", "99999999999"} {
			t.Setenv("WATCHDOG_USEC", usec)
			Watch(t.Context(), slog.New(slog.DiscardHandler), never)
		}
	})
	t.Run("ended before it was ready", func(t *testing.T) {
		m := newManager(t)
		ctx, cancel := context.WithCancel(t.Context())
		Serving(ctx, slog.Default(), func(context.Context) error { cancel(); return errors.New("no") })
		Ready(slog.Default())
		if got := m.next(); got != "READY=1" {
			t.Errorf("%q was told before", got)
		}
	})
}

func TestManagerThatIsGoneIsAWarning(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "nobody"))
	var said strings.Builder
	Ready(slog.New(slog.NewTextHandler(&said, nil)))
	if !strings.Contains(said.String(), "READY=1") {
		t.Errorf("%q", said.String())
	}
}

// One question that nobody answers, on a machine with no time, is no reason to be
// killed.
func TestWatchdogOutlivesALostQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const interval = 30 * time.Second
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		last, asked := time.Now(), 0
		alive := func(ctx context.Context) error {
			if asked++; asked%3 == 0 {
				<-ctx.Done()
			}
			return ctx.Err()
		}
		feed(ctx, interval, func() {
			if ask(ctx, slog.New(slog.DiscardHandler), interval/2, alive) {
				if gap := time.Since(last); gap >= interval*9/10 {
					t.Errorf("told after %v", gap)
				}
				last = time.Now()
			}
			if asked == 12 {
				cancel()
			}
		})
	})
}
