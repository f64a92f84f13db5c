package metrics

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"

	"github.com/sealpod/sealpod/podvm"
)

// maxStatus caps an answer, in bytes.
const maxStatus = 4 << 20

// Status asks the socket at path for a daemon's status and decodes it into
// what into points to.
func Status(ctx context.Context, path string, into any) error {
	b, err := ask(ctx, path, http.MethodGet, "/status", "")
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		return fmt.Errorf("reading the status from %s: %w", path, err)
	}
	return nil
}

// Text asks the socket at path for a daemon's metrics.
func Text(ctx context.Context, path string) (string, error) {
	b, err := ask(ctx, path, http.MethodGet, "/metrics", "")
	return string(b), err
}

// LogLevel changes the log level of the daemon with the socket at path, or, if to
// is "", only asks for it. It returns the level in force.
func LogLevel(ctx context.Context, path, to string) (string, error) {
	method := http.MethodPut
	if to == "" {
		method = http.MethodGet
	}
	b, err := ask(ctx, path, method, levelPath, to)
	return podvm.Printable(strings.TrimSpace(string(b)), 32), err
}

// ask sends a request to the socket at path.
func ask(ctx context.Context, path, method, what, body string) ([]byte, error) {
	tr := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://daemon"+what, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("asking %s: %w", path, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end or given up
	b, err := podvm.ReadMax(resp.Body, maxStatus)
	if err != nil {
		return nil, fmt.Errorf("asking %s: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("asking %s: HTTP status %d: %s", path, resp.StatusCode, podvm.Printable(strings.TrimSpace(string(b)), 256))
	}
	return b, nil
}

// Counters reads what only grows from a text exposition: values by name with
// labels, as in `n_total{result="ok"}`. Lines it cannot read are left out.
func Counters(text string) map[string]float64 {
	out := map[string]float64{}
	counts := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if f := strings.Fields(line); len(f) == 4 && f[0] == "#" && f[1] == "TYPE" {
			counts = ""
			if f[3] == "counter" {
				counts = f[2]
			}
			continue
		}
		at := strings.LastIndexByte(line, ' ')
		if at < 0 || counts == "" || line[0] == '#' || !strings.HasPrefix(line, counts) {
			continue
		}
		if n, err := strconv.ParseFloat(line[at+1:], 64); err == nil {
			out[line[:at]] = n
		}
	}
	return out
}
