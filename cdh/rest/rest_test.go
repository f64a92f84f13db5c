package rest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	aa "github.com/sealpod/sealpod/api/attestationagent"
	"github.com/sealpod/sealpod/api/datahub"
	"github.com/sealpod/sealpod/cdh/internal/cdhtest"
	"github.com/sealpod/sealpod/podvm/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hub is a fake data hub that answers by the URI.
type hub struct {
	path string
	stop func()
}

func (h *hub) GetResource(ctx context.Context, req *datahub.GetResourceRequest) (*datahub.GetResourceResponse, error) {
	switch {
	case strings.Contains(req.ResourcePath, "because"):
		_, word, _ := strings.Cut(req.ResourcePath, "because-")
		return nil, rpc.Fail(ctx, codes.Internal, "[CDH] [ERROR]: Get Resource failed", rpc.Because(errors.New("x"), word))
	case strings.Contains(req.ResourcePath, "denied"):
		return nil, status.Error(codes.Internal, "[CDH] [ERROR]: Get Resource failed: access denied by policy (request ab12cd34)")
	case strings.Contains(req.ResourcePath, "upstream"):
		return nil, status.Error(codes.Internal, "[CDH] [ERROR]: Get Resource failed")
	case strings.Contains(req.ResourcePath, "hostile"):
		return nil, status.Error(codes.Internal, "a\r\nSet-Cookie: x\x1b[2J"+strings.Repeat("y", 4096))
	}
	return &datahub.GetResourceResponse{Resource: []byte("content of " + req.ResourcePath)}, nil
}

func (h *hub) start(t testing.TB) {
	h.stop = cdhtest.Serve(t, h.path, func(s *ttrpc.Server) { datahub.RegisterGetResourceServiceService(s, h) })
}

// world is a REST server on a real port, with both daemons behind it.
type world struct {
	hub  *hub
	aa   *cdhtest.AA
	addr string
	http http.Client
}

func newWorld(t testing.TB, features string) *world {
	t.Helper()
	k := cdhtest.NewKBS(t)
	w := &world{hub: &hub{path: filepath.Join(t.TempDir(), "cdh.sock")}, aa: cdhtest.NewAA(t, k).Start(t)}
	w.hub.start(t)
	w.serve(t, Config{Features: features, CDHAddr: "unix://" + w.hub.path, AAAddr: "unix://" + w.aa.Path})
	return w
}

func (w *world) serve(t testing.TB, cfg Config) {
	t.Helper()
	cfg.Version, cfg.Log = "v1-abc", cdhtest.Quiet
	h, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addr = l.Addr().String()
	w.serveOn(t, l, h)
}

