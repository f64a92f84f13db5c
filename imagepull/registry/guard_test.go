package registry

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"sync"
	"testing"
)

func TestAddressesOfTheMachineAreRefused(t *testing.T) {
	for addr, refused := range map[string]bool{
		"127.0.0.1:443": true, "127.255.0.9:443": true, "[::1]:443": true, "[::ffff:127.0.0.1]:443": true,
		"169.254.169.254:80": true, "[fe80::1%eth0]:80": true, "0.0.0.0:80": true, "[::]:80": true,
		"168.63.129.16:80": true, "[::ffff:168.63.129.16]:80": true, "100.100.100.200:80": true, "[fd00:ec2::254]:80": true, "[fd20:ce::254]:80": true,
		"224.0.0.1:80": true, "[ff02::1]:80": true, "nonsense": true,
		"10.0.0.1:443": false, "192.168.1.1:443": false, "[fd00::1]:443": false, "192.0.2.1:443": false, "[2001:db8::1]:443": false,
	} {
		if err := refuseLocal("tcp", addr, nil); (err != nil) != refused || err != nil && !errors.Is(err, errLocal) {
			t.Errorf("%s: %v", addr, err)
		}
	}
}

// TestLocalProxyOpensNothingBesideIt: a proxy on this machine does not make its
// other ports reachable for registries.
func TestLocalProxyOpensNothingBesideIt(t *testing.T) {
	proxy, other := httptest.NewServer(nil), httptest.NewServer(nil)
	t.Cleanup(proxy.Close)
	t.Cleanup(other.Close)
	c := client(t, func(o *Options) { o.Proxy = &Proxy{HTTPS: proxy.URL} })
	conn, err := c.others.DialContext(t.Context(), "tcp", proxy.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if conn, err = c.others.DialContext(t.Context(), "tcp", other.Listener.Addr().String()); !errors.Is(err, errLocal) {
		t.Errorf("connected to %v: %v", conn, err)
	}
}

// TestConnectionToALocalRegistryIsItsOwn: once it is there, no other registry
// gets to use it.
func TestConnectionToALocalRegistryIsItsOwn(t *testing.T) {
	local := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(local.Close)
	c := client(t, nil)
	ask := func(registry string) error {
		g := &guard{own: c.own, others: c.others, host: registry, plain: true}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, local.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := g.RoundTrip(req)
		if err == nil {
			discard(resp)
		}
		return err
	}
	if err := ask(local.Listener.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if err := ask("registry.test"); !errors.Is(err, errLocal) {
		t.Errorf("led to a local registry: %v", err)
	}
}

// TestSchemesOfARegistry: https throughout, or what an insecure one needs.
func TestSchemesOfARegistry(t *testing.T) {
	for name, tt := range map[string]struct {
		plain   bool
		url     string
		allowed bool
	}{
		"https registry":                 {false, "https://r.test/v2/", true},
		"https registry, blob store":     {false, "https://s.test/", true},
		"https registry over http":       {false, "http://r.test/v2/", false},
		"https registry, plain store":    {false, "http://s.test/", false},
		"insecure registry":              {true, "http://r.test/v2/", true},
		"insecure registry over https":   {true, "https://r.test/v2/", false},
		"insecure registry, plain store": {true, "http://s.test/", true},
		"insecure registry, https store": {true, "https://s.test/", true},
		"insecure registry, file":        {true, "file:///etc/passwd", false},
	} {
		t.Run(name, func(t *testing.T) {
			passed := false
			pass := roundTripper(func(r *http.Request) (*http.Response, error) {
				passed = true
				return &http.Response{Request: r}, nil
			})
			g := &guard{host: "r.test", plain: tt.plain, own: pass, others: pass}
			u, err := url.Parse(tt.url)
			if err != nil {
				t.Fatal(err)
			}
			_, err = g.RoundTrip((&http.Request{URL: u, Header: http.Header{}}).WithContext(t.Context()))
			if passed != tt.allowed || !tt.allowed && !errors.Is(err, errScheme) {
				t.Errorf("passed %v, %v", passed, err)
			}
		})
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestDockerHubIsElsewhere: its name is not where its registry is.
func TestDockerHubIsElsewhere(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	p := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, r.Method+" "+r.URL.Host)
		w.WriteHeader(http.StatusForbidden)
	}))
	t.Cleanup(p.Close)
	c := client(t, func(o *Options) { o.Proxy = &Proxy{HTTPS: p.URL} })
	for _, image := range []string{"nginx", "docker.io/team/app", "index.docker.io/team/app", "registry-1.docker.io/team/app"} {
		ref, err := ParseReference(image)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Open(t.Context(), Candidate{Reference: ref}, Credentials{}); !errors.Is(err, errProxy) {
			t.Errorf("%s: %v", image, err)
		}
	}
	if want := "CONNECT index.docker.io:443"; !slices.Equal(asked, []string{want, want, want, "CONNECT registry-1.docker.io:443"}) {
		t.Errorf("asked %q", asked)
	}
}
