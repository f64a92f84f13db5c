package registry

import (
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
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

// TestForeignLayer: the registry is asked first, then the https URLs of the
// descriptor, without credentials, and no redirect leads to plain HTTP.
func TestForeignLayer(t *testing.T) {
	blob := []byte("foreign layer")
	plain := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("asked over plain HTTP") }))
	t.Cleanup(plain.Close)
	other := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a := r.Header.Get("Authorization"); a != "" {
			t.Errorf("the URL was asked with %q", a)
		}
		switch r.URL.Path {
		case "/moved":
			http.Redirect(w, r, "/blob", http.StatusFound)
		case "/plain":
			http.Redirect(w, r, plain.URL, http.StatusFound)
		case "/blob":
			_, _ = w.Write(blob)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(other.Close)
	s := registrytest.NewTLS(t)
	s.Hook(func(w http.ResponseWriter, r *http.Request) bool {
		if u, p, _ := r.BasicAuth(); u == user && p == password {
			return false
		}
		w.Header().Set("WWW-Authenticate", "Basic")
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	c := client(t, func(o *Options) { o.Roots = []string{caOf(s.Server), caOf(other)} })
	ref, _ := ParseReference(s.Host + "/a:1")
	repo, err := c.Open(t.Context(), Candidate{Reference: ref}, alice)
	if err != nil {
		t.Fatal(err)
	}
	const foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
	for name, tt := range map[string]struct {
		mediaType string
		urls      []string
		err       error
	}{
		"OCI":                     {"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", []string{other.URL + "/blob"}, nil},
		"docker":                  {foreign, []string{other.URL + "/blob"}, nil},
		"only https URLs":         {foreign, []string{"http://plain.test/x", "%", "file:///x", "https://a:b@x.test/", plain.URL, other.URL + "/blob"}, nil},
		"first that works":        {foreign, []string{other.URL + "/gone", other.URL + "/blob"}, nil},
		"redirected":              {foreign, []string{other.URL + "/moved"}, nil},
		"redirected to http":      {foreign, []string{other.URL + "/plain"}, errRedirect},
		"nowhere":                 {foreign, []string{other.URL + "/gone"}, ErrNotFound},
		"no URLs":                 {foreign, nil, ErrNotFound},
		"too many URLs":           {foreign, append(slices.Repeat([]string{other.URL + "/gone"}, maxURLs), other.URL+"/blob"), ErrNotFound},
		"ordinary layer has none": {registrytest.GzipType, []string{other.URL + "/blob"}, ErrNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			d := Descriptor{MediaType: tt.mediaType, Digest: registrytest.Digest(blob), Size: int64(len(blob)), URLs: tt.urls}
			body, err := repo.Blob(t.Context(), d)
			if !errors.Is(err, tt.err) {
				t.Fatalf("%v, want %v", err, tt.err)
			}
			if err != nil {
				return
			}
			defer body.Close()
			if got, err := io.ReadAll(body); err != nil || string(got) != string(blob) {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	here := registrytest.Descriptor(foreign, blob)
	s.PutBlob(t, "a", blob)
	d := Descriptor{MediaType: foreign, Digest: here["digest"].(string), Size: int64(len(blob)), URLs: []string{"https://never.test/"}}
	body, err := repo.Blob(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	body.Close()
}

// TestWhatIsTriedAgain: what may pass is tried five times, the rest once.
func TestWhatIsTriedAgain(t *testing.T) {
	s := registrytest.New(t)
	repo := newRepository(t, s, "a:1")
	for code, tries := range map[int]int{
		408: maxTries, 429: maxTries, 500: maxTries, 502: maxTries, 503: maxTries, 504: maxTries,
		400: 1, 401: 1, 403: 1, 404: 1, 405: 1, 410: 1, 451: 1,
	} {
		s.Hook(func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(code)
			return true
		})
		before := s.Seen("/manifests/")
		if _, err := repo.Resolve(t.Context()); err == nil || s.Seen("/manifests/")-before != tries {
			t.Errorf("%d: %d tries, %v", code, s.Seen("/manifests/")-before, err)
		}
	}
}

// TestPeerThatOnlyTakesConnections never finishes TLS.
func TestPeerThatOnlyTakesConnections(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // connections nobody accepts are the kernel's
	c := client(t, func(o *Options) { o.Stall = 20 * time.Millisecond })
	ref, _ := ParseReference(l.Addr().String() + "/a:1")
	_, err = c.Open(t.Context(), Candidate{Reference: ref}, Credentials{})
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(podvm.Cause(err), "no answer in time; check the network and the proxy") {
		t.Errorf("%v", err)
	}
}

func TestUnreachableRegistriesAreToldApart(t *testing.T) {
	plain := registrytest.New(t)
	secure := registrytest.NewTLS(t)
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	gone := registrytest.New(t)
	gone.Close()
	for name, tt := range map[string]struct {
		host     string
		insecure bool
		cause    string
	}{
		"nobody listens":          {gone.Host, true, "registry " + gone.Host + " is unreachable: the connection was refused; check host and port"},
		"no such name":            {"registry.invalid", true, "registry registry.invalid is unreachable: its name does not resolve"},
		"plain, secure expected":  {plain.Host, false, "speaks plain HTTP; mark it insecure in the registry configuration"},
		"secure, plain expected":  {secure.Host, true, "answered 400 Bad Request; it is marked insecure, does it want HTTPS?"},
		"certificate of no trust": {secure.Host, false, "the certificate of registry " + secure.Host + " is not trusted; add its CA to extra_root_certificates"},
	} {
		t.Run(name, func(t *testing.T) {
			ref, _ := ParseReference(tt.host + "/team/a:1")
			repo, err := client(t, nil).Open(t.Context(), Candidate{Reference: ref, Insecure: tt.insecure}, Credentials{})
			if err == nil {
				_, err = repo.Resolve(t.Context())
			}
			if !errors.Is(err, ErrUnavailable) || !strings.Contains(podvm.Cause(err), tt.cause) || !strings.Contains(podvm.Cause(err), tt.host+"/team/a") {
				t.Errorf("%v", err)
			}
		})
	}
}
