package httpsrc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/source/settings"
	"github.com/sealpod/sealpod/podvm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// text is the object of most tests.
var text = strings.Repeat("0123456789", 30_000)

func serve(t testing.TB, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.Start()
	t.Cleanup(s.Close)
	return s
}

// client has short waits and an environment of these variables.
func client(t testing.TB, change func(*Config), vars ...string) *Client {
	t.Helper()
	env, err := settings.Load(podvm.Host{LookupEnv: func(name string) (string, bool) {
		for i := 0; i+1 < len(vars); i += 2 {
			if vars[i] == name {
				return vars[i+1], true
			}
		}
		return "", false
	}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	env.Backoff = time.Millisecond
	cfg := Config{Env: env, Name: "the store"}
	if change != nil {
		change(&cfg)
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// fetch reads a range as its user does, to the end.
func fetch(ctx context.Context, c *Client, r Request, off, n, size int64) (string, error) {
	b, err := c.Open(ctx, r, off, n, size)
	if err != nil {
		return "", err
	}
	defer b.Close()
	out, err := io.ReadAll(b)
	return string(out), err
}

// content is an honest server of text with an entity tag.
func content(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Etag", `"v1"`)
	http.ServeContent(w, r, "object", time.Time{}, strings.NewReader(text))
}

// raw answers with these headers and this body, and then breaks the connection.
func raw(status int, header map[string]string, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for k, v := range header {
			w.Header().Set(k, v)
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

func TestHostileAnswersToARange(t *testing.T) {
	// Asked for is [10, 20) of an object of 300,000 bytes and version "v1".
	for name, tt := range map[string]struct {
		answer http.HandlerFunc
		is     error
	}{
		"the whole object":     {raw(200, map[string]string{"Content-Length": "300000"}, text), source.ErrNoRanges},
		"no Content-Range":     {raw(206, map[string]string{"Content-Length": "10"}, text[:10]), source.ErrUnreachable},
		"of another place":     {raw(206, map[string]string{"Content-Range": "bytes 0-9/300000"}, text[:10]), source.ErrUnreachable},
		"longer":               {raw(206, map[string]string{"Content-Range": "bytes 10-20/300000"}, text[10:21]), source.ErrUnreachable},
		"another size":         {raw(206, map[string]string{"Content-Range": "bytes 10-19/300001"}, text[10:20]), source.ErrChanged},
		"a size below the end": {raw(206, map[string]string{"Content-Range": "bytes 10-19/15"}, text[10:20]), source.ErrUnreachable},
		"two lengths":          {raw(206, map[string]string{"Content-Range": "bytes 10-19/300000", "Content-Length": "9"}, text[10:19]), source.ErrUnreachable},
		"negative":             {raw(206, map[string]string{"Content-Range": "bytes -10-19/300000"}, text[10:20]), source.ErrUnreachable},
		"overflow":             {raw(206, map[string]string{"Content-Range": "bytes 10-99999999999999999999/*"}, text[10:20]), source.ErrUnreachable},
		"another entity tag":   {raw(206, map[string]string{"Content-Range": "bytes 10-19/300000", "Etag": `"v2"`}, text[10:20]), source.ErrChanged},
		"more in chunks":       {raw(206, map[string]string{"Content-Range": "bytes 10-19/300000", "Etag": `"v1"`}, text[10:40]), source.ErrUnreachable},
		"412":                  {raw(412, nil, ""), source.ErrChanged},
		"416":                  {raw(416, nil, ""), source.ErrChanged},
		"404":                  {raw(404, nil, ""), source.ErrNotFound},
		"401":                  {raw(401, nil, ""), source.ErrRefused},
		"403":                  {raw(403, nil, ""), source.ErrRefused},
		"400":                  {raw(400, nil, ""), source.ErrUnreachable},
		"503":                  {raw(503, nil, ""), source.ErrUnreachable},
		"204":                  {raw(204, nil, ""), source.ErrUnreachable},
		"a redirect":           {raw(302, map[string]string{"Location": "http://127.0.0.1:1/"}, ""), source.ErrUnreachable},
		"endless headers":      {raw(206, map[string]string{"X": strings.Repeat("x", 128<<10)}, ""), source.ErrUnreachable},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, tt.answer)
			got, err := fetch(t.Context(), client(t, nil), Request{URL: s.URL, Version: `"v1"`}, 10, 10, int64(len(text)))
			if !errors.Is(err, tt.is) || podvm.Cause(err) == "" {
				t.Errorf("%d bytes, %v (%s)", len(got), err, podvm.Cause(err))
			}
		})
	}
}

func TestBodiesCutShortAreResumedWhereTheyEnded(t *testing.T) {
	var asked []string
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Header.Get("Range")+" "+r.Header.Get("If-Match"))
		if len(asked)%2 == 1 { // of each two, one breaks
			w = &breaking{ResponseWriter: w, left: 50_000}
		}
		content(w, r)
	})
	// A break for each 50 KB is more than three in a row without a MiB between.
	got, err := fetch(t.Context(), client(t, func(c *Config) { c.Attempts = 4 }), Request{URL: s.URL}, 0, -1, -1)
	if err != nil || got != text {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if want := []string{" ", `bytes=50000-299999 "v1"`}; fmt.Sprint(asked) != fmt.Sprint(want) {
		t.Errorf("asked for %q", asked)
	}
	asked = nil
	got, err = fetch(t.Context(), client(t, nil), Request{URL: s.URL, Version: `"v1"`}, 1000, 200_000, 300_000)
	if err != nil || got != text[1000:201_000] {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if want := []string{`bytes=1000-200999 "v1"`, `bytes=51000-200999 "v1"`}; fmt.Sprint(asked) != fmt.Sprint(want) {
		t.Errorf("asked for %q", asked)
	}
}

// breaking ends the connection after some bytes.
type breaking struct {
	http.ResponseWriter
	left int
}

func (b *breaking) Write(p []byte) (int, error) {
	if len(p) >= b.left {
		_, _ = b.ResponseWriter.Write(p[:b.left])
		_ = http.NewResponseController(b.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	b.left -= len(p)
	return b.ResponseWriter.Write(p)
}

func TestConnectionsThatKeepBreakingAreGivenUp(t *testing.T) {
	var requests atomic.Int32
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		content(&breaking{ResponseWriter: w, left: 100}, r)
	})
	got, err := fetch(t.Context(), client(t, nil), Request{URL: s.URL}, 0, -1, 300_000)
	if !errors.Is(err, source.ErrUnreachable) || requests.Load() != 3 || !strings.Contains(podvm.Cause(err), "the connection broke") {
		t.Errorf("%d bytes in %d requests, %v", len(got), requests.Load(), err)
	}
}

func TestObjectThatChangesBetweenConnections(t *testing.T) {
	for name, second := range map[string]http.HandlerFunc{
		"precondition": raw(412, nil, ""),
		"another tag":  raw(206, map[string]string{"Etag": `"v2"`, "Content-Range": "bytes 100-299999/300000"}, text[100:]),
		"another size": raw(206, map[string]string{"Content-Range": "bytes 100-299999/400000"}, text[100:]),
		"whole":        raw(200, map[string]string{"Content-Length": "200000", "Etag": `"v1"`}, text[:200_000]),
	} {
		first := true
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if first {
				first = false
				content(&breaking{ResponseWriter: w, left: 100}, r)
			}
			second(w, r)
		})
		if got, err := fetch(t.Context(), client(t, nil), Request{URL: s.URL}, 0, -1, -1); !errors.Is(err, source.ErrChanged) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}

func TestServerWithoutRangesBeginsAnew(t *testing.T) {
	first := true
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		r.Header.Del("Range")
		if first {
			first = false
			content(&breaking{ResponseWriter: w, left: 5000}, r)
		}
		content(w, r)
	})
	got, err := fetch(t.Context(), client(t, nil), Request{URL: s.URL}, 0, -1, 300_000)
	if err != nil || got != text {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestEndThatMayBeABreak(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\npart of it")
		_ = conn.Close()
	})
	if got, err := fetch(t.Context(), client(t, nil), Request{URL: s.URL}, 0, -1, -1); !errors.Is(err, source.ErrUnreachable) {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := fetch(t.Context(), client(t, nil), Request{URL: s.URL}, 0, -1, 10); err != nil || got != "part of it" {
		t.Errorf("of known length: %q, %v", got, err)
	}
}

