package azvtpm

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sealpod/sealpod/podvm"
)

// service is a metadata service that answers with f's code and text, and a
// client of it. It counts the requests.
func service(t *testing.T, f func(n int, r *http.Request) (int, string)) (*metadata, *int) {
	t.Helper()
	n := new(int)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		*n++
		code, text := f(*n, r)
		w.WriteHeader(code)
		_, _ = w.Write([]byte(text))
	}))
	t.Cleanup(s.Close)
	m := newMetadata(podvm.Host{IMDS: s.URL})
	m.retry = time.Microsecond
	return m, n
}

func quoteJSON(enc *base64.Encoding) string {
	return `{"quote":"` + enc.EncodeToString(bytes.Repeat([]byte{0xfb, 0xff}, 1000)) + `"}`
}

func vcekJSON(kind string) string {
	text := string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: vcek()}))
	return string(must(json.Marshal(map[string]string{"vcekCert": text})))
}

func TestTDQuoteInEitherAlphabet(t *testing.T) {
	for name, enc := range map[string]*base64.Encoding{
		"standard": base64.StdEncoding, "URL": base64.URLEncoding, "raw URL": base64.RawURLEncoding, "raw standard": base64.RawStdEncoding,
	} {
		m, _ := service(t, func(int, *http.Request) (int, string) { return 200, quoteJSON(enc) })
		got, err := m.tdQuote(t.Context(), make([]byte, 1024))
		if err != nil || !bytes.Equal(got, bytes.Repeat([]byte{0xfb, 0xff}, 1000)) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}

// A service that knows only the URL-safe alphabet is asked in that one next.
func TestTDReportInTheOtherAlphabet(t *testing.T) {
	report := bytes.Repeat([]byte{0xfb, 0xff}, 512)
	m, n := service(t, func(_ int, r *http.Request) (int, string) {
		body := must(podvm.ReadMax(r.Body, 1<<20))
		if string(body) != `{"report":"`+base64.RawURLEncoding.EncodeToString(report)+`"}` {
			return 400, "another alphabet, please"
		}
		return 200, quoteJSON(base64.RawURLEncoding)
	})
	if _, err := m.tdQuote(t.Context(), report); err != nil || *n != 2 {
		t.Errorf("%v after %d requests", err, *n)
	}
}

func TestMetadataServiceThatIsBusyIsAskedAgain(t *testing.T) {
	for _, code := range []int{410, 429, 500, 503} {
		m, n := service(t, func(n int, _ *http.Request) (int, string) {
			if n < 4 {
				return code, "later"
			}
			return 200, vcekJSON("CERTIFICATE")
		})
		if got, err := m.vcek(t.Context()); err != nil || !bytes.Equal(got, vcek()) || *n != 4 {
			t.Errorf("%d: %v after %d requests", code, err, *n)
		}
	}
}

func TestMetadataServiceFails(t *testing.T) {
	for name, tt := range map[string]struct {
		code     int
		text     string
		requests int // for a certificate
	}{
		"always busy":                  {429, "later", tries},
		"always broken":                {502, strings.Repeat("x\x1b[2J", 1000), tries},
		"refuses":                      {400, "no", 1},
		"redirects":                    {302, "elsewhere", 1},
		"empty":                        {200, "", 1},
		"not JSON":                     {200, "<html>", 1},
		"another type":                 {200, `{"vcekCert":7,"quote":[]}`, 1},
		"nothing in it":                {200, `{}`, 1},
		"neither PEM nor base64":       {200, `{"vcekCert":"hello","quote":"%%%"}`, 1},
		"a key, and a quote too short": {200, strings.TrimSuffix(vcekJSON("PUBLIC KEY"), "}") + `,"quote":"AAAA"}`, 1},
		"PEM that is no certificate":   {200, `{"vcekCert":"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}`, 1},
		"a huge body":                  {200, `{"vcekCert":"` + strings.Repeat("A", maxAnswer) + `"}`, 1},
	} {
		t.Run(name, func(t *testing.T) {
			m, n := service(t, func(int, *http.Request) (int, string) { return tt.code, tt.text })
			if got, err := m.vcek(t.Context()); !errors.Is(err, ErrMetadata) || got != nil || podvm.Cause(err) == "" || strings.Contains(err.Error(), "\x1b") {
				t.Errorf("certificate: %x, %v", got, err)
			}
			if *n != tt.requests {
				t.Errorf("%d requests", *n)
			}
			if got, err := m.tdQuote(t.Context(), nil); !errors.Is(err, ErrMetadata) || got != nil || podvm.Cause(err) == "" {
				t.Errorf("quote: %x, %v", got, err)
			}
			if *n > 2*tries {
				t.Errorf("%d requests", *n)
			}
		})
	}
}

func TestMetadataServiceThatIsDown(t *testing.T) {
	s := httptest.NewServer(nil)
	s.Close()
	m := newMetadata(podvm.Host{IMDS: s.URL})
	m.retry = time.Microsecond
	if _, err := m.vcek(t.Context()); !errors.Is(err, ErrMetadata) || podvm.Cause(err) == "" {
		t.Errorf("got %v", err)
	}
	m.retry = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := m.vcek(ctx); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrMetadata) {
		t.Errorf("got %v", err)
	}
}

// The metadata address means the machine's own host, which a proxy is not, and
// what it says is no reason to ask anybody else.
func TestMetadataServiceIsAskedDirectly(t *testing.T) {
	m := newMetadata(podvm.Host{})
	if p := m.http.Transport.(*http.Transport).Proxy; p != nil {
		t.Error("a proxy may be used")
	}
	elsewhere, n := service(t, func(int, *http.Request) (int, string) { return 200, vcekJSON("CERTIFICATE") })
	s := httptest.NewServer(http.RedirectHandler(elsewhere.host.IMDS+vcekPath, http.StatusTemporaryRedirect))
	t.Cleanup(s.Close)
	if _, err := newMetadata(podvm.Host{IMDS: s.URL}).vcek(t.Context()); !errors.Is(err, ErrMetadata) || *n != 0 {
		t.Errorf("%v, %d requests elsewhere", err, *n)
	}
}

func FuzzMetadataAnswer(f *testing.F) {
	f.Add(base64.StdEncoding.EncodeToString(make([]byte, minQuote)))
	f.Add(base64.RawURLEncoding.EncodeToString(bytes.Repeat([]byte{0xfb}, minQuote)) + "==")
	f.Add(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: vcek()})))
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		if q, err := decodeQuote(text); err == nil && len(q) < minQuote {
			t.Errorf("%q is a quote", text)
		}
		if der, err := certificate(text); err == nil && len(der) == 0 {
			t.Errorf("%q is a certificate", text)
		}
	})
}
