package registry

import (
	"encoding/base64"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
	"github.com/sealpod/sealpod/podvm"
)

func TestProxySelection(t *testing.T) {
	env := podvm.Host{LookupEnv: func(k string) (string, bool) {
		v, ok := map[string]string{"https_proxy": "http://env.test:1", "NO_PROXY": "direct.test"}[k]
		return v, ok
	}}
	except := func(list string) *Proxy { return &Proxy{HTTPS: "http://conf.test:2", NoProxy: list} }
	const proxied = "http://conf.test:2"
	tests := map[string]struct {
		conf *Proxy
		url  string
		want string
	}{
		"environment":                         {nil, "https://quay.io/", "http://env.test:1"},
		"environment, exempt":                 {nil, "https://direct.test/", ""},
		"environment, other scheme":           {nil, "http://quay.io/", ""},
		"configuration replaces it":           {except(""), "https://direct.test/", proxied},
		"host":                                {except("quay.io"), "https://quay.io/", ""},
		"subdomain of a host":                 {except("quay.io"), "https://cdn.quay.io/", ""},
		"no part of a name":                   {except("quay.io"), "https://evilquay.io/", proxied},
		"domain":                              {except("10.0.0.0/8,.corp.test"), "https://a.corp.test/", ""},
		"a dotted domain is not its own":      {except(".corp.test"), "https://corp.test/", proxied},
		"star domain":                         {except("*.corp.test"), "https://a.b.corp.test/", ""},
		"other domain":                        {except(".corp.test"), "https://a.corp.test.evil/", proxied},
		"network":                             {except("10.0.0.0/8,.corp.test"), "https://10.1.2.3:5000/", ""},
		"network of IPv6":                     {except("fd00::/8"), "https://[fd00::1]:5000/", ""},
		"outside the network":                 {except("10.0.0.0/8"), "https://11.1.2.3/", proxied},
		"names are not looked up":             {except("10.0.0.0/8"), "https://ten.test/", proxied},
		"address":                             {except("192.0.2.1"), "https://192.0.2.1/", ""},
		"port":                                {except("quay.io:5000"), "https://quay.io:5000/", ""},
		"other port":                          {except("quay.io:5000"), "https://quay.io/", proxied},
		"several, with spaces":                {except("a.test , b.test"), "https://b.test/", ""},
		"all":                                 {except("*"), "https://quay.io/", ""},
		"loopback":                            {except(""), "https://127.0.0.1:5000/", ""},
		"configuration, http":                 {&Proxy{HTTP: "http://conf.test:3"}, "http://quay.io/", "http://conf.test:3"},
		"configuration without https, direct": {&Proxy{HTTP: "http://conf.test:3"}, "https://quay.io/", ""},
		"without a scheme":                    {&Proxy{HTTPS: "conf.test:3128"}, "https://quay.io/", "http://conf.test:3128"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f, _, err := proxyFunc(tt.conf, env)
			if err != nil {
				t.Fatal(err)
			}
			u, _ := url.Parse(tt.url)
			got, err := f(u)
			if err != nil || (got == nil) != (tt.want == "") || got != nil && got.String() != tt.want {
				t.Errorf("%v, %v; want %q", got, err, tt.want)
			}
		})
	}
}

func TestProxyAddresses(t *testing.T) {
	for text, want := range map[string]string{
		"conf.test": "conf.test:80", "http://conf.test:2": "conf.test:2", "https://u:p@conf.test": "conf.test:443",
		"socks5://[::1]": "[::1]:1080", "http://[::1]:3128/": "[::1]:3128",
	} {
		if _, addrs, err := proxyFunc(&Proxy{HTTPS: text}, podvm.Host{}); err != nil || len(addrs) != 1 || addrs[0] != want {
			t.Errorf("%s: %q, %v; want %s", text, addrs, err, want)
		}
	}
}

func TestNewClientRefuses(t *testing.T) {
	if _, err := NewClient(Options{Roots: []string{"not PEM"}}); err == nil {
		t.Error("a root that is no certificate was accepted")
	}
	for _, bad := range []string{"http://user:hunter2@[bad", "://hunter2", "http://", "http://user:hunter2@", "http://a b:hunter2"} {
		for _, p := range []Proxy{{HTTPS: bad}, {HTTP: bad}} {
			if _, err := NewClient(Options{Proxy: &p}); err == nil || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("malformed proxy %q: %v", bad, err)
			}
		}
	}
}

// forward is a proxy that knows every name as target and wants a password.
type forward struct {
	target string
	mu     sync.Mutex
	seen   []string
	code   int // refuses with it
}