func TestSlowServers(t *testing.T) {
	drip := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "300000")
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-r.Context().Done():
				return
			}
			_, _ = io.WriteString(w, "x")
			_ = http.NewResponseController(w).Flush()
		}
	}
	for name, h := range map[string]http.HandlerFunc{
		"silent":       func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"drip":         drip,
		"endless wait": raw(503, map[string]string{"Retry-After": "99999"}, ""),
	} {
		s := serve(t, h)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		if name == "endless wait" { // is cut to half a minute, and ends with the context
			cancel()
			ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
		}
		_, err := fetch(ctx, client(t, func(c *Config) { c.ReadTimeout = 30 * time.Millisecond }), Request{URL: s.URL}, 0, -1, 300_000)
		if !errors.Is(err, source.ErrUnreachable) || podvm.Cause(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
	}
	ctx, cancel := context.WithCancel(t.Context())
	s := serve(t, func(_ http.ResponseWriter, r *http.Request) { cancel(); <-r.Context().Done() })
	if _, err := fetch(ctx, client(t, nil), Request{URL: s.URL}, 0, -1, 300_000); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestCredentialsStayWithTheirHost(t *testing.T) {
	var elsewhere, again atomic.Int32
	cdn := serve(t, func(w http.ResponseWriter, r *http.Request) {
		elsewhere.Add(1)
		if r.Header.Get("Authorization") != "" || r.Header.Get("X-Token") != "" || r.Header.Get("X-Signed") != "" || r.Header.Get("Cookie") != "" {
			t.Errorf("elsewhere gets %v", r.Header)
		}
		if elsewhere.Load() == 3 {
			w.WriteHeader(http.StatusForbidden) // it expired
			return
		}
		content(w, r)
	})
	home := serve(t, func(w http.ResponseWriter, r *http.Request) {
		again.Add(1)
		if r.Header.Get("X-Token") != "secret" || r.Header.Get("X-Signed") != "yes" {
			t.Errorf("home gets %v", r.Header)
		}
		if r.URL.Path == "/" {
			http.Redirect(w, r, "/there", http.StatusFound) // of the same host
			return
		}
		http.Redirect(w, r, cdn.URL+"/x?signature=1", http.StatusTemporaryRedirect)
	})
	c := client(t, nil)
	r := Request{
		URL: home.URL, Header: http.Header{"X-Token": {"secret"}, "Authorization": {"Bearer secret"}}, Redirects: true,
		Sign: func(r *http.Request) error { r.Header.Set("X-Signed", "yes"); return nil },
	}
	for i := range int64(4) {
		if got, err := fetch(t.Context(), c, r, i*10, 10, 300_000); err != nil || got != text[:10] {
			t.Errorf("%q, %v", got, err)
		}
	}
	// The place is remembered until it refuses: two requests at home, twice.
	if again.Load() != 4 || elsewhere.Load() != 5 {
		t.Errorf("%d requests at home, %d elsewhere", again.Load(), elsewhere.Load())
	}
}

func TestRedirectsThatAreNotFollowed(t *testing.T) {
	for name, to := range map[string]string{
		"itself": "/", "ftp": "ftp://127.0.0.1/", "file": "file:///etc/passwd", "user": "http://u:p@127.0.0.1/", "no URL": "http://[", "no host": "http:///x",
		"metadata": "http://169.254.169.254/latest", "loopback by another name": "http://[::1]:1/", "azure": "http://168.63.129.16/", "any": "http://0.0.0.0:1/",
	} {
		s := serve(t, raw(302, map[string]string{"Location": to}, ""))
		_, err := fetch(t.Context(), client(t, nil), Request{URL: s.URL, Redirects: true}, 0, 10, 300_000)
		if !errors.Is(err, source.ErrUnreachable) || errors.Is(err, ErrAgain) || !strings.Contains(podvm.Cause(err), "not followed") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOverloadedServersAreAskedAgain(t *testing.T) {
	var n atomic.Int32
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if i := n.Add(1); i < 3 {
			w.WriteHeader([]int{0, 429, 503}[i])
			return
		}
		content(w, r)
	})
	if got, err := fetch(t.Context(), client(t, nil), Request{URL: s.URL}, 0, 5, -1); err != nil || got != "01234" || n.Load() != 3 {
		t.Errorf("%q, %v, %d requests", got, err, n.Load())
	}
	n.Store(0)
	if _, err := fetch(t.Context(), client(t, func(c *Config) { c.Attempts = 2 }), Request{URL: s.URL}, 0, 5, -1); !errors.Is(err, source.ErrUnreachable) || n.Load() != 2 {
		t.Errorf("%v, %d requests", err, n.Load())
	}
}

func TestDocuments(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.URL.Query().Get("n"))
		if body, _ := io.ReadAll(r.Body); r.Method == http.MethodPost {
			n = len(body)
		}
		_, _ = io.WriteString(w, strings.Repeat("x", n))
	})
	c := client(t, nil)
	if _, b, err := c.Document(t.Context(), Request{URL: s.URL + "?n=100"}, 100); err != nil || len(b) != 100 {
		t.Errorf("%d, %v", len(b), err)
	}
	if _, _, err := c.Document(t.Context(), Request{URL: s.URL + "?n=101"}, 100); !errors.Is(err, source.ErrListing) || podvm.Cause(err) == "" {
		t.Error(err)
	}
	if _, b, err := c.Document(t.Context(), Request{URL: s.URL, Method: http.MethodPost, Body: []byte("abc")}, 100); err != nil || string(b) != "xxx" {
		t.Errorf("%q, %v", b, err)
	}
	if _, _, err := c.Document(t.Context(), Request{URL: "ftp://x/"}, 100); !errors.Is(err, source.ErrUsage) {
		t.Error(err)
	}
}

