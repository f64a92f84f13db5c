package model

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/api/keyprovider"
	"github.com/sealpod/sealpod/imagepull"
	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
	"github.com/sealpod/sealpod/model/room"
	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/podvm/rpc"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// provider is a key provider that opens the packets it knows.
type provider map[string][]byte

func (provider) WrapKey(context.Context, *keyprovider.KeyProviderKeyWrapProtocolInput) (*keyprovider.KeyProviderKeyWrapProtocolOutput, error) {
	return nil, errors.New("not here")
}

func (p provider) UnWrapKey(_ context.Context, in *keyprovider.KeyProviderKeyWrapProtocolInput) (*keyprovider.KeyProviderKeyWrapProtocolOutput, error) {
	var req struct {
		Params struct {
			Annotation []byte `json:"annotation"`
		} `json:"keyunwrapparams"`
	}
	if err := json.Unmarshal(in.GetKeyProviderKeyWrapProtocolInput(), &req); err != nil {
		return nil, err
	}
	options, ok := p[string(req.Params.Annotation)]
	if !ok {
		return nil, errors.New("access denied")
	}
	out := `{"keyunwrapresults":{"optsdata":"` + base64.StdEncoding.EncodeToString(options) + `"}}`
	return &keyprovider.KeyProviderKeyWrapProtocolOutput{KeyProviderKeyWrapProtocolOutput: []byte(out)}, nil
}

// serve listens on a socket until the test ends.
func (p provider) serve(t *testing.T) imagepull.SocketKeys {
	t.Helper()
	dir, err := os.MkdirTemp("", "kp") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	ctx, cancel := context.WithCancel(context.Background())
	l, err := rpc.Listen(ctx, socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		done <- rpc.Serve(ctx, l, slog.New(slog.DiscardHandler), func(s *ttrpc.Server) { keyprovider.RegisterKeyProviderServiceService(s, p) })
	}()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	return imagepull.SocketKeys(socket)
}

// TestModelcar is an image with a model, some of whose layers are encrypted, as
// KServe has it fetched.
func TestModelcar(t *testing.T) {
	reg := registrytest.New(t)
	files := map[string]string{"bin/sh": "sh"}
	for name, text := range caikit {
		files["models/"+name] = text
	}
	plain := registrytest.NewImage(registrytest.Files(t, files))
	pushed := reg.Push(t, "acme/plain", "1", plain)
	known := provider{}
	var encrypted registrytest.Layer
	encrypted, known["packet"] = registrytest.Encrypt(t, registrytest.Files(t, files), "packet")
	base := registrytest.Files(t, map[string]string{"models/old": "", "etc/x": "x"})
	top := registrytest.Files(t, map[string]string{"models/.wh.old": ""})
	reg.Push(t, "acme/secret", "1", registrytest.NewImage(base, encrypted, top))
	oci := "oci://" + reg.Host + "/acme/"

	for name, tt := range map[string]struct {
		address string
		strict  string
		keys    imagepull.SocketKeys
		code    int
		cause   string
	}{
		"plain":             {address: oci + "plain:1"},
		"pinned":            {address: oci + "plain@" + pushed, strict: "true"},
		"not pinned":        {address: oci + "plain:1", strict: "true", code: ExitIntegrity, cause: "MODEL_STRICT"},
		"encrypted":         {address: oci + "secret:1", keys: known.serve(t)},
		"key refused":       {address: oci + "secret:1", keys: provider{}.serve(t), code: ExitRefused, cause: "did not open"},
		"no provider":       {address: oci + "secret:1", code: ExitUnreachable, cause: "no confidential data hub"},
		"provider is gone":  {address: oci + "secret:1", keys: "/dev/null/s", code: ExitUnreachable, cause: "did not open"},
		"no such image":     {address: oci + "none:1", code: ExitSource, cause: "none:1"},
		"not a reference":   {address: "oci://A B", code: ExitUsage},
		"another's content": {address: oci + "plain@sha256:" + strings.Repeat("0", 64), code: ExitSource},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "KSERVE_OCI_INSECURE_REGISTRY", "true", "MODEL_STRICT", tt.strict)
			cfg := Config{Host: w.host(), Log: slog.New(slog.NewTextHandler(&w.log, nil))}
			if tt.keys != "" {
				cfg.Keys = tt.keys
			}
			err := Run(t.Context(), []string{tt.address, w.dest}, cfg)
			if tt.code == 0 {
				if err != nil {
					t.Fatal(err)
				}
				holds(t, w.dest, caikit)
				return
			}
			if code, line := Outcome(err); code != tt.code || !strings.Contains(line, tt.cause) {
				t.Errorf("%d, %q: %v", code, line, err)
			}
			if _, err := os.Stat(filepath.Join(w.dest, "config.yml")); err == nil {
				t.Error("a model is there")
			}
		})
	}
}

// TestStagedLayersNeedNoRoomAgain: what a run before has unpacked counts for the
// room that is asked for.
func TestStagedLayersNeedNoRoomAgain(t *testing.T) {
	testenv.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16m"); err != nil {
		testenv.Missing(t, "needs to mount a tmpfs: "+err.Error())
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	layer := filepath.Join(dir, ".oci-layers.part", "sha256-0")
	if err := errors.Join(os.MkdirAll(layer, 0o700), os.WriteFile(filepath.Join(layer, "w"), make([]byte, 6<<20), 0o600)); err != nil {
		t.Fatal(err)
	}
	for need, want := range map[int64]error{12 << 20: nil, 18 << 20: room.ErrSpace} {
		if err := preflight([]folder{{dir: dir, images: []source.Unpacker{image{}}, need: need}}); !errors.Is(err, want) {
			t.Errorf("%d bytes: %v", need, err)
		}
	}
	if err := preflight([]folder{{dir: dir, need: 12 << 20}}); !errors.Is(err, room.ErrSpace) {
		t.Error(err)
	}
}
