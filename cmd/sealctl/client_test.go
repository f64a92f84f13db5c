package main

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/ttrpc"
	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/grpc"

	"github.com/sealpod/sealpod/attester"
	"github.com/sealpod/sealpod/attester/sample"
	agent "github.com/sealpod/sealpod/attester/server"
	hub "github.com/sealpod/sealpod/cdh/server"
	"github.com/sealpod/sealpod/imagepull"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// TestClientScripts runs testdata/client/*.txtar against a real attestation
// agent and a real data hub. AA, AA_GRPC, CDH and CDH_GRPC are their addresses.
func TestClientScripts(t *testing.T) {
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	a := agent.New(agent.Deps{Log: log, TEEs: &attester.Set{Primary: sample.New(), Devices: []attester.Attester{sample.NewDevice()}}})
	t.Cleanup(a.Close)
	aaGRPC := serveGRPC(t, rpc.AgentLimits, a.RegisterGRPC)
	aaPath := serveTTRPC(t, filepath.Join(dir, "aa.sock"), a.Register)

	host := podvm.Host{Root: t.TempDir()}
	if err := os.WriteFile(host.Path("/resources.json"), []byte(`{"default/key/1": "c2VjcmV0", "default/kek/1": "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="}`), 0o600); err != nil {
		t.Fatal(err)
	}
	c := hub.Config{Socket: "unix://" + filepath.Join(dir, "cdh.sock"), TokenAASocket: "unix://" + aaPath, ExtraFiles: []string{"/resources.json"},
		Image: imagepull.DefaultConfig()}
	c.KBC.Name, c.AA.Socket, c.SkipSealedSecretVerification = "offline_fs_kbc", c.TokenAASocket, true
	c.Image.WorkDir = filepath.Join(dir, "store")
	h, err := hub.Open(t.Context(), c, host, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	cdhGRPC := serveGRPC(t, rpc.HubLimits, h.RegisterGRPC)
	cdhPath := serveTTRPC(t, filepath.Join(dir, "cdh.sock"), h.Register)

	testscript.Run(t, testscript.Params{
		Dir: "testdata/client", RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("AA", "unix://"+aaPath)
			env.Setenv("AA_GRPC", "http://"+aaGRPC)
			env.Setenv("CDH", "unix://"+cdhPath)
			env.Setenv("CDH_GRPC", "http://"+cdhGRPC)
			return nil
		},
	})
}

func serveTTRPC(t *testing.T, path string, register func(*ttrpc.Server)) string {
	t.Helper()
	l, err := rpc.Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, func(ctx context.Context) error { return rpc.Serve(ctx, l, slog.New(slog.DiscardHandler), register) })
	return path
}

func serveGRPC(t *testing.T, limits rpc.GRPCLimits, register func(grpc.ServiceRegistrar)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, func(ctx context.Context) error {
		return rpc.ServeGRPC(ctx, l, slog.New(slog.DiscardHandler), limits, register)
	})
	return l.Addr().String()
}

// serve runs a server until the test's end.
func serve(t *testing.T, run func(context.Context) error) {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