// serveOn serves h, which it closes at the end, on l.
func (w *world) serveOn(t testing.TB, l net.Listener, h *Handler) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, NewProbe(), h, cdhtest.Quiet) }()
	w.http.Transport = &http.Transport{}
	t.Cleanup(func() {
		w.http.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
}

// raw sends a request line as it stands, which http.Client would clean.
func (w *world) raw(t testing.TB, method, target, body string) (code int, contentType []string, text string) {
	t.Helper()
	c, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // a test's end
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", method, target, len(body), body); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // a test's end
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header["Content-Type"], string(b)
}

const (
	octets = "application/octet-stream"
	asJSON = "application/json"
)

// id stands for a request id in expected texts.
var id = regexp.MustCompile(`\(request [0-9a-f]{8}\)$`)

func TestRoutes(t *testing.T) {
	event := `{"domain":"d","operation":"o","content":"c","more":1}`
	long := strings.Repeat("x", maxBody)
	tests := []struct {
		features, method, target, body string
		code                           int
		contentType, text              string // contentType "" means none
	}{
		{"resource", "GET", "/info", "", 200, asJSON, `{"version":"Guest Components Version: v1-abc","feature":"resource"}`},
		{"all", "GET", "/info", "", 200, asJSON, `{"version":"Guest Components Version: v1-abc","tee":"sample","additional_tees":["sampledevice"],"feature":"all"}`},
		{"all", "GET", "/info?x=y", "", 200, asJSON, `{"version":"Guest Components Version: v1-abc","tee":"sample","additional_tees":["sampledevice"],"feature":"all"}`},
		{"all", "POST", "/info", "", 405, "", "Method Not Allowed"},
		{"all", "GET", "/info/", "", 404, "", "URL NOT FOUND"},

		{"all", "GET", "/cdh/resource/default/key/1", "", 200, octets, "content of kbs:///default/key/1"},
		{"all", "POST", "/cdh/resource/default/key/1", "body", 200, octets, "content of kbs:///default/key/1"},
		{"all", "DELETE", "/cdh/resource/a/b/c", "", 200, octets, "content of kbs:///a/b/c"},
		{"all", "GET", "/cdh/resource/a/b/c?x=y", "", 200, octets, "content of kbs:///a/b/c"},
		{"all", "GET", "/cdh/resource/a/b/c/", "", 200, octets, "content of kbs:///a/b/c/"},
		{"all", "GET", "/cdh/resource/", "", 200, octets, "content of kbs:///"},
		{"all", "GET", "/cdh/resource//a//b", "", 200, octets, "content of kbs:////a//b"},
		{"all", "GET", "/cdh/resource/a/../b/./c", "", 200, octets, "content of kbs:///a/../b/./c"},
		{"all", "GET", "/cdh/resource/a%2fb/%2e%2E/c%20d", "", 200, octets, "content of kbs:///a%2fb/%2e%2E/c%20d"},
		{"all", "GET", "/cdh/resource/a{b}|\"c", "", 200, octets, `content of kbs:///a{b}|"c`},
		{"all", "GET", "http://elsewhere/cdh/resource/a/b/c?q", "", 200, octets, "content of kbs:///a/b/c"},
		{"all", "GET", "/cdh/resource", "", 404, "", "URL NOT FOUND"},
		{"all", "GET", "/cdh/resourceful/a/b/c", "", 404, "", "URL NOT FOUND"},
		{"all", "GET", "/cdh/other", "", 404, "", "URL NOT FOUND"},
		{"all", "GET", "/cdh/", "", 404, "", "URL NOT FOUND"},
		{"all", "GET", "/cdh", "", 404, "", "URL NOT FOUND"},
		{"attestation", "GET", "/cdh", "", 404, "", "URL NOT FOUND"},
		{"attestation", "GET", "/cdh/resource/a/b/c", "", 404, "", "Resource Feature Not Enabled"},
		{"attestation", "GET", "/cdh/other", "", 404, "", "Resource Feature Not Enabled"},
		{"all", "GET", "/cdh/resource/denied/a/b", "", 500, "", "ttrpc request error: access denied by policy (request ab12cd34)"},
		{"all", "GET", "/cdh/resource/upstream/a/b", "", 500, "", "ttrpc request error: Get Resource failed (request ID)"},
		{"all", "GET", "/cdh/resource/hostile/a/b", "", 500, "", "ttrpc request error: a  Set-Cookie: x [2J" + strings.Repeat("y", maxCause-20) + "… (request ID)"},

		{"all", "GET", "/aa/token", "", 400, "", "BAD REQUEST"},
		{"all", "GET", "/aa/token?token_typ=kbs", "", 400, "", "BAD REQUEST"},
		{"all", "GET", "/aa/token?token_type=coco_as", "", 500, "", "ttrpc request error: AA-KBC get token failed (request ID)"},
		{"all", "POST", "/aa/token?token_type=kbs", "", 404, "", "URL NOT FOUND"},
		{"all", "GET", "/aa/token/?token_type=kbs", "", 404, "", "URL NOT FOUND"},
		{"all", "GET", "/aa/evidence?runtime_data=a+b%00%2B", "", 200, octets, `{"quote":"YSBiACs="}`},
		{"all", "GET", "/aa/evidence?runtime_data=x&runtime_data=y", "", 200, octets, `{"quote":"eQ=="}`},
		{"all", "GET", "/aa/evidence?runtime_data=", "", 200, octets, `{"quote":null}`},
		{"all", "GET", "/aa/evidence?runtime_data=-_8&encoding=base64", "", 200, octets, `{"quote":"+/8="}`},
		{"all", "GET", "/aa/evidence?runtime_data=-_8%3D&encoding=base64", "", 400, "", "BAD REQUEST"},
		{"all", "GET", "/aa/evidence?runtime_data=%2B/8&encoding=base64", "", 400, "", "BAD REQUEST"},
		{"all", "GET", "/aa/evidence?runtime_data=AA%0AAA&encoding=base64", "", 400, "", "BAD REQUEST"},
		{"all", "GET", "/aa/evidence?runtime_data=x&encoding=hex", "", 400, "", "BAD REQUEST"},
		{"all", "GET", "/aa/evidence?runtime_data=x&encoding=", "", 400, "", "BAD REQUEST"},
		{"all", "GET", "/aa/evidence", "", 400, "", "BAD REQUEST"},
		{"all", "GET", "/aa/evidence?runtime_data=fail", "", 500, "", "ttrpc request error: AA-KBC get evidence failed (request ID)"},
		{"all", "GET", "/aa/additional-evidence?runtime_data=x", "", 200, octets, ""},
		{"all", "GET", "/aa/additional-evidence", "", 400, "", "BAD REQUEST"},
		{"all", "PUT", "/aa/evidence?runtime_data=x", "", 404, "", "URL NOT FOUND"},
		{"all", "GET", "/aa", "", 404, "", "URL NOT FOUND"},
		{"all", "GET", "/aa/", "", 404, "", "URL NOT FOUND"},
		{"resource", "GET", "/aa/token?token_type=kbs", "", 404, "", "Attestation Feature Not Enabled"},
		{"resource", "GET", "/aa/", "", 404, "", "Attestation Feature Not Enabled"},
		{"resource", "GET", "/aa", "", 404, "", "URL NOT FOUND"},

		{"all", "POST", "/aa/aael", event, 200, asJSON, `{"success":"true"}`},
		{"all", "GET", "/aa/aael", event, 404, "", "URL NOT FOUND"},
		{"all", "POST", "/aa/aael", `{"domain":"d","operation":"o"}`, 500, "", `Illegal AAEL eventry format: member "content" is missing (request ID)`},
		{"all", "POST", "/aa/aael", "", 500, "", "Illegal AAEL eventry format: not a JSON object (request ID)"},
		{"all", "POST", "/aa/aael", event + "{", 500, "", "Illegal AAEL eventry format: data after the JSON object (request ID)"},
		{"all", "POST", "/aa/aael", long + "x", 500, "", "Illegal AAEL eventry format: more than 1048576 bytes (request ID)"},

		{"all", "GET", "/", "", 404, "", "URL NOT FOUND"},
		{"all", "GET", "/other", "", 404, "", "URL NOT FOUND"},
		{"all", "OPTIONS", "*", "", 404, "", "URL NOT FOUND"},
		{"all", "GET", "//cdh/resource/a/b/c", "", 404, "", "URL NOT FOUND"},
		{"all", "GET", "/x/../cdh/resource/a/b/c", "", 404, "", "URL NOT FOUND"},
		{"all", "GET", "/CDH/resource/a/b/c", "", 404, "", "URL NOT FOUND"},
	}
	worlds := map[string]*world{}
	for _, f := range []string{"resource", "attestation", "all"} {
		worlds[f] = newWorld(t, f)
	}
	for _, tt := range tests {
		t.Run(tt.features+" "+tt.method+" "+tt.target+" "+tt.body[:min(len(tt.body), 20)], func(t *testing.T) {
			code, ct, text := worlds[tt.features].raw(t, tt.method, tt.target, tt.body)
			if !strings.Contains(tt.text, "ab12cd34") {
				text = id.ReplaceAllString(text, "(request ID)")
			}
			if code != tt.code || strings.Join(ct, "|") != tt.contentType || text != tt.text {
				t.Errorf("got  %d %q %q\nwant %d %q %q", code, ct, text, tt.code, tt.contentType, tt.text)
			}
		})
	}
}

func TestTokenBytesPassUnchanged(t *testing.T) {
	w := newWorld(t, "all")
	token := []byte("{\"token\":\"x\",\"tee_keypair\":\"y\"}\n\x00\xff")
	w.aa.Lock(func() { w.aa.GetTokenFunc = func(context.Context) ([]byte, error) { return token, nil } })
	code, ct, text := w.raw(t, "GET", "/aa/token?token_type=kbs", "")
	if code != 200 || ct[0] != octets || text != string(token) {
		t.Fatalf("%d %q %q", code, ct, text)
	}
}

func TestEventOutcomes(t *testing.T) {
	w := newWorld(t, "all")
	for result, want := range map[aa.RuntimeMeasurementResult]string{
		aa.RuntimeMeasurementResult_OK:            `{"success":"true"}`,
		aa.RuntimeMeasurementResult_NOT_SUPPORTED: `{"success":"false","message": "The platform does not support runtime measurement"}`,
		aa.RuntimeMeasurementResult_NOT_ENABLED:   `{"success":"false","message": "Attestation Agent does not enable eventlog recording"}`,
		7:                                         `{"success":"false","message": "Unknown runtime measurement result"}`,
	} {
		w.aa.Lock(func() { w.aa.ExtendFunc = func() (aa.RuntimeMeasurementResult, error) { return result, nil } })
		code, ct, text := w.raw(t, "POST", "/aa/aael", `{"domain":"d","operation":"o","content":"c"}`)
		if code != 200 || ct[0] != asJSON || text != want {
			t.Errorf("%v: %d %q %q", result, code, ct, text)
		}
	}
	w.aa.Lock(func() {
		w.aa.ExtendFunc = func() (aa.RuntimeMeasurementResult, error) {
			return 0, status.Error(codes.Internal, "[ERROR:attestation-agent] AA extend runtime measurement failed: content has a line end (request 00000001)")
		}
	})
	if code, _, text := w.raw(t, "POST", "/aa/aael", `{"domain":"d","operation":"o","content":"c"}`); code != 500 ||
		text != "ttrpc request error: content has a line end (request 00000001)" {
		t.Errorf("%d %q", code, text)
	}
	if e := w.aa.Events[0]; e.Domain != "d" || e.Operation != "o" || e.Content != "c" || e.RegisterIndex != nil {
		t.Errorf("event %+v", e)
	}
}

func TestPeersBeyondThisMachineAreForbiddenBeforeAllElse(t *testing.T) {
	h, err := New(Config{Features: "all", CDHAddr: "unix:///x", AAAddr: "unix:///x", Log: cdhtest.Quiet})
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]int{
		"127.0.0.1:1": 404, "127.8.9.1:1": 404, "[::1]:1": 404, "[::ffff:127.0.0.1]:1": 404,
		"10.0.0.1:1": 403, "[fe80::1%eth0]:1": 403, "0.0.0.0:1": 403, "[::]:1": 403, "@": 403, "": 403, "localhost:1": 403,
	} {
		for _, path := range []string{"/nothing", "/info/"} {
			r := httptest.NewRequest("GET", path, nil)
			r.RemoteAddr = addr
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, r)
			if rec.Code != want {
				t.Errorf("%q: %d, want %d", addr, rec.Code, want)
			}
			if want == 403 && rec.Body.String() != "Forbidden" {
				t.Errorf("%q: %q", addr, rec.Body)
			}
		}
	}
}

