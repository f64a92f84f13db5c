package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	aa "github.com/sealpod/sealpod/api/attestationagent"
	"github.com/sealpod/sealpod/api/datahub"
	"github.com/sealpod/sealpod/cmd/internal/cli"
)

// fakeHub and fakeAgent answer by what they are asked.
type fakeHub struct {
	entered chan struct{} // told of calls that wait for their caller to give up

	mu   sync.Mutex
	seen []string
}

func (f *fakeHub) saw(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen = append(f.seen, fmt.Sprintf(format, args...))
}

func (f *fakeHub) GetResource(ctx context.Context, in *datahub.GetResourceRequest) (*datahub.GetResourceResponse, error) {
	switch uri := in.GetResourcePath(); uri {
	case "wait":
		f.entered <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	case "hostile":
		return nil, status.Error(codes.Internal, "a\r\n\x1b[2Jb"+strings.Repeat("y", 8192))
	case "fail":
		return nil, status.Error(codes.Internal, "no")
	case "big":
		return &datahub.GetResourceResponse{Resource: make([]byte, 4<<20-1024)}, nil
	default:
		return &datahub.GetResourceResponse{Resource: []byte(uri)}, nil
	}
}

func (f *fakeHub) UnsealSecret(_ context.Context, in *datahub.UnsealSecretInput) (*datahub.UnsealSecretOutput, error) {
	f.saw("unseal %d bytes, %.20q", len(in.GetSecret()), in.GetSecret())
	return &datahub.UnsealSecretOutput{Plaintext: []byte("plain")}, nil
}

func (f *fakeHub) SecureMount(_ context.Context, in *datahub.SecureMountRequest) (*datahub.SecureMountResponse, error) {
	f.saw("mount %s %v %q %s", in.GetVolumeType(), in.GetOptions(), in.GetFlags(), in.GetMountPoint())
	return &datahub.SecureMountResponse{}, nil
}

func (f *fakeHub) PullImage(ctx context.Context, in *datahub.ImagePullRequest) (*datahub.ImagePullResponse, error) {
	_, limited := ctx.Deadline()
	f.saw("pull %s %s, with a deadline: %v", in.GetImageUrl(), in.GetBundlePath(), limited)
	return &datahub.ImagePullResponse{ManifestDigest: "sha256:abc\x1b[2J"}, nil
}

// start serves f and returns its address.
func (f *fakeHub) start(t *testing.T) string {
	return "unix://" + serveTTRPC(t, filepath.Join(t.TempDir(), "cdh.sock"), func(s *ttrpc.Server) {
		datahub.RegisterGetResourceServiceService(s, f)
		datahub.RegisterSealedSecretServiceService(s, f)
		datahub.RegisterSecureMountServiceService(s, f)
		datahub.RegisterImagePullServiceService(s, f)
	})
}

// runSealctl runs one command line.
func runSealctl(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, errOut bytes.Buffer
	root := rootCommand()
	root.SetOut(&out)
	code = cli.Run(ctx, root, "sealctl", args, &errOut)
	return code, out.String(), errOut.String()
}

func cdh(ctx context.Context, at string, args ...string) (code int, stdout, stderr string) {
	return runSealctl(ctx, append([]string{"client", "cdh", "-s", at}, args...)...)
}

func TestClientRequests(t *testing.T) {
	f := &fakeHub{}
	at, dir := f.start(t), t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	sealed := file("sealed", "sealed.a.b.c\n")
	volume := file("volume", `{"volume_type":"block-device","options":{"k":"v"},"flags":["f"],"mount_point":"/m","x":1}`)
	full := file("full", strings.Repeat("x", 4<<20-64))
	for _, tt := range []struct{ args, out, seen string }{
		{"unseal-secret -s " + sealed, "cGxhaW4=\n", `unseal 13 bytes, "sealed.a.b.c\n"`},
		{"unseal-secret -s " + full, "cGxhaW4=\n", `unseal 4194240 bytes, "xxxxxxxxxxxxxxxxxxxx"`},
		{"--json unseal-secret -s " + sealed, `{"plaintext":"cGxhaW4="}` + "\n", `unseal 13 bytes, "sealed.a.b.c\n"`},
		{"secure-mount -s " + volume, "mount succeeded!\n", `mount block-device map[k:v] ["f"] /m`},
		{"secure-mount --json -s " + volume, "{}\n", `mount block-device map[k:v] ["f"] /m`},
		{"pull-image -i image -b /b", "Image pulled: sha256:abc [2J\n", "pull image /b, with a deadline: true"},
		{"--json pull-image -i image -b /b", `{"manifest_digest":"sha256:abc\u001b[2J"}` + "\n", "pull image /b, with a deadline: true"},
	} {
		f.seen = nil
		code, out, errOut := cdh(t.Context(), at, strings.Fields(tt.args)...)
		if code != 0 || out != tt.out || strings.Join(f.seen, "|") != tt.seen {
			t.Errorf("%s: %d %q %q, seen %q", tt.args, code, out, errOut, f.seen)
		}
	}
}

