package bearer

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/source/internal/httpsrc"
	"github.com/sealpod/sealpod/model/source/settings"
	"github.com/sealpod/sealpod/podvm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func tokens(t *testing.T, h http.HandlerFunc) *Tokens {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	env, err := settings.Load(podvm.Host{LookupEnv: func(string) (string, bool) { return "", false }}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	env.Backoff = time.Millisecond
	tok, err := New(httpsrc.Config{Env: env, Name: "the token service"}, s.URL+"/token", func(time.Time) (url.Values, error) {
		return url.Values{"secret": {"hunter2"}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tok.Close)
	return tok
}

func sign(t *testing.T, tok *Tokens) (string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://store.example/", nil)
	if err != nil {
		t.Fatal(err)
	}
	err = tok.Sign(req)
	return req.Header.Get("Authorization"), err
}

func TestTokenIsUsedUntilShortlyBeforeItEnds(t *testing.T) {
	asked := 0
	tok := tokens(t, func(w http.ResponseWriter, r *http.Request) {
		asked++
		if r.Method != http.MethodPost || r.PostFormValue("secret") != "hunter2" {
			t.Errorf("%s %v", r.Method, r.PostForm)
		}
		if asked == 2 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, `{"access_token":"t`+strings.Repeat("x", asked)+`","token_type":"Bearer","expires_in":"3600"}`)
	})
	now := time.Unix(1e9, 0)
	tok.now = func() time.Time { return now }
	for _, step := range []struct {
		after time.Duration
		want  string
	}{{0, "Bearer tx"}, {54 * time.Minute, "Bearer tx"}, {2 * time.Minute, "Bearer txxx"}} {
		now = now.Add(step.after)
		if got, err := sign(t, tok); got != step.want || err != nil {
			t.Errorf("after %s: %q, %v", step.after, got, err)
		}
	}
	if asked != 3 {
		t.Errorf("asked %d times", asked)
	}
	if got, err := sign(t, nil); got != "" || err != nil {
		t.Errorf("without tokens: %q, %v", got, err)
	}
}

func TestAnswersThatAreNoToken(t *testing.T) {
	for name, tt := range map[string]struct {
		status int
		body   string
		is     error
	}{
		"refused":           {400, `{"error":"invalid_client","error_description":"wrong secret"}`, source.ErrRefused},
		"unauthorized":      {401, `x`, source.ErrRefused},
		"broken":            {500, ``, source.ErrUnreachable},
		"not JSON":          {200, `<html>`, source.ErrUnreachable},
		"none":              {200, `{}`, source.ErrUnreachable},
		"another type":      {200, `{"access_token":"t","token_type":"mac"}`, source.ErrUnreachable},
		"a header's end":    {200, `{"access_token":"t\r\nX: y"}`, source.ErrUnreachable},
		"long":              {200, `{"access_token":"` + strings.Repeat("t", maxToken+1) + `"}`, source.ErrUnreachable},
		"longer":            {200, strings.Repeat(" ", maxAnswer+1), source.ErrListing},
		"leading elsewhere": {307, ``, source.ErrUnreachable},
	} {
		tok := tokens(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "https://elsewhere.example/")
			w.WriteHeader(tt.status)
			_, _ = io.WriteString(w, tt.body)
		})
		got, err := sign(t, tok)
		if got != "" || !errors.Is(err, tt.is) || podvm.Cause(err) == "" || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestWhereSecretsMayGo(t *testing.T) {
	for text, want := range map[string]bool{
		"https://h/x": true, "http://127.0.0.1:8/x": true, "http://[::1]/": true, "http://h/x": false, "http://10.0.0.1/": false,
		"https://u@h/": false, "https:///x": false, "ftp://h/": false, "http://127.0.0.1.evil/": false,
	} {
		u, err := url.Parse(text)
		if err != nil || Safe(u) != want {
			t.Errorf("%s: want %t, %v", text, want, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"access_token":"t","token_type":"Bearer","expires_in":3599}`))
	f.Add([]byte(`{"access_token":"t","expires_in":-1}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		token, life, err := parse(raw)
		if err == nil && (token == "" || strings.ContainsAny(token, "\r\n ") || life < time.Second || life > most) {
			t.Errorf("%q for %s", token, life)
		}
	})
}