func TestConfigErrors(t *testing.T) {
	for name, cfg := range map[string]Config{
		"no features":      {CDHAddr: "unix:///x", AAAddr: "unix:///x"},
		"unknown features": {Features: "everything", CDHAddr: "unix:///x", AAAddr: "unix:///x"},
		"a TCP address":    {Features: "resource", CDHAddr: "tcp://x"},
		"a bare path":      {Features: "attestation", AAAddr: "/run/x"},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestAbsentDaemonsAreNamed(t *testing.T) {
	dir := t.TempDir()
	w := &world{}
	cdh, aaAddr := "unix://"+dir+"/cdh.sock", "unix://"+dir+"/aa.sock"
	w.serve(t, Config{Features: "all", CDHAddr: cdh, AAAddr: aaAddr, wait: time.Millisecond})
	for target, want := range map[string]string{
		"/cdh/resource/a/b/c":        "ttrpc connect to CDH addr: " + cdh + " failed: nobody listens there",
		"/aa/token?token_type=kbs":   "ttrpc connect to Attestation Agent addr: " + aaAddr + " failed: nobody listens there",
		"/aa/evidence?runtime_data=": "ttrpc connect to Attestation Agent addr: " + aaAddr + " failed: nobody listens there",
		"/info":                      "ttrpc connect to Attestation Agent addr: " + aaAddr + " failed: nobody listens there",
	} {
		code, ct, text := w.raw(t, "GET", target, "")
		if code != 500 || len(ct) != 0 || id.ReplaceAllString(text, "") != want+" " {
			t.Errorf("%s: %d %q %q", target, code, ct, text)
		}
	}
}

func TestDataHubRestart(t *testing.T) {
	w := newWorld(t, "resource")
	for range 3 {
		if code, _, text := w.raw(t, "GET", "/cdh/resource/a/b/c", ""); code != 200 {
			t.Fatal(text)
		}
		w.hub.stop()
		w.hub.start(t)
	}
}

func TestDataHubThatGoesAwayForGood(t *testing.T) {
	w := newWorld(t, "resource")
	dir := w.hub.path
	w.serve(t, Config{Features: "resource", CDHAddr: "unix://" + dir, wait: time.Millisecond})
	if code, _, text := w.raw(t, "GET", "/cdh/resource/a/b/c", ""); code != 200 {
		t.Fatal(text)
	}
	w.hub.stop()
	code, _, text := w.raw(t, "GET", "/cdh/resource/a/b/c", "")
	if code != 500 || !strings.HasPrefix(text, "failed to reconnect to CDH after LocalClosed: nobody listens there (request ") {
		t.Fatalf("%d %q", code, text)
	}
}

func TestConcurrentRequestsWithOneFailing(t *testing.T) {
	w := newWorld(t, "resource")
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			want, target := 200, fmt.Sprintf("/cdh/resource/a/b/%d", i)
			if i == 9 {
				want, target = 500, "/cdh/resource/denied/b/c"
			}
			if code, _, text := w.raw(t, "GET", target, ""); code != want {
				t.Errorf("%s: %d %q", target, code, text)
			}
		})
	}
	wg.Wait()
}

