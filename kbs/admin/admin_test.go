package admin

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sealpod/sealpod/podvm"
)

// recorder is a KBS that remembers one request and gives a fixed answer.
type recorder struct {
	status             int
	answer             string
	method, path, auth string
	body               []byte
}

func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.method, r.path, r.auth = req.Method, req.URL.EscapedPath(), req.Header.Get("Authorization")
	r.body, _ = io.ReadAll(req.Body)
	w.WriteHeader(r.status)
	_, _ = io.WriteString(w, r.answer)
}

func start(t *testing.T, status int, answer string) (*recorder, *Client) {
	t.Helper()
	r := &recorder{status: status, answer: answer}
	srv := httptest.NewServer(r)
	t.Cleanup(srv.Close)
	c, err := New(srv.URL+"/", nil, podvm.Secret("the-token"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return r, c
}

func TestRequestsAreWhatAKBSExpects(t *testing.T) {
	rego := "package policy\ndefault allow := true\n"
	b64 := base64.RawURLEncoding.EncodeToString([]byte(rego))
	tests := map[string]struct {
		do           func(*Client) error
		method, path string
		body         string
	}{
		"place a resource": {
			func(c *Client) error { return c.SetResource(t.Context(), "a/b/c", podvm.Secret("\x00raw")) },
			"POST", "/kbs/v0/resource/a/b/c", "\x00raw",
		},
		"place a resource with a question in its path": {
			func(c *Client) error { return c.SetResource(t.Context(), "a/b/c?x", nil) },
			"POST", "/kbs/v0/resource/a/b/c%3Fx", "",
		},
		"delete a resource": {
			func(c *Client) error { return c.DeleteResource(t.Context(), "a/b/c") },
			"DELETE", "/kbs/v0/resource/a/b/c", "",
		},
		"resource policy": {
			func(c *Client) error { return c.SetResourcePolicy(t.Context(), rego) },
			"POST", "/kbs/v0/resource-policy", `{"policy":"` + b64 + `"}`,
		},
		"attestation policy": {
			func(c *Client) error { return c.SetAttestationPolicy(t.Context(), "default_cpu", rego) },
			"POST", "/kbs/v0/attestation-policy", `{"policy":"` + b64 + `","policy_id":"default_cpu","type":"rego"}`,
		},
		"reference values": {
			func(c *Client) error { return c.SetReferenceValues(t.Context(), map[string]any{"svn": []string{"1"}}) },
			"POST", "/kbs/v0/reference-value",
			`{"payload":"` + base64.StdEncoding.EncodeToString([]byte(`{"svn":["1"]}`)) + `","type":"sample","version":"0.1.0"}`,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r, c := start(t, 200, "")
			if err := tt.do(c); err != nil {
				t.Fatal(err)
			}
			got := []string{r.method, r.path, r.auth, string(r.body)}
			if d := cmp.Diff([]string{tt.method, tt.path, "Bearer the-token", tt.body}, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestListResources(t *testing.T) {
	_, c := start(t, 200, `["a/b/c"]`)
	if got, err := c.ListResources(t.Context()); err != nil || len(got) != 1 || got[0] != "a/b/c" {
		t.Errorf("%v, %v", got, err)
	}
	_, c = start(t, 200, `{"not":"a list"}`)
	if _, err := c.ListResources(t.Context()); err == nil {
		t.Error("an object was taken for a list")
	}
}

func TestErrorsSayWhatTheKBSSaid(t *testing.T) {
	kind := "https://github.com/confidential-containers/kbs/errors/"
	info, _ := json.Marshal(map[string]string{"type": kind + "AdminAuthAccess", "detail": "admin access denied for endpoint x:\nno"})
	tests := map[string]struct {
		status int
		answer string
		want   string
		access bool
	}{
		"bad token":        {401, string(info), "AdminAuthAccess: admin access denied for endpoint x: no", true},
		"not a KBS":        {404, "<html>", "HTTP status 404", false},
		"a redirect":       {302, "", "HTTP status 302", false},
		"an endless error": {500, strings.Repeat("x", maxAnswer+1), "too large", false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, c := start(t, tt.status, tt.answer)
			err := c.SetResource(t.Context(), "a/b/c", nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) || errors.Is(err, ErrAccess) != tt.access {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "the-token") {
				t.Error("the token is in the error")
			}
		})
	}
}

func TestNewRefusesWhatIsNoKBS(t *testing.T) {
	for _, bad := range []string{"", "kbs.example", "ftp://x", "http://", "http://user:pw@x", "http://x/?a=b", "http://x/#a"} {
		if _, err := New(bad, nil, nil); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
	if _, err := New("https://x", []byte("no PEM"), nil); err == nil {
		t.Error("a certificate that is none was accepted")
	}
}