func TestClientSizes(t *testing.T) {
	at, dir := (&fakeHub{}).start(t), t.TempDir()
	if code, out, errOut := cdh(t.Context(), at, "get-resource", "-r", "big"); code != 0 || base64.StdEncoding.DecodedLen(len(out)) < 4<<20-1024 {
		t.Errorf("%d, %d bytes, %q", code, len(out), errOut)
	}
	for size, says := range map[int64]string{4 << 20: "(ResourceExhausted)", 4<<20 + 1: "too large"} { // with its frame the first is too long
		path := filepath.Join(dir, "f")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		if code, _, errOut := cdh(t.Context(), at, "unseal-secret", "-s", path); code != cli.ExitPanic || !strings.Contains(errOut, says) {
			t.Errorf("%d bytes: %d %q", size, code, errOut)
		}
	}
}

func TestClientPrintsNoControlCharactersOfErrors(t *testing.T) {
	code, _, errOut := cdh(t.Context(), (&fakeHub{}).start(t), "get-resource", "-r", "hostile")
	if code != cli.ExitPanic || strings.ContainsAny(errOut, "\r\x1b") || len(errOut) > 5000 {
		t.Errorf("%d %d bytes %.100q", code, len(errOut), errOut)
	}
}

func TestClientGivesUp(t *testing.T) {
	f := &fakeHub{entered: make(chan struct{}, 2)}
	at := f.start(t)
	code, _, errOut := cdh(t.Context(), at, "-t", "1", "get-resource", "-r", "wait")
	if code != cli.ExitPanic || !strings.Contains(errOut, "no answer from confidential-data-hub within 1s\nhint: --timeout") {
		t.Errorf("%d %q", code, errOut)
	}
	<-f.entered
	ctx, interrupt := context.WithCancel(t.Context())
	go func() {
		<-f.entered
		interrupt()
	}()
	if code, _, errOut := cdh(ctx, at, "get-resource", "-r", "wait"); code != cli.ExitInterrupted {
		t.Errorf("%d %q", code, errOut)
	}
}

func TestClientOfSomethingElse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, func(ctx context.Context) error {
		go func() {
			<-ctx.Done()
			l.Close()
		}()
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return nil
			} else if err != nil {
				return err
			}
			_, _ = c.Write([]byte("220 mail.example ESMTP\r\n"))
			c.Close()
		}
	})
	if code, _, errOut := cdh(t.Context(), "unix://"+path, "get-resource", "-r", "x"); code != cli.ExitPanic || !strings.Contains(errOut, "is this not its socket?") {
		t.Errorf("%d %q", code, errOut)
	}
	if err := os.WriteFile(path+".txt", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, errOut := cdh(t.Context(), "unix://"+path+".txt", "get-resource", "-r", "x"); code != cli.ExitPanic || !strings.Contains(errOut, "without its confidential-data-hub") {
		t.Errorf("%d %q", code, errOut)
	}
}

func TestConcurrentClientsWithOneFailing(t *testing.T) {
	at := (&fakeHub{}).start(t)
	var all sync.WaitGroup
	for i := range 64 {
		all.Go(func() {
			uri, want := fmt.Sprint("uri ", i), 0
			if i == 7 {
				uri, want = "fail", cli.ExitPanic
			}
			code, out, errOut := cdh(context.Background(), at, "get-resource", "-r", uri)
			if code != want || want == 0 && out != base64.StdEncoding.EncodeToString([]byte(uri))+"\n" {
				t.Errorf("%s: %d %q %q", uri, code, out, errOut)
			}
		})
	}
	all.Wait()
}

func TestExtendedSaysWhatUpstreamSays(t *testing.T) {
	for r, want := range map[aa.RuntimeMeasurementResult]string{
		aa.RuntimeMeasurementResult_OK:            "Extended.",
		aa.RuntimeMeasurementResult_NOT_SUPPORTED: "Current platform does not support runtime measurement.",
		aa.RuntimeMeasurementResult_NOT_ENABLED:   "Runtime measurement is not enabled in Attestation Agent configuration.",
	} {
		if got, err := extended(r); got != want || err != nil {
			t.Errorf("%v: %q, %v", r, got, err)
		}
	}
	if _, err := extended(7); err == nil {
		t.Error("a result that is not known")
	}
}
