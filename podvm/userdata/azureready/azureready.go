// Package azureready tells Azure's fabric that this VM is up. Azure takes a VM
// for failed that never says so, and a pod VM has no Azure agent.
//
// Data path: the applet azure-ready asks the WireServer, which every VM on Azure
// reaches at 168.63.129.16, for protocol versions and for the goal state, and
// posts a health report that names what the goal state does.
//
// Trust: the answers are the host's. They are capped, and parsed by encoding/xml,
// which expands no entities that a document defines, fetches nothing, and refuses
// more than 10,000 levels; the four texts taken from them are capped and checked,
// and go back to the host only. Nothing in the VM depends on them.
//
// Sources: cloud-api-adaptor src/cloud-api-adaptor/cmd/azure-ready at fbdde756;
// "Create a generalized image without a provisioning agent" in the documentation
// of Azure's virtual machines.
package azureready

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/netfault"
)

// Defaults of Config.
const (
	DefaultEndpoint = "http://168.63.129.16"
	DefaultTimeout  = 30 * time.Second
)

// ErrWireServer says that the WireServer gave no usable answer.
var ErrWireServer = errors.New("no usable answer of the WireServer")

// The protocol: the version asked for, if there is a choice, and headers.
const (
	preferred     = "2015-04-05"
	agentName     = "azure-ready"
	versionHeader = "x-ms-version"
	agentHeader   = "x-ms-agent-name"
)

// Caps, in bytes, of an answer and of a text in one.
const (
	maxAnswer = 1 << 20
	maxText   = 256
)

// Config says whom to tell.
type Config struct {
	// Endpoint is the WireServer's base URL; "" means DefaultEndpoint.
	Endpoint string
	// Timeout bounds each of the three requests; 0 means DefaultTimeout.
	Timeout time.Duration
	Log     *slog.Logger // nil means slog.Default()
}

// client is a run of Report.
type client struct {
	Config
	http *http.Client
}

// Report says that this VM is ready, once. Errors: ErrWireServer.
func Report(ctx context.Context, c Config) error {
	if c.Endpoint == "" {
		c.Endpoint = DefaultEndpoint
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	c.Endpoint = strings.TrimRight(c.Endpoint, "/")
	if u, err := url.Parse(c.Endpoint); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("the endpoint %q is not http(s)://HOST", podvm.Printable(c.Endpoint, 128))
	}
	return (&client{c, &http.Client{
		// The address means this machine's host, which no proxy is, and which
		// sends nobody elsewhere.
		Transport:     &http.Transport{Proxy: nil, DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}).report(ctx)
}

func (c *client) report(ctx context.Context) error {
	answer, err := c.do(ctx, http.MethodGet, "/?comp=versions", "", nil)
	if err != nil {
		return fmt.Errorf("asking for protocol versions: %w", err)
	}
	version, err := chooseVersion(answer)
	if err != nil {
		return fmt.Errorf("reading protocol versions: %w", err)
	}
	if answer, err = c.do(ctx, http.MethodGet, "/machine/?comp=goalstate", version, nil); err != nil {
		return fmt.Errorf("asking for the goal state: %w", err)
	}
	goal, err := parseGoalState(answer)
	if err != nil {
		return fmt.Errorf("reading the goal state: %w", err)
	}
	c.Log.Debug("The goal state is here", "version", version, "incarnation", goal.incarnation, "container", goal.container, "instance", goal.instance)
	body, err := healthReport(goal)
	if err != nil {
		return fmt.Errorf("writing the health report: %w", err)
	}
	if _, err := c.do(ctx, http.MethodPost, "/machine?comp=health", version, body); err != nil {
		return fmt.Errorf("reporting ready: %w", err)
	}
	c.Log.Info("Azure knows that this VM is ready", "endpoint", c.Endpoint)
	return nil
}

// do returns the body of an answer with a code of 200 to 299. version is "" for
// none. It has Timeout for all of it.
func (c *client) do(ctx context.Context, method, path, version string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, c.Endpoint+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrWireServer, err)
	}
	req.Header.Set(agentHeader, agentName)
	if version != "" {
		req.Header.Set(versionHeader, version)
	}
	if body != nil {
		req.Header.Set("Content-Type", "text/xml; charset=utf-8")
	}
	c.Log.Debug("Asking the WireServer", "method", method, "path", path)
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fault(err)
	}
	defer resp.Body.Close() //nolint:errcheck // the body was read, or is of no use
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		start, _ := io.ReadAll(io.LimitReader(resp.Body, maxText))
		return nil, fmt.Errorf("%w: it answers %s: %s", ErrWireServer, podvm.Printable(resp.Status, 64), podvm.Printable(string(start), maxText))
	}
	answer, err := podvm.ReadMax(resp.Body, maxAnswer)
	switch {
	case errors.Is(err, podvm.ErrTooLarge):
		return nil, fmt.Errorf("%w: %w", ErrWireServer, err)
	case err != nil:
		return nil, fault(err)
	}
	return answer, nil
}

func fault(err error) error {
	why, _ := netfault.Why(err)
	return fmt.Errorf("%w: %s: %w", ErrWireServer, why, err)
}
