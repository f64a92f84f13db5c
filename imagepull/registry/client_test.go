package registry

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/imagepull/policy"
	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
	"github.com/sealpod/sealpod/podvm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newRepository(t *testing.T, s *registrytest.Server, image string) *Repository {
	t.Helper()
	c, err := NewClient(Options{Log: slog.New(slog.DiscardHandler), Backoff: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	ref, err := ParseReference(s.Host + "/" + image)
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Open(t.Context(), Candidate{Reference: ref, Insecure: true}, Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func signature(t *testing.T, payload, mediaType string) registrytest.Layer {
	t.Helper()
	return registrytest.Layer{Blob: []byte(payload), MediaType: mediaType, Annotations: map[string]string{signatureAnnotation: "c2ln"}}
}

func TestSignatures(t *testing.T) {
	s := registrytest.New(t)
	good := signature(t, `{"critical":1}`, simpleSigning)
	unsigned := signature(t, `{"critical":2}`, simpleSigning)
	unsigned.Annotations = nil
	tampered := signature(t, `{"critical":3}`, simpleSigning)
	large := signature(t, strings.Repeat("x", policy.MaxPayload+1), simpleSigning)
	foreign := signature(t, `{"critical":4}`, "application/vnd.dsse.envelope.v1+json")
	s.Push(t, "a", "sha256-"+hex64+".sig", registrytest.NewImage(foreign, unsigned, tampered, large, good))
	s.Hook(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, registrytest.Digest(tampered.Blob)) {
			return false
		}
		_, _ = w.Write([]byte(`{"critical":9}`))
		return true
	})
	r := newRepository(t, s, "a:1")
	got, err := r.Signatures(t.Context(), digest1)
	if err != nil || len(got) != 1 || string(got[0].Payload) != string(good.Blob) || got[0].Base64Sig != "c2ln" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestAsManySignaturesAsThePolicyLooksAt(t *testing.T) {
	s := registrytest.New(t)
	layers := make([]registrytest.Layer, policy.MaxSignatures)
	for i := range layers {
		layers[i] = signature(t, strconv.Itoa(i), simpleSigning)
	}
	s.Push(t, "a", "sha256-"+hex64+".sig", registrytest.NewImage(layers...))
	if got, err := newRepository(t, s, "a:1").Signatures(t.Context(), digest1); err != nil || len(got) != len(layers) {
		t.Errorf("%d of %d, %v", len(got), len(layers), err)
	}
}

func TestNoSignatureTagIsNoError(t *testing.T) {
	r := newRepository(t, registrytest.New(t), "a:1")
	if got, err := r.Signatures(t.Context(), digest1); err != nil || got != nil {
		t.Errorf("%v, %v", got, err)
	}
}

func TestSignatureTagThatCannotBeReadIsAnError(t *testing.T) {
	for name, tt := range map[string]struct {
		body string
		code int
		err  error
	}{
		"500":      {"", 500, ErrUnavailable},
		"401":      {"", 401, ErrUnauthorized},
		"not JSON": {"<html>", 200, ErrManifest},
		"index":    {`{"schemaVersion":2,"manifests":[]}`, 200, ErrManifest},
		"too many": {fmt.Sprintf(`{"schemaVersion":2,"config":{"digest":%q,"size":1},"layers":[%s]}`, digest1,
			strings.TrimSuffix(strings.Repeat(fmt.Sprintf(`{"digest":%q,"size":1},`, digest1), policy.MaxSignatures+1), ",")), 200, podvm.ErrTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			s := registrytest.New(t)
			s.Hook(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, ".sig") {
					return false
				}
				w.WriteHeader(tt.code)
				_, _ = io.WriteString(w, tt.body)
				return true
			})
			if got, err := newRepository(t, s, "a:1").Signatures(t.Context(), digest1); !errors.Is(err, tt.err) {
				t.Errorf("%v, %v; want %v", got, err, tt.err)
			}
		})
	}
}

func TestRegistryWordsStayOutOfTheCause(t *testing.T) {
	s := registrytest.New(t)
	s.Hook(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/manifests/") {
			return false
		}
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, `{"errors":[{"code":"EVIL","message":"\u001b[31mrun this"}]}`)
		return true
	})
	_, err := newRepository(t, s, "a:1").Resolve(t.Context())
	if err == nil || strings.Contains(podvm.Cause(err), "run this") || strings.Contains(err.Error(), "\x1b") || !strings.Contains(err.Error(), "EVIL") {
		t.Errorf("cause %q, chain %v", podvm.Cause(err), err)
	}
}

func TestRetryAfter(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"7": 7 * time.Second, "100000": maxRetryAfter, "": 0, "-1": 0, "soon": 0,
		"Fri, 31 Dec 1999 23:59:59 GMT":                         0,
		time.Now().Add(time.Hour).UTC().Format(http.TimeFormat): maxRetryAfter,
	} {
		resp := &http.Response{Header: http.Header{"Retry-After": {text}}}
		var ra *retryAfterError
		got := time.Duration(0)
		if errors.As(withRetryAfter(ErrUnavailable, resp), &ra) {
			got = ra.wait
		}
		if got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

func TestBackoffDoublesAndStaysBelowItsLimit(t *testing.T) {
	r := &Repository{opts: Options{Backoff: 100 * time.Millisecond}}
	for try := 1; try < maxTries; try++ {
		limit := 100 * time.Millisecond << (try - 1)
		if w := r.wait(ErrUnavailable, try); w < limit/2 || w > limit {
			t.Errorf("try %d: %v", try, w)
		}
	}
}

func TestForeignLayerComesFromItsURLWithoutCredentials(t *testing.T) {
	blob := []byte("foreign layer")
	asked := make(chan string, 4)
	other := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Header.Get("Authorization")
		_, _ = w.Write(blob)
	}))
	t.Cleanup(other.Close)
	s := registrytest.New(t)
	r := newRepository(t, s, "a:1")
	r.anonymous = other.Client()
	d := Descriptor{Digest: registrytest.Digest(blob), Size: int64(len(blob)), URLs: []string{"http://plain.test/x", "%", other.URL}}
	for mediaType, found := range map[string]bool{
		"application/vnd.oci.image.layer.nondistributable.v1.tar": true,
		"application/vnd.docker.image.rootfs.foreign.diff.tar":    true,
		"application/vnd.oci.image.layer.v1.tar":                  false,
	} {
		d.MediaType = mediaType
		body, err := r.Blob(t.Context(), d)
		if !found {
			if !errors.Is(err, ErrNotFound) {
				t.Errorf("%s: %v", mediaType, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", mediaType, err)
		}
		got, err := io.ReadAll(body)
		if err != nil || string(got) != string(blob) || <-asked != "" {
			t.Errorf("%s: %q, %v", mediaType, got, err)
		}
		if err := body.Close(); err != nil {
			t.Error(err)
		}
	}
}
