package httpsrc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"syscall"

	"github.com/sealpod/sealpod/model/source/settings"
	"github.com/sealpod/sealpod/podvm"
)

// errRedirect ends a redirect that must not be followed.
var errRedirect = errors.New("redirect refused")

// send makes one try of a request, with extra headers that may go anywhere, and
// follows redirects. From where a URL led the last time it is tried first, which
// saves a request for each range.
func (c *Client) send(ctx context.Context, r *Request, extra http.Header) (*http.Response, error) {
	home, err := url.Parse(r.URL)
	if err != nil || home.Host == "" || home.Scheme != "http" && home.Scheme != "https" {
		return nil, settings.Usage("the address is not an http or https URL")
	}
	if direct := c.remembered(r); direct != nil {
		resp, err := c.hop(ctx, r, home, direct, extra)
		if err == nil && resp.StatusCode/100 == 2 {
			return resp, nil
		}
		c.remember(r, nil) // such URLs expire
		if err != nil {
			return nil, err
		}
		drain(resp)
	}
	at := home
	for hops := 0; ; hops++ {
		resp, err := c.hop(ctx, r, home, at, extra)
		if err != nil || !r.Redirects || !redirects(resp) {
			if err == nil && resp.StatusCode/100 == 2 && origin(at) != origin(home) {
				c.remember(r, at)
			}
			return resp, err
		}
		next, err := at.Parse(resp.Header.Get("Location"))
		if err == nil && r.Check != nil {
			if cerr := r.Check(resp); cerr != nil {
				drain(resp)
				return nil, cerr
			}
		}
		drain(resp)
		switch {
		case err != nil:
			return nil, fmt.Errorf("%w: to nowhere", errRedirect)
		case hops == maxRedirects:
			return nil, fmt.Errorf("%w: more than %d", errRedirect, maxRedirects)
		case next.Scheme != "https" && (next.Scheme != "http" || at.Scheme == "https") || next.Host == "" || next.User != nil:
			return nil, fmt.Errorf("%w: from %s to %s", errRedirect, at.Scheme, podvm.Printable(next.Scheme, 16))
		}
		at = next
	}
}

// hop sends the request to one place. Only the origin of home gets the headers
// of r and its signature.
func (c *Client) hop(ctx context.Context, r *Request, home, at *url.URL, extra http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, r.method(), at.String(), bytes.NewReader(r.Body))
	if err != nil {
		return nil, settings.Usage("the address is not a URL")
	}
	if len(r.Body) == 0 {
		req.Body, req.GetBody = http.NoBody, nil
	}
	same := origin(at) == origin(home)
	if same {
		for k, v := range r.Header {
			req.Header[k] = v
		}
	}
	for k, v := range extra {
		req.Header[k] = v
	}
	req.Header.Set("User-Agent", "sealpod/"+podvm.Version())
	if same && r.Sign != nil {
		if err := r.Sign(req); err != nil {
			return nil, err
		}
	}
	return c.roundTrip(ctx, req, home.Hostname())
}

func redirects(resp *http.Response) bool {
	return slices.Contains([]int{301, 302, 303, 307, 308}, resp.StatusCode) && resp.Header.Get("Location") != ""
}

// origin is who gets credentials.
func origin(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return u.Scheme + "://" + u.Hostname() + ":" + port
}

func (c *Client) remembered(r *Request) *url.URL {
	if !r.Redirects {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.direct[r.URL]
}

func (c *Client) remember(r *Request, at *url.URL) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.direct, r.URL)
	for k := range c.direct {
		if at == nil || len(c.direct) < maxDirect {
			break
		}
		delete(c.direct, k) // any: it costs a request
	}
	if at != nil {
		c.direct[r.URL] = at
	}
}

// metadata lists services of clouds for the machine itself that are not
// link-local.
// Source: Microsoft "What is IP address 168.63.129.16?", Alibaba ECS "Instance
// metadata", Amazon EC2 "Instance metadata", Google Compute Engine "View and
// query VM metadata".
var metadata = []netip.Addr{
	netip.MustParseAddr("168.63.129.16"),
	netip.MustParseAddr("100.100.100.200"),
	netip.MustParseAddr("fd00:ec2::254"),
	netip.MustParseAddr("fd20:ce::254"),
}

// refuseLocal lets no server lead to addresses that mean something else on every
// machine, where keys and credentials are handed out.
func refuseLocal(_, addr string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return fmt.Errorf("%w: to no address", errRedirect)
	}
	ip := ap.Addr().Unmap()
	if ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsUnspecified() || ip.IsMulticast() || slices.Contains(metadata, ip.WithZone("")) {
		return fmt.Errorf("%w: to %s, an address of the machine itself", errRedirect, ip)
	}
	return nil
}
