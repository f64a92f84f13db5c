package azvtpm

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/sealpod/sealpod/attester/internal/gate"
	"github.com/sealpod/sealpod/podvm"
)

// ErrMetadata says that the metadata service gave no usable answer.
var ErrMetadata = errors.New("no usable answer of the metadata service")

// Paths at the metadata service.
// Source: az-cvm-vtpm 0.8.1 az-{tdx,snp}-vtpm/src/imds.rs.
const (
	quotePath = "/acc/tdquote"
	vcekPath  = "/metadata/THIM/amd/certification"
)

// Bounds of a request. A service that is overloaded or not up yet is asked
// again after 0.2 s, 0.4 s and so on: 3 s in all beside the requests.
const (
	maxAnswer      = 128 << 10 // a quote and a chain are under 16 KiB each
	requestTimeout = 15 * time.Second
	tries          = 5
	firstRetry     = 200 * time.Millisecond
	// minQuote is a DCAP quote without a signature: header, body, length.
	minQuote = 48 + 584 + 4
)

// metadata is a client of the host's metadata service. It keeps nothing: a
// certificate fits the firmware of the moment, and tokens, not evidence, are
// what is needed often.
type metadata struct {
	host  podvm.Host
	http  *http.Client
	retry time.Duration
}

func newMetadata(host podvm.Host) *metadata {
	return &metadata{host: host, retry: firstRetry, http: &http.Client{
		Timeout: requestTimeout,
		// The address means this machine's host, which no proxy is.
		Transport: &http.Transport{
			Proxy: nil, DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10,
			DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// tdQuote returns a DCAP quote over a TDREPORT. Services want the report in one
// of two alphabets. Errors: ErrMetadata.
func (m *metadata) tdQuote(ctx context.Context, report []byte) ([]byte, error) {
	var answer struct {
		Quote string `json:"quote"`
	}
	err := m.postReport(ctx, base64.StdEncoding.EncodeToString(report), &answer)
	if err != nil && final(err) {
		err = m.postReport(ctx, base64.RawURLEncoding.EncodeToString(report), &answer)
	}
	if err != nil {
		return nil, podvm.Explain(fmt.Errorf("asking for a TD quote: %w", err), "the metadata service gave no TD quote")
	}
	quote, err := decodeQuote(answer.Quote)
	if err != nil {
		return nil, podvm.Explain(fmt.Errorf("asking for a TD quote: %w: %w", ErrMetadata, err),
			"the metadata service gave something other than a TD quote")
	}
	return quote, nil
}

// decodeQuote decodes a quote from base64 of either alphabet, padded or not.
func decodeQuote(text string) ([]byte, error) {
	text = strings.NewReplacer("+", "-", "/", "_").Replace(strings.TrimRight(text, "="))
	quote, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(quote) < minQuote {
		return nil, fmt.Errorf("%d bytes, or not base64", len(quote))
	}
	return quote, nil
}

func (m *metadata) postReport(ctx context.Context, report string, answer any) error {
	body, err := json.Marshal(map[string]string{"report": report})
	if err != nil {
		return err
	}
	return m.ask(ctx, http.MethodPost, quotePath, body, answer)
}

// vcek returns the certificate of this chip's key at its present firmware, DER.
// Errors: ErrMetadata.
func (m *metadata) vcek(ctx context.Context) ([]byte, error) {
	var answer struct {
		Certificate string `json:"vcekCert"`
	}
	if err := m.ask(ctx, http.MethodGet, vcekPath, nil, &answer); err != nil {
		return nil, podvm.Explain(fmt.Errorf("asking for the VCEK: %w", err), "the metadata service gave no VCEK certificate")
	}
	der, err := certificate(answer.Certificate)
	if err != nil {
		return nil, podvm.Explain(fmt.Errorf("asking for the VCEK: %w: %w", ErrMetadata, err),
			"the metadata service gave something other than a VCEK certificate")
	}
	return der, nil
}

func certificate(text string) ([]byte, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("not a certificate in PEM")
	}
	if _, err := x509.ParseCertificate(block.Bytes); err != nil {
		return nil, err
	}
	return block.Bytes, nil
}

// statusError is an answer other than 200.
type statusError struct {
	code int
	text string // printable
}

func (e *statusError) Error() string {
	return fmt.Sprintf("status %d: %s", e.code, e.text)
}

// final tells whether asking the same again cannot help: the service refuses
// the request or says too much. 410 is what it says while it is updated.
func final(err error) bool {
	var s *statusError
	if errors.As(err, &s) {
		return s.code < 500 && s.code != http.StatusGone && s.code != http.StatusTooManyRequests
	}
	return errors.Is(err, podvm.ErrTooLarge)
}

// ask sends a request until it is answered and decodes the answer. Errors:
// ErrMetadata.
func (m *metadata) ask(ctx context.Context, method, path string, body []byte, answer any) error {
	var raw []byte
	var err error
	for try, wait := 1, m.retry; ; try, wait = try+1, 2*wait {
		if raw, err = m.once(ctx, method, path, body); err == nil {
			break
		}
		if try == tries || final(err) {
			return fmt.Errorf("%w after %d tries: %w", ErrMetadata, try, err)
		}
		if werr := gate.Wait(ctx, wait); werr != nil {
			return fmt.Errorf("%w: %w: %w", ErrMetadata, werr, err)
		}
	}
	if err := json.Unmarshal(raw, answer); err != nil {
		return fmt.Errorf("%w: %d bytes that are not the expected JSON", ErrMetadata, len(raw))
	}
	return nil
}

func (m *metadata) once(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, m.host.MetadataURL(path), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Metadata", "true")
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := m.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // read-only
	raw, err := podvm.ReadMax(resp.Body, maxAnswer)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, &statusError{resp.StatusCode, podvm.Printable(string(raw), 200)}
	}
	return raw, nil
}
