package rest

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/podvm"
)

// Requests are counted by what they ask for, never by a caller's words.
func TestRequestsAreCounted(t *testing.T) {
	h, err := New(Config{Features: "attestation", AAAddr: "unix:///none.sock", wait: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close() //nolint:errcheck // a test
	ask := func(from, path string) {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
		r.RemoteAddr = from
		h.ServeHTTP(httptest.NewRecorder(), r)
	}
	ask("127.0.0.1:1", "/aa/evidence?runtime_data=x")
	ask("127.0.0.1:1", "/cdh/resource/a/secret/name")
	ask("127.0.0.1:1", "/strange/secret")
	ask("127.0.0.1:1", "/aa/token/secret")
	ask("192.0.2.1:1", "/aa/token?token_type=kbs")
	text := h.Metrics().Text()
	for _, line := range []string{
		`{path="/aa/evidence",status="500"} 1`, `{path="/cdh/resource",status="404"} 1`, `{path="other",status="404"} 2`, `{path="/aa/token",status="403"} 1`,
	} {
		if !strings.Contains(text, "\nsealpod_rest_requests_total"+line+"\n") {
			t.Errorf("no %s in\n%s", line, text)
		}
	}
	if strings.Contains(text, "secret") {
		t.Error("a caller's word is in the metrics")
	}
	if s := h.Status(); s.Features != "attestation" || s.Running != 0 || s.Version != podvm.Version() || s.Started.IsZero() {
		t.Errorf("%+v", s)
	}
}
