package netfault

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestWhy makes each fault happen to net/http, whose errors these are.
func TestWhy(t *testing.T) {
	quiet := slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	hang := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	serve := func(h http.HandlerFunc, start func(*httptest.Server)) *httptest.Server {
		s := httptest.NewUnstartedServer(h)
		s.Config.ErrorLog = quiet
		start(s)
		t.Cleanup(s.Close)
		return s
	}
	secure := serve(http.NotFound, (*httptest.Server).StartTLS)
	slow := serve(hang, (*httptest.Server).Start)
	broken := serve(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, (*httptest.Server).Start)
	closed := serve(http.NotFound, (*httptest.Server).Start)
	closed.Close()
	roots := x509.NewCertPool()
	roots.AddCert(secure.Certificate())

	get := func(ctx context.Context, url string, conf *tls.Config, dial func(context.Context, string, string) (net.Conn, error)) error {
		tr := &http.Transport{TLSClientConfig: conf, DialContext: dial}
		defer tr.CloseIdleConnections()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := (&http.Client{Transport: tr}).Do(req)
		if err == nil {
			_ = resp.Body.Close()
			t.Errorf("%s answers", url)
		}
		return err
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	late, stop := context.WithTimeout(t.Context(), time.Millisecond)
	defer stop()
	years := func() time.Time { return time.Now().AddDate(200, 0, 0) }
	nowhere := func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.DNSError{Err: "no such host", Name: "hunter2", IsNotFound: true}
	}
	for want, err := range map[string]error{
		"its TLS certificate is not trusted; false":                                         get(t.Context(), secure.URL, nil, nil),
		"its TLS certificate is for another name; false":                                    get(t.Context(), secure.URL, &tls.Config{RootCAs: roots, ServerName: "other.example"}, nil),
		"its TLS certificate is not valid now or not for this use (check the clock); false": get(t.Context(), secure.URL, &tls.Config{RootCAs: roots, Time: years}, nil),
		"it does not speak TLS; false":                                                      get(t.Context(), strings.Replace(broken.URL, "http:", "https:", 1), nil, nil),
		"the caller gave up; false":                                                         get(canceled, slow.URL, nil, nil),
		"no answer in time; true":                                                           get(late, slow.URL, nil, nil),
		"the host name is not known; true":                                                  get(t.Context(), "http://hunter2.example", nil, nowhere),
		"connection refused; true":                                                          get(t.Context(), closed.URL, nil, nil),
		"the connection broke; true":                                                        get(t.Context(), broken.URL, nil, nil),
	} {
		why, temporary := Why(fmt.Errorf("asking: %w", err))
		if got := fmt.Sprintf("%s; %v", why, temporary); got != want {
			t.Errorf("got %q, want %q, of %v", got, want, err)
		}
	}
	if why, _ := Why(errors.New("hunter2")); why != "the connection broke" {
		t.Error(why)
	}
}