func TestStat(t *testing.T) {
	const date = "Mon, 02 Jan 2006 15:04:05 GMT"
	for name, tt := range map[string]struct {
		answer http.HandlerFunc
		want   Info
		is     error
	}{
		"ranges":    {content, Info{Size: 300_000, Version: `"v1"`}, nil},
		"none":      {raw(200, map[string]string{"Content-Length": "300000", "Last-Modified": date}, text), Info{Size: 300_000, Version: date}, nil},
		"no length": {raw(200, nil, text), Info{Size: -1}, nil},
		"empty":     {raw(416, map[string]string{"Content-Range": "bytes */0"}, ""), Info{}, nil},
		"416":       {raw(416, map[string]string{"Content-Range": "bytes */7"}, ""), Info{}, source.ErrUnreachable},
		"bad range": {raw(206, map[string]string{"Content-Range": "bytes"}, "0"), Info{}, source.ErrUnreachable},
	} {
		got, err := client(t, nil).Stat(t.Context(), Request{URL: serve(t, tt.answer).URL})
		if !errors.Is(err, tt.is) || err == nil && (got.Size != tt.want.Size || got.Version != tt.want.Version) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestVersions(t *testing.T) {
	const date = "Mon, 02 Jan 2006 15:04:05 GMT"
	for _, tt := range []struct{ version, ifMatch, unmodified string }{
		{`"v1"`, `"v1"`, ""}, {`W/"v1"`, "", ""}, {date, "", date}, {"", "", ""},
	} {
		h := http.Header{}
		if conditions(tt.version, h); h.Get("If-Match") != tt.ifMatch || h.Get("If-Unmodified-Since") != tt.unmodified {
			t.Errorf("%q: %v", tt.version, h)
		}
		for _, have := range []http.Header{{"Etag": {`"v2"`}, "Last-Modified": {"Tue, 03 Jan 2006 15:04:05 GMT"}}, {"Etag": {`W/"v2"`}, "Last-Modified": {"x"}}} {
			if err := checkVersion(tt.version, have); (tt.version == "") == errors.Is(err, source.ErrChanged) {
				t.Errorf("%q and %v: %v", tt.version, have, err)
			}
		}
		if err := checkVersion(tt.version, http.Header{}); err != nil {
			t.Errorf("%q and nothing: %v", tt.version, err)
		}
	}
}

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-9/10", "bytes 0-9/*", "bytes */10", "bytes 9-0/10", "bytes 0-10/10", "", "bytes 0-9/", "bytes +1-9/10"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		first, last, total, ok := contentRange(s)
		if ok && (first < 0 || last < first || total >= 0 && last >= total || total < -1) {
			t.Errorf("%q: %d %d %d", s, first, last, total)
		}
	})
}
