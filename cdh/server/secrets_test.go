package server

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sealpod/sealpod/api/datahub"
	"github.com/sealpod/sealpod/cdh/resource"
	"github.com/sealpod/sealpod/cdh/secret/seal"
	"github.com/sealpod/sealpod/podvm"
)

const signingKeyURI = "kbs:///default/signing/key"

// sealSecret seals the resource at uri by a key the KBS gets to know.
func (w *world) sealSecret(t testing.TB, uri string) string {
	t.Helper()
	private, public, err := seal.NewKey("test")
	if err != nil {
		t.Fatal(err)
	}
	key, err := seal.ParseKey(private)
	if err != nil {
		t.Fatal(err)
	}
	w.kbs.Set("default/signing/key", public)
	sealed, err := seal.Vault{Name: uri, Provider: "kbs"}.Seal(seal.Signer{Key: key, KeyID: signingKeyURI})
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

func (w *world) unseal(ctx context.Context, sealed string) (string, *status.Status) {
	var got []byte
	err := w.conn.Do(ctx, func(c *ttrpc.Client) error {
		out, err := datahub.NewSealedSecretServiceClient(c).UnsealSecret(ctx, &datahub.UnsealSecretInput{Secret: []byte(sealed)})
		got = out.GetPlaintext()
		return err
	})
	return string(got), status.Convert(err)
}

func TestUnsealSecret(t *testing.T) {
	w := newWorld(t)
	sealed := w.sealSecret(t, "kbs:///default/key/1")
	if got, st := w.unseal(t.Context(), sealed); got != "secret one" {
		t.Fatal(got, st)
	}
	_, st := w.unseal(t.Context(), sealed+"\n")
	if st.Code() != codes.Internal || !strings.HasPrefix(st.Message(), textUnseal+": ") {
		t.Error(st)
	}
	_, st = w.unseal(t.Context(), w.sealSecret(t, "kbs:///default/key/2"))
	wantFault(t, st, textUnseal+": no such resource: default/key/2")
	w.kbs.Set("default/key/1", make([]byte, 4<<20))
	_, st = w.unseal(t.Context(), w.sealSecret(t, "kbs:///default/key/1"))
	wantFault(t, st, textUnseal+": the content is larger than 4 MiB")
}

func TestSkippedVerificationTakesAForeignSignature(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.SkipSealedSecretVerification = true })
	parts := strings.Split(w.sealSecret(t, "kbs:///default/key/1"), ".")
	parts[1], parts[3] = "fakejwsheader", "fakesignature"
	if got, st := w.unseal(t.Context(), strings.Join(parts, ".")); got != "secret one" {
		t.Fatal(got, st)
	}
}

func TestOneBadSecretAmong64DisturbsNoOther(t *testing.T) {
	w := newWorld(t)
	good := w.sealSecret(t, "kbs:///default/key/1")
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			if i == 31 {
				if _, st := w.unseal(t.Context(), good[:len(good)-4]); st.Code() != codes.Internal {
					t.Errorf("the bad one: %v", st)
				}
				return
			}
			if got, st := w.unseal(t.Context(), good); got != "secret one" {
				t.Errorf("%d: %q, %v", i, got, st)
			}
		})
	}
	wg.Wait()
}

func TestSourcesOfVolumeKeys(t *testing.T) {
	w := newWorld(t)
	dir := w.host.Path("/etc/keys")
	write(t, filepath.Join(dir, "plain"), "file key\n")
	t.Chdir(dir)
	if err := os.Symlink("plain", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for source, want := range map[string]string{
		"kbs:///default/key/1":                  "secret one",
		w.sealSecret(t, "kbs:///default/key/1"): "secret one",
		"file:///etc/keys/plain":                "file key\n", // as it is
		"file:///etc/keys/link":                 "file key\n",
		"file://plain":                          "file key\n", // relative to where the data hub runs
	} {
		got, err := w.hub.Key(t.Context(), source)
		if err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", source, []byte(got), err)
		}
	}
	for source, want := range map[string]struct {
		cause string
		err   error
	}{
		"":                      {"neither a sealed secret nor", nil},
		"/etc/keys/plain":       {"neither a sealed secret nor", nil},
		"sealed://x":            {"neither a sealed secret nor", nil},
		"kbs:///default/key/2":  {"no such resource", resource.ErrNotFound},
		"sealed.a.b.c":          {"", nil},
		"file:///etc/keys/none": {"cannot be read", os.ErrNotExist},
		"file:///etc/keys":      {"cannot be read", nil},
		"file:///etc/keys/pipe": {"cannot be read", nil},
	} {
		got, err := w.hub.Key(t.Context(), source)
		if err == nil || got != nil || !strings.Contains(podvm.Cause(err), want.cause) || podvm.Cause(err) == "" || want.err != nil && !errors.Is(err, want.err) {
			t.Errorf("%s: %q, %v", source, podvm.Cause(err), err)
		}
	}
}

func TestSecureMountSaysWhatIsWrong(t *testing.T) {
	w := newWorld(t)
	for name, tt := range map[string]struct {
		req  *datahub.SecureMountRequest
		want string
	}{
		"nothing":       {&datahub.SecureMountRequest{}, "mount_point"},
		"unknown type":  {&datahub.SecureMountRequest{VolumeType: "tape", MountPoint: "/mnt"}, "block-device or alibaba-cloud-oss"},
		"half a volume": {&datahub.SecureMountRequest{VolumeType: "block-device", MountPoint: "/mnt", Options: map[string]string{"sourceType": "empty"}}, ""},
	} {
		st := w.call(func(c *ttrpc.Client) error {
			_, err := datahub.NewSecureMountServiceClient(c).SecureMount(t.Context(), tt.req)
			return err
		})
		if st.Code() != codes.Internal || !strings.HasPrefix(st.Message(), textMount+": ") || !strings.Contains(st.Message(), tt.want) {
			t.Errorf("%s: %v", name, st)
		}
	}
}
