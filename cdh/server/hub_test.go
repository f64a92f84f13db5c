package server

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/sealpod/sealpod/cdh/internal/cdhtest"
	"github.com/sealpod/sealpod/cdh/resource"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/rpc"
)

func TestCredentialsAreInPlaceBeforeAnythingIsServed(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Credentials = []Credential{
			{podvm.CDHResourceDir + "/deep/er/key", "kbs:///default/none/1"}, // the later of two wins
			{podvm.CDHResourceDir + "/deep/er/key", uri},
			{podvm.CDHResourceDir + "/flat", uri},
		}
	})
	for _, name := range []string{"deep/er/key", "flat"} {
		path := filepath.Join(w.host.Root, podvm.CDHResourceDir, name)
		b, err := os.ReadFile(path)
		if err != nil || string(b) != "secret one" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, st.Mode(), err)
		}
	}
	if n := w.aa.Tokens.Load(); n != 1 {
		t.Errorf("%d tokens, want 1", n)
	}
}

func TestCredentialsDoNotFollowLinksOutOfTheirDirectory(t *testing.T) {
	host, outside := machine(t, nil, nil), t.TempDir()
	dir := filepath.Join(host.Root, podvm.CDHResourceDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	err := placeCredentials(t.Context(), host, constant("x"), []Credential{{podvm.CDHResourceDir + "/link/key", uri}})
	if err == nil {
		t.Fatal("a link led out of the directory")
	}
	if left, _ := os.ReadDir(outside); len(left) != 0 {
		t.Fatalf("%v was written outside", left)
	}
}

type constant string

func (c constant) Resource(context.Context, string) (podvm.Secret, error) {
	return podvm.Secret(c), nil
}

func TestKeyProviderFile(t *testing.T) {
	w := newWorld(t)
	b, err := os.ReadFile(filepath.Join(w.host.Root, podvm.CDHRunDir, "ocicrypt_config.json"))
	if want := `{"key-providers":{"attestation-agent":{"ttrpc":"unix://` + w.path + `"}}}`; err != nil || string(b) != want {
		t.Fatalf("%s, %v, want %s", b, err, want)
	}
}

func TestKeyProviderFileIsLeftToTheEnvironment(t *testing.T) {
	host := machine(t, map[string]string{"OCICRYPT_KEYPROVIDER_CONFIG": "/etc/ocicrypt_config.json"}, nil)
	h := &Hub{host: host}
	if err := h.writeKeyProviderConfig(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(host.Root, podvm.CDHRunDir)); !errors.Is(err, os.ErrNotExist) {
		t.Fatal("the file was written all the same")
	}
}

// runCfg is a configuration for Run in a directory of its own.
func runCfg(t *testing.T, kbc KBC) Config {
	c := defaults()
	dir := t.TempDir()
	c.Socket, c.KBC = "unix://"+filepath.Join(dir, "run", "cdh.sock"), kbc
	c.AA.Socket = "unix://" + filepath.Join(dir, "aa.sock")
	c.TokenAASocket = c.AA.Socket
	return c
}

func TestFailedStartLeavesNoSocketAndTakesAStaleOneAway(t *testing.T) {
	tests := map[string]struct {
		change func(*Config)
		files  map[string]string
		is     error
	}{
		"a missing credential": {
			change: func(c *Config) { c.Credentials = []Credential{{podvm.CDHResourceDir + "/a", uri}} }, is: resource.ErrNotFound,
		},
		"an offline file that cannot be parsed": {files: map[string]string{podvm.OfflineKeysFile: "{"}, is: resource.ErrInit},
		"an unknown kbc":                        {change: func(c *Config) { c.KBC.Name = "eaa_kbc" }, is: ErrConfig},
		"a credential path outside": {
			change: func(c *Config) { c.Credentials = []Credential{{"/etc/x", uri}} }, is: ErrConfig,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := runCfg(t, KBC{Name: "offline_fs_kbc"})
			if tt.change != nil {
				tt.change(&cfg)
			}
			path := strings.TrimPrefix(cfg.Socket, "unix://")
			// As a killed predecessor leaves it.
			l, err := rpc.Listen(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(path, path+".keep"); err != nil {
				t.Fatal(err)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(path+".keep", path); err != nil {
				t.Fatal(err)
			}
			err = Run(t.Context(), cfg, machine(t, nil, tt.files), cdhtest.Quiet)
			if !errors.Is(err, tt.is) || !strings.HasPrefix(err.Error(), "init Hub failed: ") {
				t.Fatalf("%v, want %v", err, tt.is)
			}
			if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
				t.Error("a socket says ready")
			}
		})
	}
}

func TestRunServesWithoutAnAgentAndStopsCleanly(t *testing.T) {
	cfg := runCfg(t, KBC{Name: "cc_kbc", URL: "http://127.0.0.1:1"})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg, machine(t, nil, nil), cdhtest.Quiet) }()
	path := strings.TrimPrefix(cfg.Socket, "unix://")
	w := &world{conn: rpc.NewClient(path, 10*time.Second)}
	if _, st := w.unwrap("x"); st.Code() != codes.Internal {
		t.Fatal(st)
	}
	if err := w.conn.Close(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Error("the socket outlived its server")
	}
}

func TestPathThatIsNoSocketIsNotReplaced(t *testing.T) {
	cfg := runCfg(t, KBC{Name: "offline_fs_kbc"})
	path := strings.TrimPrefix(cfg.Socket, "unix://")
	write(t, path, "precious")
	if err := Run(t.Context(), cfg, machine(t, nil, nil), cdhtest.Quiet); err == nil {
		t.Fatal("started over a file")
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Fatalf("%q, %v", b, err)
	}
}

func TestStopWhileWaitingForTheAgentIsNoFailure(t *testing.T) {
	cfg := runCfg(t, KBC{Name: "cc_kbc", URL: "http://127.0.0.1:1"})
	cfg.Credentials = []Credential{{podvm.CDHResourceDir + "/a", uri}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg, machine(t, nil, nil), cdhtest.Quiet) }()
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
