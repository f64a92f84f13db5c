package registry

import (
	"crypto/sha256"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
)

// benchSize is large enough for several connections.
const benchSize = 192 << 20

// serveBench answers like a registry that has one blob.
func serveBench(blob []byte, send func(w http.ResponseWriter, r *http.Request)) http.Handler {
	if send == nil {
		send = func(w http.ResponseWriter, r *http.Request) { registrytest.ServeBlob(w, r, blob) }
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/blobs/") {
			send(w, r)
		}
	})
}

// connections is how many a blob has at most.
func connections(c *Client, n int) {
	join := c.ranging.join
	c.ranging.join = func(waited, passed time.Duration, bytes int64) int { return min(n-1, join(waited, passed, bytes)) }
}

// readBlob hashes the blob, as a pull does at least.
func readBlob(b *testing.B, c *Client, host string, insecure bool, d Descriptor) {
	ref, err := ParseReference(host + "/big:1")
	if err != nil {
		b.Fatal(err)
	}
	repo, err := c.Open(b.Context(), Candidate{Reference: ref, Insecure: insecure}, Credentials{})
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(d.Size)
	b.ReportAllocs()
	for b.Loop() {
		body, err := repo.Blob(b.Context(), d)
		if err != nil {
			b.Fatal(err)
		}
		hashAll(b, body)
		_ = body.Close()
	}
}

func hashAll(b *testing.B, r io.Reader) {
	if _, err := io.CopyBuffer(struct{ io.Writer }{sha256.New()}, r, make([]byte, 256<<10)); err != nil {
		b.Fatal(err)
	}
}

func rawGet(b *testing.B, client *http.Client, url string) {
	b.SetBytes(benchSize)
	b.ReportAllocs()
	for b.Loop() {
		resp, err := client.Get(url)
		if err != nil {
			b.Fatal(err)
		}
		hashAll(b, resp.Body)
		_ = resp.Body.Close()
	}
}

// BenchmarkBlob compares http.Get with a blob over one and over four
// connections, from a server in this process and from Debian's registry.
func BenchmarkBlob(b *testing.B) {
	blob := randomBytes(benchSize)
	d := Descriptor{Digest: registrytest.Digest(blob), Size: benchSize}
	all := func(b *testing.B, host, url string, raw *http.Client, insecure bool, roots ...string) {
		b.Run("http.Get", func(b *testing.B) { rawGet(b, raw, url) })
		for name, n := range map[string]int{"1": 1, "4": maxConnsPerBlob} {
			b.Run(name, func(b *testing.B) {
				c := client(b, func(o *Options) { o.Roots = roots })
				connections(c, n)
				readBlob(b, c, host, insecure, d)
			})
		}
		raw.CloseIdleConnections()
	}
	b.Run("plain", func(b *testing.B) {
		s := httptest.NewServer(serveBench(blob, nil))
		defer s.Close()
		all(b, s.Listener.Addr().String(), s.URL+"/v2/big/blobs/"+d.Digest, s.Client(), true)
	})
	b.Run("TLS", func(b *testing.B) {
		s := httptest.NewTLSServer(serveBench(blob, nil))
		defer s.Close()
		all(b, s.Listener.Addr().String(), s.URL+"/v2/big/blobs/"+d.Digest, s.Client(), false, caOf(s))
	})
	b.Run("debian", func(b *testing.B) {
		host := registrytest.Debian(b)
		upload(b, host, blob)
		all(b, host, "http://"+host+"/v2/big/blobs/"+d.Digest, &http.Client{Transport: &http.Transport{}}, true)
	})
}

// BenchmarkFarBlob reads from a registry that is so far away and gives each
// connection so many MB/s.
func BenchmarkFarBlob(b *testing.B) {
	blob := randomBytes(benchSize)
	d := Descriptor{Digest: registrytest.Digest(blob), Size: benchSize}
	for name, far := range map[string]struct {
		trip time.Duration
		rate int
	}{"5ms-100MB": {5 * time.Millisecond, 100}, "20ms-50MB": {20 * time.Millisecond, 50}, "100ms-20MB": {100 * time.Millisecond, 20}} {
		s := httptest.NewServer(serveBench(blob, func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(far.trip)
			registrytest.ServeBlob(&slowWriter{ResponseWriter: w, start: time.Now(), rate: far.rate << 20}, r, blob)
		}))
		for connName, n := range map[string]int{"1": 1, "4": maxConnsPerBlob} {
			b.Run(name+"/"+connName, func(b *testing.B) {
				c := client(b, nil)
				connections(c, n)
				readBlob(b, c, s.Listener.Addr().String(), true, d)
			})
		}
		s.Close()
	}
}

// slowWriter sends rate bytes per second.
type slowWriter struct {
	http.ResponseWriter
	start time.Time
	sent  int
	rate  int
}

func (w *slowWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.sent += n
	time.Sleep(time.Until(w.start.Add(time.Duration(w.sent) * time.Second / time.Duration(w.rate))))
	return n, err
}
