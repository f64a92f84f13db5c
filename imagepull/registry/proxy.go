package registry

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"

	"golang.org/x/net/http/httpproxy"

	"github.com/sealpod/sealpod/podvm"
)

// Proxy names the proxies for https and http URLs and a comma-separated list
// of hosts, domains and CIDRs, each perhaps with a port, that are reached
// directly. A domain covers its subdomains; with a leading dot, those alone.
// Loopback never uses a proxy.
// Source: golang.org/x/net/http/httpproxy at v0.57.0.
type Proxy struct{ HTTPS, HTTP, NoProxy string }

// errProxy says that a proxy does not let a connection through.
var errProxy = errors.New("refused by the proxy")

// proxyFunc returns what picks the proxy for a URL, and the host:port of all
// proxies.
func proxyFunc(p *Proxy, host podvm.Host) (func(*url.URL) (*url.URL, error), []string, error) {
	env := func(upper, lower string) string {
		if v := host.Getenv(upper); v != "" {
			return v
		}
		return host.Getenv(lower)
	}
	conf := httpproxy.Config{
		HTTPSProxy: env("HTTPS_PROXY", "https_proxy"),
		HTTPProxy:  env("HTTP_PROXY", "http_proxy"),
		NoProxy:    env("NO_PROXY", "no_proxy"),
	}
	if p != nil {
		conf = httpproxy.Config{HTTPSProxy: p.HTTPS, HTTPProxy: p.HTTP, NoProxy: p.NoProxy}
	}
	var addrs []string
	for scheme, s := range map[string]string{"https": conf.HTTPSProxy, "http": conf.HTTPProxy} {
		if s == "" {
			continue
		}
		// httpproxy quietly does without a proxy whose URL it cannot read.
		own, bad := url.Parse(s)
		isURL := strings.Contains(s, "://")
		u, err := (&httpproxy.Config{HTTPSProxy: s, HTTPProxy: s}).ProxyFunc()(&url.URL{Scheme: scheme, Host: "registry.invalid"})
		if err != nil || u == nil || u.Hostname() == "" || isURL && (bad != nil || own.Hostname() == "") {
			return nil, nil, fmt.Errorf("the %s proxy is not [http[s]://|socks5://][user:password@]host[:port]", scheme) // it may hold a password
		}
		port := u.Port()
		if port == "" {
			port = map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
		}
		addrs = append(addrs, net.JoinHostPort(u.Hostname(), port))
	}
	return conf.ProxyFunc(), addrs, nil
}

// checkProxy judges a proxy's answer to CONNECT.
func checkProxy(_ context.Context, proxy *url.URL, req *http.Request, resp *http.Response) error {
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	return fmt.Errorf("%w: %s answered %d for %s", errProxy, proxy.Host, resp.StatusCode, podvm.Printable(req.URL.Host, 128))
}