func TestHostileHTTPHarmsNobodyElse(t *testing.T) {
	w := newWorld(t, "all")
	for name, sent := range map[string]string{
		"not HTTP":             "\x16\x03\x01\x02\x00garbage",
		"headers without end":  "GET / HTTP/1.1\r\nX: " + strings.Repeat("x", 1<<20),
		"a body without end":   "POST /aa/aael HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n" + strings.Repeat("x", 2<<20),
		"a bad escape":         "GET /cdh/resource/%zz HTTP/1.1\r\nHost: x\r\n\r\n",
		"two lengths":          "POST /aa/aael HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
		"a length of nonsense": "POST /aa/aael HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
		"nothing":              "",
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", w.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close() //nolint:errcheck // a test's end
			if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			_, _ = c.Write([]byte(sent)) // the server may hang up meanwhile
			_ = c.(*net.TCPConn).CloseWrite()
			b, _ := io.ReadAll(c)
			if bytes.Contains(b, []byte("200 OK")) {
				t.Errorf("it was served: %.200q", b)
			}
			if code, _, text := w.raw(t, "GET", "/cdh/resource/a/b/c", ""); code != 200 {
				t.Fatalf("another connection: %d %q", code, text)
			}
		})
	}
}

// TestReasonIsInAHeader: one word beside upstream's status and text.
func TestReasonIsInAHeader(t *testing.T) {
	w := newWorld(t, "resource")
	for resource, want := range map[string]string{"because-denied": "denied", "because-not-found": "not-found", "because-unreachable": "unreachable", "because-else": "", "upstream": "", "hostile": ""} {
		resp, err := w.http.Get("http://" + w.addr + "/cdh/resource/a/b/" + resource)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		if err != nil || resp.Body.Close() != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != 500 || resp.Header.Get(ReasonHeader) != want || resp.Header["Content-Type"] != nil || !strings.HasPrefix(string(text), "ttrpc request error: ") {
			t.Errorf("%s: %d %v %q", resource, resp.StatusCode, resp.Header, text)
		}
	}
	w.hub.stop()
	w.serve(t, Config{Features: "resource", CDHAddr: "unix://" + w.hub.path, wait: time.Millisecond})
	resp, err := w.http.Get("http://" + w.addr + "/cdh/resource/a/b/c")
	if err != nil || resp.Body.Close() != nil || resp.Header.Get(ReasonHeader) != "unreachable" {
		t.Errorf("nobody listens: %v, %v", resp.Header, err)
	}
}
