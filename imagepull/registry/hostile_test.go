package registry

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
	"github.com/sealpod/sealpod/podvm"
)

// smallRanging makes a blob of 100 KiB a large one, and several connections
// join at once.
var smallRanging = ranging{
	above: 16 << 10, first: 8 << 10, run: 16 << 10, part: 4 << 10, page: 1 << 10, pages: 20,
	join: func(_, _ time.Duration, _ int64) int { return 3 },
}

// client returns a client that loses no time.
func client(t testing.TB, change func(*Options)) *Client {
	t.Helper()
	opts := Options{Log: slog.New(slog.DiscardHandler), Backoff: time.Microsecond}
	if change != nil {
		change(&opts)
	}
	c, err := NewClient(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func open(t testing.TB, c *Client, image string, cred Credentials) (*Repository, error) {
	t.Helper()
	ref, err := ParseReference(image)
	if err != nil {
		t.Fatal(err)
	}
	return c.Open(t.Context(), Candidate{Reference: ref, Insecure: true}, cred)
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(b)
	return b
}

// flush sends what was written so far.
func flush(w http.ResponseWriter) { _ = http.NewResponseController(w).Flush() }

// begin writes part of b and promises all of it.
func begin(w http.ResponseWriter, b []byte, part int) {
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	_, _ = w.Write(b[:part])
	flush(w)
}

// bareConn takes the connection away from net/http.
func bareConn(w http.ResponseWriter, text string) {
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = buf.WriteString(text)
	_ = buf.Flush()
}

// attack is what a registry may do to a request for a blob or a manifest.
type attack struct {
	answer func(w http.ResponseWriter, r *http.Request, b []byte)
	is     error
	cause  string
}

// TestHostileRegistry does to the manifest and to a blob, small and large, what
// a registry may try. Each time there is a reason that says what to do, nothing
// is left behind, and the next request works.
func TestHostileRegistry(t *testing.T) {
	stall := func(_ http.ResponseWriter, r *http.Request, _ []byte) { <-r.Context().Done() }
	both := map[string]attack{
		"headers never come":       {stall, ErrUnavailable, "check the network"},
		"connection reset at once": {func(http.ResponseWriter, *http.Request, []byte) { panic(http.ErrAbortHandler) }, ErrUnavailable, "is unreachable: "},
		"not HTTP at all":          {func(w http.ResponseWriter, _ *http.Request, _ []byte) { bareConn(w, "SSH-2.0-x\r\n\r\n") }, ErrUnavailable, "is unreachable: "},
		"a million headers": {func(w http.ResponseWriter, _ *http.Request, _ []byte) {
			bareConn(w, "HTTP/1.1 200 OK\r\n"+strings.Repeat("A: b\r\n", 1e6)+"\r\n")
		}, ErrUnavailable, "is unreachable: "},
		"one endless header": {func(w http.ResponseWriter, _ *http.Request, _ []byte) {
			bareConn(w, "HTTP/1.1 200 OK\r\nA: "+strings.Repeat("b", 1<<20))
		}, ErrUnavailable, "is unreachable: "},
		"interim answers without end": {func(w http.ResponseWriter, _ *http.Request, _ []byte) {
			bareConn(w, strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 1e5))
		}, ErrUnavailable, "is unreachable: "},
		"two lengths": {func(w http.ResponseWriter, _ *http.Request, _ []byte) {
			bareConn(w, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab")
		}, ErrUnavailable, "is unreachable: "},
		"negative length": {func(w http.ResponseWriter, _ *http.Request, _ []byte) {
			bareConn(w, "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nab")
		}, ErrUnavailable, "is unreachable: "},
		"chunk of a length without end": {func(w http.ResponseWriter, _ *http.Request, _ []byte) {
			bareConn(w, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"+strings.Repeat("f", 100)+"\r\n")
		}, ErrUnavailable, "is unreachable: "},
		"a partial answer nobody asked for": {func(w http.ResponseWriter, _ *http.Request, _ []byte) { w.WriteHeader(http.StatusPartialContent) }, ErrUnavailable, ""},
		"redirects in a circle": {func(w http.ResponseWriter, r *http.Request, _ []byte) {
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
		}, errRedirect, "redirects in a loop"},
		"redirects to ever new places": {func(w http.ResponseWriter, r *http.Request, _ []byte) {
			http.Redirect(w, r, r.URL.Path+"?"+r.URL.RawQuery+"x", http.StatusTemporaryRedirect)
		}, errRedirect, "redirects in a loop"},
		"redirect to a file":           {to("file:///etc/passwd"), errScheme, "insecure place"},
		"redirect to another protocol": {to("gopher://x.test/"), errScheme, "insecure place"},
		"redirect with a password":     {to("http://a:b@x.test/"), errRedirect, "insecure place"},
		"redirect to cloud metadata":   {to("http://169.254.169.254/latest/meta-data/"), errLocal, "an address of this machine or its link"},
		"the same in IPv6":             {to("http://[fe80::1]/"), errLocal, "an address of this machine or its link"},
		"the same in disguise":         {to("http://[::ffff:169.254.169.254]/"), errLocal, "an address of this machine or its link"},
		"redirect to our own services": {to("http://localhost:8006/cdh/resource/a/b/c"), errLocal, "an address of this machine or its link"},
		"redirect to the same as zero": {to("http://0.0.0.0:8006/"), errLocal, "an address of this machine or its link"},
		"slow loris":                   {trickling, ErrUnavailable, "sends too little"},
		"unauthorized":                 {status(http.StatusUnauthorized), ErrUnauthorized, "Not authorized"},
		"forbidden":                    {status(http.StatusForbidden), ErrUnauthorized, "Not authorized"},
		"gone":                         {status(http.StatusNotFound), ErrNotFound, "not found in registry"},
		"too many requests":            {status(http.StatusTooManyRequests), ErrUnavailable, "429 Too Many Requests; log in, use a mirror or wait"},
		"error with an endless text": {func(w http.ResponseWriter, r *http.Request, _ []byte) {
			w.WriteHeader(http.StatusBadRequest)
			for r.Context().Err() == nil {
				_, _ = w.Write(make([]byte, 4096))
			}
		}, ErrUnavailable, "answered 400 Bad Request"},
	}
	run := func(t *testing.T, size int, do func(*testing.T, *Repository, Descriptor) error, attacks map[string]attack) {
		blob := randomBytes(size)
		conf := []byte(`{"os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`)
		manifest := []byte(fmt.Sprintf(`{"schemaVersion":2,"config":{"digest":%q,"size":%d},"layers":[]}`, registrytest.Digest(conf), len(conf)))
		for name, a := range attacks {
			t.Run(name, func(t *testing.T) {
				s := registrytest.New(t)
				s.PutBlob(t, "team/app", conf)
				d := Descriptor{Digest: s.PutBlob(t, "team/app", blob), Size: int64(len(blob))}
				s.PutManifest(t, "team/app", "1", typeOCIManifest, manifest)
				c := client(t, func(o *Options) { o.Stall = 100 * time.Millisecond })
				c.ranging = smallRanging
				repo, err := open(t, c, s.Host+"/team/app:1", Credentials{})
				if err != nil {
					t.Fatal(err)
				}
				s.Hook(func(w http.ResponseWriter, r *http.Request) bool {
					switch {
					case strings.HasSuffix(r.URL.Path, "/manifests/1"):
						a.answer(w, r, manifest)
					case strings.HasSuffix(r.URL.Path, d.Digest):
						a.answer(w, r, blob)
					default:
						return false
					}
					return true
				})
				err = do(t, repo, d)
				if !errors.Is(err, a.is) || !strings.Contains(podvm.Cause(err), a.cause) || !strings.Contains(podvm.Cause(err), s.Host+"/team/app") {
					t.Errorf("%v", err)
				}
				s.Hook(nil)
				if err := do(t, repo, d); err != nil {
					t.Errorf("afterwards: %v", err)
				}
				c.Close()
				s.WaitNoConns()
			})
		}
	}
	fetch := func(t *testing.T, repo *Repository, d Descriptor) error {
		body, err := repo.Blob(t.Context(), d)
		if err != nil {
			return err
		}
		defer body.Close()
		raw, err := io.ReadAll(body)
		if err != nil {
			return err
		}
		if registrytest.Digest(raw) != d.Digest {
			return fmt.Errorf("%w: of %s", podvm.Explain(ErrDigest, "digest mismatch of "+repo.ref.Name()), d.Digest)
		}
		return nil
	}
	resolve := func(t *testing.T, repo *Repository, _ Descriptor) error {
		_, err := repo.Resolve(t.Context())
		return err
	}
	t.Run("manifest", func(t *testing.T) { run(t, 10, resolve, both) })
	t.Run("small blob", func(t *testing.T) { run(t, 9<<10, fetch, both) })
	t.Run("large blob", func(t *testing.T) { run(t, 100<<10, fetch, both) })

	blobs := map[string]attack{
		"body stalls halfway": {func(w http.ResponseWriter, r *http.Request, b []byte) {
			begin(w, b, len(b)/2)
			<-r.Context().Done()
		}, ErrUnavailable, "sends too little"},
		"body ends halfway, each time": {func(w http.ResponseWriter, r *http.Request, b []byte) {
			begin(w, b, len(b)/2)
			panic(http.ErrAbortHandler)
		}, ErrTruncated, "truncated"},
		"longer than its descriptor": {func(w http.ResponseWriter, _ *http.Request, b []byte) { begin(w, append(bytes.Clone(b), 0), len(b)+1) }, ErrDigest, "digest mismatch"},
		"longer than its descriptor, in chunks": {func(w http.ResponseWriter, _ *http.Request, b []byte) {
			flush(w)
			_, _ = w.Write(append(bytes.Clone(b), 0))
		}, ErrDigest, "digest mismatch"},
		"shorter than its descriptor":            {func(w http.ResponseWriter, _ *http.Request, b []byte) { begin(w, b[1:], len(b)-1) }, ErrDigest, "digest mismatch"},
		"shorter than its descriptor, in chunks": {func(w http.ResponseWriter, _ *http.Request, b []byte) { flush(w); _, _ = w.Write(b[1:]) }, ErrTruncated, "truncated"},
		"empty":                                  {func(http.ResponseWriter, *http.Request, []byte) {}, ErrDigest, "digest mismatch"},
		"other bytes":                            {func(w http.ResponseWriter, _ *http.Request, b []byte) { _, _ = w.Write(make([]byte, len(b))) }, ErrDigest, "digest mismatch"},
	}
	t.Run("small blob itself", func(t *testing.T) { run(t, 9<<10, fetch, blobs) })
	t.Run("large blob itself", func(t *testing.T) { run(t, 100<<10, fetch, blobs) })

	manifests := map[string]attack{
		"without end": {func(w http.ResponseWriter, r *http.Request, _ []byte) {
			for r.Context().Err() == nil {
				_, _ = w.Write(make([]byte, 64<<10))
			}
		}, podvm.ErrTooLarge, "too large"},
		"said to be huge": {func(w http.ResponseWriter, _ *http.Request, _ []byte) {
			w.Header().Set("Content-Length", strconv.Itoa(maxManifest+1))
			flush(w)
		}, podvm.ErrTooLarge, "too large"},
		"digest header of something else": {func(w http.ResponseWriter, _ *http.Request, b []byte) {
			w.Header().Set("Docker-Content-Digest", digest1)
			_, _ = w.Write(b)
		}, ErrDigest, "digest mismatch"},
		"docker manifest of 2015": {func(w http.ResponseWriter, _ *http.Request, _ []byte) {
			_, _ = io.WriteString(w, `{"schemaVersion":1,"fsLayers":[]}`)
		}, ErrManifest, "schemaVersion 1: want 2"},
		"gzip nobody asked for": {func(w http.ResponseWriter, _ *http.Request, b []byte) {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			_, _ = z.Write(b)
			_ = z.Close()
		}, ErrManifest, "not valid JSON"},
		"a page for people": {func(w http.ResponseWriter, _ *http.Request, _ []byte) {
			_, _ = io.WriteString(w, "<html>Log in to the Wi-Fi</html>")
		}, ErrManifest, "not valid JSON"},
	}
	t.Run("manifest itself", func(t *testing.T) { run(t, 10, resolve, manifests) })
}

func status(code int) func(http.ResponseWriter, *http.Request, []byte) {
	return func(w http.ResponseWriter, _ *http.Request, _ []byte) { w.WriteHeader(code) }
}

func to(url string) func(http.ResponseWriter, *http.Request, []byte) {
	return func(w http.ResponseWriter, r *http.Request, _ []byte) {
		w.Header().Set("Location", url)
		w.WriteHeader(http.StatusTemporaryRedirect)
	}
}

// trickling sends one byte every few milliseconds.
func trickling(w http.ResponseWriter, r *http.Request, b []byte) {
	begin(w, b, 0)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for i := range b {
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
		if _, err := w.Write(b[i : i+1]); err != nil {
			return
		}
		flush(w)
	}
}

// TestManifestThatChangesAfterItsIndex: the index names a digest, and nothing
// else is taken in its place, however valid.
func TestManifestThatChangesAfterItsIndex(t *testing.T) {
	s := registrytest.New(t)
	index, entries := s.PushIndex(t, "a", "1", []string{"linux/" + runtime.GOARCH}, []*registrytest.Image{registrytest.NewImage()})
	other := registrytest.NewImage(registrytest.Files(t, map[string]string{"evil": "1"}))
	evil := s.Push(t, "a", "2", other)
	repo, err := open(t, client(t, nil), s.Host+"/a:1", Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	img, err := repo.Resolve(t.Context())
	if err != nil || img.TopDigest != index || img.Digest != entries[0] {
		t.Fatalf("%+v, %v", img, err)
	}
	s.Hook(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, entries[0]) {
			return false
		}
		r.URL.Path = strings.Replace(r.URL.Path, entries[0], evil, 1)
		return false
	})
	if _, err := repo.Resolve(t.Context()); !errors.Is(err, ErrDigest) {
		t.Errorf("%v", err)
	}
}

// TestCancelledRequestsEndAtOnce in whatever state they are.
func TestCancelledRequestsEndAtOnce(t *testing.T) {
	s := registrytest.New(t)
	blob := randomBytes(100 << 10)
	d := Descriptor{Digest: s.PutBlob(t, "a", blob), Size: int64(len(blob))}
	asked := make(chan struct{}, 8)
	s.Hook(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/v2/" {
			return false
		}
		asked <- struct{}{}
		if strings.Contains(r.URL.Path, "/blobs/") {
			begin(w, blob[:8<<10], 4<<10)
		}
		<-r.Context().Done()
		return true
	})
	c := client(t, nil)
	c.ranging = smallRanging
	repo, err := open(t, c, s.Host+"/a:1", Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	for name, do := range map[string]func(ctx context.Context) error{
		"manifest": func(ctx context.Context) error { _, err := repo.Resolve(ctx); return err },
		"blob": func(ctx context.Context) error {
			body, err := repo.Blob(ctx, d)
			if err != nil {
				return err
			}
			defer body.Close()
			_, err = io.Copy(io.Discard, body)
			return err
		},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-asked; cancel() }()
		if err := do(ctx); !errors.Is(err, context.Canceled) || !strings.Contains(podvm.Cause(err), "cancelled or ran out of time") {
			t.Errorf("%s: %v", name, err)
		}
	}
	c.Close()
	s.WaitNoConns()
}

// TestRetryAfterBeyondTheDeadline is told at once, with its reason.
func TestRetryAfterBeyondTheDeadline(t *testing.T) {
	s := registrytest.New(t)
	repo, err := open(t, client(t, nil), s.Host+"/a:1", Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	s.Hook(func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Retry-After", "40")
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err = repo.Resolve(ctx); !errors.Is(err, ErrUnavailable) || ctx.Err() != nil || s.Seen("/manifests/") != 1 {
		t.Errorf("%v after %d requests", err, s.Seen("/manifests/"))
	}
}
