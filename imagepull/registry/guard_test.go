package registry

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/sealpod/sealpod/podvm"
)

func TestAddressesOfTheMachineAreRefused(t *testing.T) {
	const loopback, link, others = 1, 2, 0
	for addr, kind := range map[string]int{
		"127.0.0.1": loopback, "127.255.0.9": loopback, "::1": loopback, "::ffff:127.0.0.1": loopback,
		"169.254.169.254": link, "fe80::1%eth0": link, "0.0.0.0": link, "::": link,
		"168.63.129.16": link, "::ffff:168.63.129.16": link, "100.100.100.200": link, "fd00:ec2::254": link, "fd20:ce::254": link, "fd00:ec2::254%lo": link,
		"224.0.0.1": link, "ff02::1": link,
		"10.0.0.1": others, "192.168.1.1": others, "fd00::1": others, "192.0.2.1": others, "2001:db8::1": others,
	} {
		ip := netip.MustParseAddr(addr).Unmap()
		if err := refuseLocal(ip); errors.Is(err, errLocal) != (kind != others) {
			t.Errorf("led to %s: %v", addr, err)
		}
		if err := refuseLink(ip); errors.Is(err, errLink) != (kind == link) {
			t.Errorf("registry at %s: %v", addr, err)
		}
	}
}

// named is a resolver for which every name has one address.
func named(t *testing.T, addr string) *net.Resolver {
	answer := func(question []byte) []byte {
		var p dnsmessage.Parser
		h, err := p.Start(question)
		if err != nil {
			t.Error(err)
		}
		q, err := p.Question()
		if err != nil {
			t.Error(err)
		}
		h.Response = true
		m := dnsmessage.Message{Header: h, Questions: []dnsmessage.Question{q}}
		ip, rh := netip.MustParseAddr(addr), dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class}
		if ip.Is4() && q.Type == dnsmessage.TypeA {
			m.Answers = []dnsmessage.Resource{{Header: rh, Body: &dnsmessage.AResource{A: ip.As4()}}}
		} else if ip.Is6() && q.Type == dnsmessage.TypeAAAA {
			m.Answers = []dnsmessage.Resource{{Header: rh, Body: &dnsmessage.AAAAResource{AAAA: ip.As16()}}}
		}
		raw, err := m.Pack()
		if err != nil {
			t.Error(err)
		}
		return raw
	}
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		near, far := net.Pipe()
		go func() {
			defer far.Close()
			var size [2]byte
			for {
				if _, err := io.ReadFull(far, size[:]); err != nil {
					return
				}
				question := make([]byte, binary.BigEndian.Uint16(size[:]))
				if _, err := io.ReadFull(far, question); err != nil {
					return
				}
				raw := answer(question)
				if _, err := far.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(raw))), raw...)); err != nil {
					return
				}
			}
		}()
		return near, nil
	}}
}

// TestNameOfARegistryThatResolvesToTheLink: who answers for a name does not get
// to send us to the metadata of the machine; on loopback a registry may be.
func TestNameOfARegistryThatResolvesToTheLink(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(s.Close)
	port := s.Listener.Addr().(*net.TCPAddr).Port
	ask := func(addr string) error {
		c := client(t, func(o *Options) { o.resolver = named(t, addr) })
		ref, err := ParseReference(fmt.Sprintf("registry.test:%d/a", port))
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Open(t.Context(), Candidate{Reference: ref, Insecure: true}, Credentials{})
		return err
	}
	if err := ask("127.0.0.1"); err != nil {
		t.Errorf("on loopback: %v", err)
	}
	for _, addr := range []string{"169.254.169.254", "fd00:ec2::254", "fe80::1", "100.100.100.200", "0.0.0.0"} {
		err := ask(addr)
		if !errors.Is(err, errLink) || !strings.Contains(podvm.Cause(err), "resolves to a link-local or cloud metadata address") {
			t.Errorf("%s: %v (%s)", addr, err, podvm.Cause(err))
		}
	}
}

// TestRegistryByAnAddressOfTheMachine: a reference that spells such an address
// out means it. This one leads to loopback, where nothing listens.
func TestRegistryByAnAddressOfTheMachine(t *testing.T) {
	if _, err := client(t, nil).own.DialContext(t.Context(), "tcp", "0.0.0.0:1"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Error(err)
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
