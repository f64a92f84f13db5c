package rpc

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sealpod/sealpod/api/datahub"
	"github.com/sealpod/sealpod/podvm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hub is a GetResource server whose behaviour the path selects.
type hub struct {
	entered chan struct{}
	release chan struct{}
}

func (h *hub) GetResource(ctx context.Context, r *datahub.GetResourceRequest) (*datahub.GetResourceResponse, error) {
	switch r.GetResourcePath() {
	case "panic":
		panic("boom")
	case "fail":
		return nil, Fail(ctx, codes.Internal, "[CDH] [ERROR]: Get Resource failed",
			podvm.Explain(errors.New("secret chain"), "no such resource"))
	case "block":
		h.entered <- struct{}{}
		<-h.release
	}
	return &datahub.GetResourceResponse{Resource: []byte(r.GetResourcePath())}, nil
}

type running struct {
	path string
	stop func() error
}

func start(t *testing.T, h *hub, path string) running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l, err := Listen(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, l, slog.New(slog.DiscardHandler), func(s *ttrpc.Server) {
			datahub.RegisterGetResourceServiceService(s, h)
		})
	}()
	var once sync.Once
	var result error
	stop := func() error {
		once.Do(func() { cancel(); result = <-done })
		return result
	}
	t.Cleanup(func() { _ = stop() })
	return running{path: path, stop: stop}
}

func get(ctx context.Context, c *Client, path string) (string, error) {
	var out string
	err := c.Do(ctx, func(conn *ttrpc.Client) error {
		r, err := datahub.NewGetResourceServiceClient(conn).GetResource(ctx, &datahub.GetResourceRequest{ResourcePath: path})
		out = string(r.GetResource())
		return err
	})
	return out, err
}

