package kbs

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sealpod/sealpod/podvm"
)

func TestASToken(t *testing.T) {
	jwt := testJWT(time.Unix(1, 0), time.Unix(2, 0), "x")
	var got string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil || r.Method != http.MethodPost || r.URL.Path != "/attestation" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s %v, %v", r.Method, r.URL, r.Header, err)
		}
		got = string(b)
		_, _ = io.WriteString(w, jwt+"\n")
	}))
	defer srv.Close()
	c, err := NewASClient(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	out, err := c.Token(t.Context(), &fakeTEE{})
	if err != nil || string(out) != jwt {
		t.Fatalf("got %q, %v", out, err)
	}
	evidence := base64.RawURLEncoding.EncodeToString([]byte(`{"report_data":""}`))
	if want := `{"verification_requests":[{"tee":"sample","evidence":"` + evidence + `"}],"policy_ids":[]}`; got != want {
		t.Errorf("sent %s", got)
	}
}

func TestASTokenErrors(t *testing.T) {
	for name, tt := range map[string]struct {
		answer http.HandlerFunc
		tee    fakeTEE
		want   error
		cause  string
	}{
		"refused":   {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", 500) }, fakeTEE{}, ErrUnauthorized, "refused the evidence (HTTP status 500)"},
		"elsewhere": {func(w http.ResponseWriter, _ *http.Request) { http.NotFound(w, nil) }, fakeTEE{}, ErrProtocol, "does not answer like a CoCo attestation service"},
		"moved":     {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/x", http.StatusFound) }, fakeTEE{}, ErrProtocol, "address of the CoCo attestation service"},
		"overloaded": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusServiceUnavailable) }, fakeTEE{}, ErrUnreachable,
			"the CoCo attestation service at http"},
		"breaks off": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, fakeTEE{}, ErrUnreachable,
			"CoCo attestation service not reachable at http"},
		"not a JWT": {func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode("x") }, fakeTEE{}, ErrProtocol, "no JWT"},
		"oversized": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, strings.Repeat("x", maxToken+1))
		}, fakeTEE{}, ErrProtocol, "sent more"},
		"broken device": {nil, fakeTEE{err: errTEE}, errTEE, ""},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(tt.answer)
			defer srv.Close()
			c, err := NewASClient(srv.URL)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Token(t.Context(), &tt.tee); !errors.Is(err, tt.want) || !strings.Contains(podvm.Cause(err), tt.cause) {
				t.Errorf("got %v", err)
			}
		})
	}
	if _, err := NewASClient("nonsense"); err == nil {
		t.Error("nonsense is no URL")
	}
	for _, url := range []string{"http://user:hush hush@as", "http://user:hush%zz@as", "http://user:hush@as"} {
		if _, err := NewASClient(url); err == nil || strings.Contains(err.Error(), "hush") {
			t.Errorf("%v", err)
		}
	}
}
