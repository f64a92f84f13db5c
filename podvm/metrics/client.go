package metrics

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"

	"github.com/sealpod/sealpod/podvm"
)

// maxStatus caps a status, in bytes.
const maxStatus = 4 << 20

// Status asks the socket at path for a daemon's status and decodes it into
// what into points to.
func Status(ctx context.Context, path string, into any) error {
	tr := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://daemon/status", nil)
	if err != nil {
		return err
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("asking %s: %w", path, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end or given up
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("asking %s: HTTP status %d", path, resp.StatusCode)
	}
	b, err := podvm.ReadMax(resp.Body, maxStatus)
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		return fmt.Errorf("reading the status from %s: %w", path, err)
	}
	return nil
}
