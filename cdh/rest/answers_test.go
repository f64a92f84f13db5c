package rest

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/sealpod/sealpod/podvm/rpc"
)

func TestAnswers(t *testing.T) {
	w := newWorld(t, "resource")
	tcp, err := net.ResolveTCPAddr("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	if err := Answers(t.Context(), tcp); err != nil {
		t.Error(err)
	}

	h, err := New(Config{Features: "resource", CDHAddr: "unix://" + w.hub.path})
	if err != nil {
		t.Fatal(err)
	}
	l, err := rpc.Listen(t.Context(), filepath.Join(t.TempDir(), "rest.sock"))
	if err != nil {
		t.Fatal(err)
	}
	w.serveOn(t, l, h)
	if err := Answers(t.Context(), l.Addr()); err != nil {
		t.Error(err)
	}

	hangs, err := net.Listen("tcp", "127.0.0.1:0") // and nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer hangs.Close() //nolint:errcheck // a test's end
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := Answers(ctx, hangs.Addr()); err == nil {
		t.Error("a server that hangs answers")
	}
}