func (f *forward) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.seen = append(f.seen, r.Method+" "+r.URL.Host)
	code := f.code
	f.mu.Unlock()
	if r.Header.Get("Proxy-Authorization") != "Basic "+base64.StdEncoding.EncodeToString([]byte("u:hunter2")) {
		code = http.StatusProxyAuthRequired
	}
	if code != 0 {
		w.WriteHeader(code)
		return
	}
	to, err := new(net.Dialer).DialContext(r.Context(), "tcp", f.target)
	if err != nil {
		return
	}
	defer to.Close()
	if r.Method != http.MethodConnect {
		if err := r.Write(to); err != nil {
			return
		}
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.Copy(conn, to)
		return
	}
	w.WriteHeader(http.StatusOK)
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { _, _ = io.Copy(to, conn); to.Close() })
	_, _ = io.Copy(conn, to)
	conn.Close()
	both.Wait()
}

func caOf(s *httptest.Server) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
}

// TestPullThroughProxies: registry and blob are reached through a proxy of
// either kind that knows what the name means, with a CA of its own.
func TestPullThroughProxies(t *testing.T) {
	s := registrytest.NewTLS(t)
	s.Push(t, "a", "1", registrytest.NewImage())
	for name, begin := range map[string]func(http.Handler) *httptest.Server{"http": httptest.NewServer, "https": httptest.NewTLSServer} {
		t.Run(name, func(t *testing.T) {
			f := &forward{target: s.Host}
			p := begin(f)
			p.Config.ErrorLog = log.New(io.Discard, "", 0)
			t.Cleanup(p.Close)
			u, _ := url.Parse(p.URL)
			u.User = url.UserPassword("u", "hunter2")
			pull := func(proxy *url.URL, roots ...string) error {
				c := client(t, func(o *Options) {
					o.Proxy = &Proxy{HTTPS: proxy.String(), NoProxy: "other.test"}
					o.Roots = roots
				})
				defer c.Close()
				ref, _ := ParseReference("example.com/a:1") // in the certificate of httptest
				repo, err := c.Open(t.Context(), Candidate{Reference: ref}, Credentials{})
				if err == nil {
					_, err = repo.Resolve(t.Context())
				}
				return err
			}
			if err := pull(u, caOf(s.Server)); err != nil {
				t.Fatal(err)
			}
			if len(f.seen) == 0 || f.seen[0] != "CONNECT example.com:443" {
				t.Errorf("the proxy saw %q", f.seen)
			}
			if err := pull(u); !strings.Contains(podvm.Cause(err), "certificate of registry example.com is not trusted; add its CA to extra_root_certificates") {
				t.Errorf("without the CA: %v", err)
			}
			wrong := *u
			wrong.User = url.UserPassword("u", "hunter3")
			err := pull(&wrong, caOf(s.Server))
			if !errors.Is(err, ErrUnavailable) || !errors.Is(err, errProxy) || !strings.Contains(podvm.Cause(err), "registry example.com is unreachable: the proxy does not let the connection through") {
				t.Errorf("with the wrong password: %v", err)
			}
			p.Close()
			gone := pull(u, caOf(s.Server))
			if !strings.Contains(podvm.Cause(gone), "check image_pull_proxy") {
				t.Errorf("without the proxy: %v", gone)
			}
			for _, err := range []error{err, gone} {
				if strings.Contains(err.Error(), "hunter") {
					t.Errorf("the error tells the password: %v", err)
				}
			}
		})
	}
}

func TestPlainRegistryThroughAProxy(t *testing.T) {
	s := registrytest.New(t)
	s.Push(t, "a", "1", registrytest.NewImage())
	f := &forward{target: s.Host}
	p := httptest.NewServer(f)
	t.Cleanup(p.Close)
	c := client(t, func(o *Options) {
		o.Proxy = &Proxy{HTTP: strings.Replace(p.URL, "http://", "http://u:hunter2@", 1)}
	})
	if _, err := open(t, c, "registry.test/a:1", Credentials{}); err != nil || len(f.seen) == 0 || f.seen[0] != "GET registry.test" {
		t.Errorf("%v, the proxy saw %q", err, f.seen)
	}
}

func TestRootsComeBesideTheSystems(t *testing.T) {
	s := registrytest.NewTLS(t)
	pool, err := rootPool([]string{caOf(s.Server)})
	if err != nil {
		t.Fatal(err)
	}
	system, err := rootPool(nil)
	if err != nil || system != nil {
		t.Errorf("%v, %v", system, err)
	}
	if two, err := rootPool([]string{caOf(s.Server) + caOf(s.Server), caOf(s.Server)}); err != nil || !two.Equal(pool) {
		t.Errorf("several certificates in one text: %v", err)
	}
}