func client(t *testing.T, path string) *Client {
	c := NewClient(path, 5*time.Second)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestErrorsKeepThePrefixAddTheCauseAndHideTheChain(t *testing.T) {
	srv := start(t, &hub{}, filepath.Join(t.TempDir(), "s.sock"))
	_, err := get(t.Context(), client(t, srv.path), "fail")
	st := status.Convert(err)
	if st.Code() != codes.Internal ||
		!strings.HasPrefix(st.Message(), "[CDH] [ERROR]: Get Resource failed: no such resource (request ") ||
		strings.Contains(st.Message(), "secret") {
		t.Fatalf("%v %q", st.Code(), st.Message())
	}
}

func TestAPanicFailsOneCallOnly(t *testing.T) {
	srv := start(t, &hub{}, filepath.Join(t.TempDir(), "s.sock"))
	c := client(t, srv.path)
	if _, err := get(t.Context(), c, "panic"); status.Code(err) != codes.Internal {
		t.Fatalf("got %v", err)
	}
	if got, err := get(t.Context(), c, "x"); err != nil || got != "x" {
		t.Fatalf("after a panic: %q, %v", got, err)
	}
}

func TestUnknownMethodIsUnimplemented(t *testing.T) {
	srv := start(t, &hub{}, filepath.Join(t.TempDir(), "s.sock"))
	err := client(t, srv.path).Do(t.Context(), func(conn *ttrpc.Client) error {
		return conn.Call(t.Context(), "api.GetResourceService", "Nope", &datahub.GetResourceRequest{}, &datahub.GetResourceResponse{})
	})
	if status.Code(err) != codes.Unimplemented {
		t.Fatalf("got %v", err)
	}
}

func TestOversizedFrameDoesNotStopOthers(t *testing.T) {
	srv := start(t, &hub{}, filepath.Join(t.TempDir(), "s.sock"))
	good := client(t, srv.path)
	if _, err := get(t.Context(), good, "x"); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", srv.path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	var header [10]byte
	binary.BigEndian.PutUint32(header[0:], 5<<20)
	binary.BigEndian.PutUint32(header[4:], 1)
	header[8] = 1
	if _, err := conn.Write(header[:]); err != nil {
		t.Fatal(err)
	}
	chunk := make([]byte, 1<<20)
	for range 5 {
		if _, err := conn.Write(chunk); err != nil {
			break // the server may hang up instead of reading on
		}
	}
	reply := make([]byte, 10)
	if _, err := io.ReadFull(conn, reply); err == nil && binary.BigEndian.Uint32(reply[4:]) != 1 {
		t.Errorf("reply for stream %d", binary.BigEndian.Uint32(reply[4:]))
	}
	if got, err := get(t.Context(), good, "y"); err != nil || got != "y" {
		t.Fatalf("the good connection: %q, %v", got, err)
	}
}

func TestGarbageOnTheSocketDoesNotStopOthers(t *testing.T) {
	srv := start(t, &hub{}, filepath.Join(t.TempDir(), "s.sock"))
	for _, garbage := range []string{"GET / HTTP/1.1\r\n\r\n", "\x00", strings.Repeat("\xff", 4096)} {
		conn, err := net.Dial("unix", srv.path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write([]byte(garbage))
		_ = conn.Close()
	}
	if got, err := get(t.Context(), client(t, srv.path), "y"); err != nil || got != "y" {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestStopLetsRunningCallsFinish(t *testing.T) {
	h := &hub{entered: make(chan struct{}), release: make(chan struct{})}
	srv := start(t, h, filepath.Join(t.TempDir(), "s.sock"))
	c := client(t, srv.path)
	answer := make(chan error, 1)
	go func() {
		_, err := get(t.Context(), c, "block")
		answer <- err
	}()
	<-h.entered
	stopped := make(chan error, 1)
	go func() { stopped <- srv.stop() }()
	for {
		if _, err := os.Lstat(srv.path); err != nil {
			break // the listener is gone: draining has begun
		}
	}
	close(h.release)
	if err := <-answer; err != nil {
		t.Errorf("the running call: %v", err)
	}
	if err := <-stopped; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestClientSurvivesARestartedServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	first := start(t, &hub{}, path)
	c := client(t, path)
	if _, err := get(t.Context(), c, "x"); err != nil {
		t.Fatal(err)
	}
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
	start(t, &hub{}, path)
	if got, err := get(t.Context(), c, "y"); err != nil || got != "y" {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestClientRepeatsACallWhosePeerGoesAway(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	start(t, &hub{}, path)
	for kills, want := range map[int]error{maxTries - 1: nil, maxTries: ttrpc.ErrClosed} {
		c, tries := client(t, path), 0
		err := c.Do(t.Context(), func(conn *ttrpc.Client) error {
			if tries++; tries <= kills {
				_ = conn.Close()
			}
			var in, out datahub.GetResourceRequest
			return conn.Call(t.Context(), "none", "None", &in, &out)
		})
		if status.Code(err) == codes.Unimplemented {
			err = nil // it arrived
		}
		if !errors.Is(err, want) || tries != maxTries {
			t.Errorf("%d kills: %v after %d tries", kills, err, tries)
		}
	}
}

func TestClientWaitsForALateServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "s.sock")
	answer := make(chan error, 1)
	c := client(t, path)
	go func() {
		_, err := get(t.Context(), c, "x")
		answer <- err
	}()
	start(t, &hub{}, path)
	if err := <-answer; err != nil {
		t.Fatal(err)
	}
}

func TestClientGivesUpOnAnAbsentServer(t *testing.T) {
	c := NewClient(filepath.Join(t.TempDir(), "s.sock"), time.Millisecond)
	if _, err := get(t.Context(), c, "x"); !errors.Is(err, ErrPeerAbsent) {
		t.Fatalf("got %v", err)
	}
}

func TestListen(t *testing.T) {
	t.Run("takes the place of a stale socket", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s.sock")
		dead, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		dead.(*net.UnixListener).SetUnlinkOnClose(false)
		_ = dead.Close()
		start(t, &hub{}, path)
	})
	t.Run("refuses a path that is not a socket", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s.sock")
		if err := os.WriteFile(path, []byte("keep"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Listen(t.Context(), path); err == nil {
			t.Fatal("accepted")
		}
		if b, _ := os.ReadFile(path); string(b) != "keep" {
			t.Fatal("the file was touched")
		}
	})
	t.Run("leaves a successor's socket alone", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s.sock")
		first, err := Listen(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		start(t, &hub{}, path)
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := get(t.Context(), client(t, path), "x"); err != nil {
			t.Fatal(err)
		}
	})
}

func TestSocketPath(t *testing.T) {
	if p, err := SocketPath("unix:///a/b"); err != nil || p != "/a/b" {
		t.Error(p, err)
	}
	for _, bad := range []string{"", "/a/b", "unix://", "tcp://x"} {
		if _, err := SocketPath(bad); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
}

func BenchmarkUnary(b *testing.B) {
	ctx, cancel := context.WithCancel(b.Context())
	l, err := Listen(ctx, filepath.Join(b.TempDir(), "s.sock"))
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, l, slog.New(slog.DiscardHandler), func(s *ttrpc.Server) {
			datahub.RegisterGetResourceServiceService(s, &hub{})
		})
	}()
	c := NewClient(l.(*listener).path, time.Second)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := get(ctx, c, "x"); err != nil {
			b.Fatal(err)
		}
	}
	_ = c.Close()
	cancel()
	<-done
}

func TestRemoveStale(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s.sock")
	left := func() bool {
		_, err := os.Lstat(path)
		return err == nil
	}
	if err := RemoveStale(t.Context(), path); err != nil {
		t.Errorf("nothing there: %v", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := RemoveStale(t.Context(), path); err != nil || !left() {
		t.Errorf("a socket in use is removed, or %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := RemoveStale(t.Context(), path); err != nil || left() {
		t.Errorf("a stale socket stays, %v", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := RemoveStale(t.Context(), path); err != nil || !left() {
		t.Errorf("a file is removed, or %v", err)
	}
}
