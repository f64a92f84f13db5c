package userdata

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/netfault"
)

// errMetadata says that the metadata service gave no usable answer.
var errMetadata = errors.New("no usable answer of the metadata service")

// Bounds of requests.
const (
	requestTimeout = 10 * time.Second
	// tokenTimeout is upstream's.
	tokenTimeout = 5 * time.Second
	maxToken     = 4 << 10
	// maxBase64 leaves room for line breaks.
	maxBase64 = 2 * maxUserData
)

// metadata asks metadata services. Each request has its own time, so that one
// that hangs leaves time for another.
type metadata struct {
	client                 *http.Client
	requestTime, tokenTime time.Duration
}

func newMetadata() *metadata {
	return &metadata{requestTime: requestTimeout, tokenTime: tokenTimeout, client: &http.Client{
		// The address means this machine's host, which no proxy is, and which
		// sends nobody elsewhere.
		Transport: &http.Transport{
			Proxy: nil, DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10,
			DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// get returns the body of an answer, which is 1 to limit bytes long. header is
// names and values in turns.
func (m *metadata) get(ctx context.Context, url string, limit int64, header ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, m.requestTime)
	defer cancel()
	return m.do(ctx, http.MethodGet, url, limit, header)
}

// base64 returns what get returns, decoded.
func (m *metadata) base64(ctx context.Context, url string, header ...string) ([]byte, error) {
	body, err := m.get(ctx, url, maxBase64, header...)
	if err != nil {
		return nil, err
	}
	raw := make([]byte, base64.StdEncoding.DecodedLen(len(body)))
	n, err := base64.StdEncoding.Decode(raw, body)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: user data is not base64: %v", errMetadata, err)
	case n > maxUserData:
		return nil, fmt.Errorf("%w: user data: %w: more than %d bytes", errMetadata, podvm.ErrTooLarge, maxUserData)
	}
	return raw[:n], nil
}

// token returns a token of EC2's metadata service.
func (m *metadata) token(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, m.tokenTime)
	defer cancel()
	b, err := m.do(ctx, http.MethodPut, url, maxToken, []string{"X-aws-ec2-metadata-token-ttl-seconds", "60"})
	return string(b), err
}

func (m *metadata) do(ctx context.Context, method, url string, limit int64, header []string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errMetadata, err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := m.client.Do(req)
	if err != nil {
		return nil, fault(err)
	}
	defer resp.Body.Close() //nolint:errcheck // the body was read, or is of no use
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%w: it answers %s", errMetadata, podvm.Printable(resp.Status, 64))
	}
	body, err := podvm.ReadMax(resp.Body, limit)
	switch {
	case errors.Is(err, podvm.ErrTooLarge):
		return nil, fmt.Errorf("%w: %w", errMetadata, err)
	case err != nil:
		return nil, fault(err)
	case len(body) == 0:
		return nil, fmt.Errorf("%w: it is empty", errMetadata)
	}
	return body, nil
}

// fault says why there is no answer.
func fault(err error) error {
	why, _ := netfault.Why(err)
	return fmt.Errorf("%w: %s: %w", errMetadata, why, err)
}
