package registry

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"syscall"

	"github.com/sealpod/sealpod/podvm"
)

var (
	// errScheme says that a request would have used the wrong one of http and
	// https.
	errScheme = errors.New("scheme refused")
	// errRedirect ends a redirect that must not be followed.
	errRedirect = errors.New("redirect refused")
	// errLocal says that a registry led to an address of this machine or its
	// link, where cloud metadata and our own services are.
	errLocal = errors.New("address of the machine itself")
	// errLink says that the name of a registry resolves to such an address
	// other than loopback.
	errLink = errors.New("address of the link or of metadata")
)

// guard holds requests to what the rules chose: a registry is reached over
// HTTPS, or over plain HTTP when it is marked insecure; an HTTPS registry never
// leads to plain HTTP elsewhere, and none leads to addresses of this machine,
// unless it is there itself.
type guard struct {
	own    http.RoundTripper // to the registry
	others http.RoundTripper // to elsewhere, refuses addresses of this machine
	host   string            // host[:port] of the registry
	plain  bool
}

// RoundTrip implements http.RoundTripper.
func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	switch {
	case req.URL.Scheme == "https" && (!g.plain || req.URL.Host != g.host):
	case req.URL.Scheme == "http" && g.plain:
	default:
		return nil, fmt.Errorf("%w: %s to %s", errScheme, podvm.Printable(req.URL.Scheme, 16), podvm.Printable(req.URL.Host, 128))
	}
	req = req.Clone(req.Context())
	req.Header.Set("User-Agent", "sealpod/"+podvm.Version())
	if req.URL.Hostname() == (&url.URL{Host: g.host}).Hostname() {
		return g.own.RoundTrip(req)
	}
	return g.others.RoundTrip(req)
}

// checkRedirect lets a registry point to its blob store, a few hops at most
// and never from https to something else.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("%w: more than %d", errRedirect, maxRedirects)
	}
	if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return fmt.Errorf("%w: from https to %s", errRedirect, podvm.Printable(req.URL.Scheme, 16))
	}
	if req.URL.User != nil {
		return fmt.Errorf("%w: with credentials in the URL", errRedirect)
	}
	return nil
}

// dialer connects to registries and to where they lead. A name may resolve to
// anything, whoever chose it.
type dialer struct {
	net.Dialer
	proxies []string // host:port; these may be anywhere
}

// toRegistry connects to the registry of a reference, which may be on this
// machine. Its link and cloud metadata are refused to names; who writes such an
// address into a reference means it.
func (d *dialer) toRegistry(ctx context.Context, network, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("splitting the address: %w", err)
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return d.DialContext(ctx, network, addr)
	}
	return d.checked(ctx, network, addr, refuseLink)
}

// toOthers connects to where a registry leads, and to no address of this
// machine.
func (d *dialer) toOthers(ctx context.Context, network, addr string) (net.Conn, error) {
	return d.checked(ctx, network, addr, refuseLocal)
}

func (d *dialer) checked(ctx context.Context, network, addr string, check func(netip.Addr) error) (net.Conn, error) {
	one := d.Dialer
	if !slices.Contains(d.proxies, addr) {
		// Asked about each address that a name resolves to.
		one.Control = func(_, addr string, _ syscall.RawConn) error {
			ap, err := netip.ParseAddrPort(addr)
			if err != nil {
				return fmt.Errorf("%w: %s is not an address", errLocal, podvm.Printable(addr, 64))
			}
			return check(ap.Addr().Unmap())
		}
	}
	return one.DialContext(ctx, network, addr)
}

// metadata lists services of clouds for the machine itself that are not
// link-local: Azure's wire server, and the metadata of Alibaba Cloud and, over
// IPv6, of AWS and Google Cloud.
// Source: Microsoft "What is IP address 168.63.129.16?", Alibaba ECS "Instance
// metadata", Amazon EC2 "Instance metadata", Google Compute Engine "View and
// query VM metadata".
var metadata = []netip.Addr{
	netip.MustParseAddr("168.63.129.16"),
	netip.MustParseAddr("100.100.100.200"),
	netip.MustParseAddr("fd00:ec2::254"),
	netip.MustParseAddr("fd20:ce::254"),
}

// refuseLink refuses the addresses that no registry with a name has: those that
// mean something else on every machine.
func refuseLink(ip netip.Addr) error {
	if ip.IsLinkLocalUnicast() || ip.IsUnspecified() || ip.IsMulticast() || slices.Contains(metadata, ip.WithZone("")) {
		return fmt.Errorf("%w: %s", errLink, ip)
	}
	return nil
}

// refuseLocal refuses those and loopback.
func refuseLocal(ip netip.Addr) error {
	if ip.IsLoopback() || refuseLink(ip) != nil {
		return fmt.Errorf("%w: %s", errLocal, ip)
	}
	return nil
}
