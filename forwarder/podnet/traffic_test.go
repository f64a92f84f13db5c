package podnet

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm/testenv"
)

// inside runs f in a namespace of the lab: sockets made there stay there.
func (l *lab) inside(ns string, f func() error) {
	l.t.Helper()
	n, err := openNamespace("/run/netns/" + ns)
	if err != nil {
		l.t.Fatal(err)
	}
	defer n.close()
	if err := n.run(f); err != nil {
		l.t.Fatal(err)
	}
}

// serve answers HTTP at addr in ns: what is posted comes back, and who asked is in
// a header.
func (l *lab) serve(ns, addr string) {
	l.t.Helper()
	var ln net.Listener
	l.inside(ns, func() (err error) {
		ln, err = net.Listen("tcp", addr)
		return err
	})
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("Asked-By", r.RemoteAddr)
		w.Write(b)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		srv.Serve(ln)
	}()
	l.t.Cleanup(func() {
		srv.Close()
		<-done
	})
}

// dialTimeout is how long a test waits for nothing to answer. One that wants an
// answer has time for a lost packet: devices drop them until the kernel's work
// queue came by.
const dialTimeout = time.Second

// post sends a body of a size from ns to the server at addr, and returns the
// address the server saw.
func (l *lab) post(ns, addr string, size int, wait time.Duration) (string, error) {
	l.t.Helper()
	var conn net.Conn
	n, err := openNamespace("/run/netns/" + ns)
	if err != nil {
		l.t.Fatal(err)
	}
	defer n.close()
	if err := n.run(func() (err error) {
		conn, err = net.DialTimeout("tcp", addr, wait)
		return err
	}); err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }, DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	body := make([]byte, size)
	rand.Read(body)
	resp, err := (&http.Client{Transport: tr}).Post("http://"+addr, "application/octet-stream", bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if !bytes.Equal(got, body) {
		return "", errors.New("another body came back")
	}
	host, _, err := net.SplitHostPort(resp.Header.Get("Asked-By"))
	return host, err
}

// http posts bodies both of one packet and of many, and wants from as the address
// the server sees.
func (l *lab) http(ns, addr, from string) {
	l.t.Helper()
	for _, size := range []int{1400, 64 << 10} {
		if got, err := l.post(ns, addr, size, 5*dialTimeout); err != nil || got != from {
			l.t.Errorf("%d bytes from %s to %s: asked by %q, want %q: %v", size, ns, addr, got, from, err)
		}
	}
}

// echo sends datagrams of a size, not to be fragmented, from one namespace to an
// address in another, and wants them back.
func (l *lab) echo(from, to string, addr netip.Addr, size int) error {
	l.t.Helper()
	var server, client net.PacketConn
	network := "udp4"
	if addr.Is6() {
		network = "udp6"
	}
	control := func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
			unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)
		})
	}
	lc := net.ListenConfig{Control: control}
	l.inside(to, func() (err error) {
		server, err = lc.ListenPacket(context.Background(), network, netip.AddrPortFrom(addr, 0).String())
		return err
	})
	defer server.Close()
	l.inside(from, func() (err error) {
		client, err = lc.ListenPacket(context.Background(), network, ":0")
		return err
	})
	defer client.Close()
	sent := make([]byte, size)
	rand.Read(sent)
	buf := make([]byte, 64<<10)
	deadline := time.Now().Add(3 * time.Second)
	server.SetDeadline(deadline)
	client.SetDeadline(deadline)
	for try := range 5 { // the first may wait for a neighbour
		if _, err := client.WriteTo(sent, server.LocalAddr()); err != nil {
			return err
		}
		server.SetReadDeadline(time.Now().Add(time.Second))
		n, peer, err := server.ReadFrom(buf)
		if err != nil {
			if try == 4 {
				return err
			}
			continue
		}
		if _, err := server.WriteTo(buf[:n], peer); err != nil {
			return err
		}
		break
	}
	n, _, err := client.ReadFrom(buf)
	if err == nil && !bytes.Equal(buf[:n], sent) {
		err = errors.New("another datagram came back")
	}
	return err
}

// datagrams wants the largest that fits into mtu to pass both ways, and one byte
// more to be refused where it is sent.
func (l *lab) datagrams(pod, node netip.Addr, mtu int) {
	l.t.Helper()
	largest := mtu - 20 - 8
	if pod.Is6() {
		largest = mtu - 40 - 8
	}
	for _, way := range []struct {
		from, to string
		addr     netip.Addr
	}{{l.pod, l.worker, node}, {l.worker, l.pod, pod}} {
		if err := l.echo(way.from, way.to, way.addr, largest); err != nil {
			l.t.Errorf("%d bytes from %s to %s: %v", largest, way.from, way.addr, err)
		}
	}
	if err := l.echo(l.pod, l.worker, node, largest+1); !errors.Is(err, unix.EMSGSIZE) {
		l.t.Errorf("%d bytes: %v, want %v", largest+1, err, unix.EMSGSIZE)
	}
}

func TestTraffic(t *testing.T) {
	for _, tc := range []struct {
		name    string
		more    map[string]any
		vm      string // the VM's address as the worker knows it
		prepare func(*lab)
		pods    []string
		nodes   []string
		mtu     int
	}{
		{name: "a bridge plugin", vm: "192.168.100.2", pods: []string{"10.244.1.7"}, nodes: []string{"10.244.1.1"}, mtu: 1450},
		{
			name: "a single address and a gateway on the link", vm: "192.168.100.2",
			more: map[string]any{"podip": "10.244.1.7/32", "neighbors": nil, "routes": []map[string]string{
				{"dst": "::ffff:0.0.0.0/0", "gw": "10.244.1.1", "dev": "eth0"}, {"dst": "10.244.1.1/32", "dev": "eth0"},
			}},
			pods: []string{"10.244.1.7"}, nodes: []string{"10.244.1.1", "192.168.100.1"}, mtu: 1450,
		},
		{
			name: "dual stack", vm: "192.168.100.2",
			more: map[string]any{"pod-ips": []string{"fd10::7/64"}, "routes": []map[string]string{
				{"dst": "10.244.1.0/24", "dev": "eth0"}, {"dst": "fd10::/64", "dev": "eth0"}, {"dst": "::/0", "gw": "fd10::1"},
			}},
			pods: []string{"10.244.1.7", "fd10::7"}, nodes: []string{"10.244.1.1", "fd10::1"}, mtu: 1450,
		},
		{
			name: "a worker with IPv6 only", vm: "fd64::2", more: map[string]any{"worker-node-ip": "fd64::1/64"},
			prepare: func(l *lab) {
				l.ip(l.worker, "link", "set", "cni0", "mtu", "1430")
				l.ip(l.cni, "link", "set", "eth0", "mtu", "1430")
				l.ip(l.cni, "link", "set", "vxlan1", "type", "vxlan", "remote", "fd64::2")
			},
			pods: []string{"10.244.1.7"}, nodes: []string{"10.244.1.1"}, mtu: 1430,
		},
		{
			name: "an underlay with small packets", vm: "192.168.100.2",
			prepare: func(l *lab) {
				l.ip(l.vm, "link", "set", "ens3", "mtu", "1300")
				l.ip(l.worker, "link", "set", "ens3", "mtu", "1300")
				l.ip(l.worker, "link", "set", "cni0", "mtu", "1250")
			},
			pods: []string{"10.244.1.7"}, nodes: []string{"10.244.1.1"}, mtu: 1250,
		},
		{
			name: "a network interface with several addresses", vm: "192.168.100.9",
			prepare: func(l *lab) { l.ip(l.vm, "addr", "add", "192.168.100.9/24", "dev", "ens3") },
			pods:    []string{"10.244.1.7"}, nodes: []string{"10.244.1.1"}, mtu: 1450,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t)
			l.tunnelEnd(tc.vm)
			if tc.prepare != nil {
				tc.prepare(l)
			}
			n := l.setup(base(t, tc.more), nil)
			for i := range tc.pods {
				pod, node := netip.MustParseAddr(tc.pods[i]), netip.MustParseAddr(tc.nodes[i])
				l.serve(l.pod, netip.AddrPortFrom(pod, 8080).String())
				l.serve(l.worker, netip.AddrPortFrom(node, 8080).String())
				l.http(l.worker, netip.AddrPortFrom(pod, 8080).String(), node.String())
				l.http(l.pod, netip.AddrPortFrom(node, 8080).String(), pod.String())
				l.datagrams(pod, node, tc.mtu)
			}
			if err := n.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := l.post(l.worker, fmt.Sprintf("[%s]:8080", tc.pods[0]), 1, dialTimeout); err == nil {
				t.Error("the pod answers after Close")
			}
		})
	}
}

// A pod's connection outlives the forwarder: killed or not, the next one keeps
// the device.
func TestTrafficGoesOnOverASecondSetup(t *testing.T) {
	l := newLab(t)
	l.tunnelEnd("192.168.100.2")
	l.setup(base(t, nil), nil)
	l.serve(l.pod, "10.244.1.7:8080")
	var conn net.Conn
	l.inside(l.worker, func() (err error) {
		conn, err = net.DialTimeout("tcp", "10.244.1.7:8080", 3*time.Second)
		return err
	})
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n12"); err != nil {
		t.Fatal(err)
	}
	l.setup(base(t, nil), nil)
	if _, err := io.WriteString(conn, "34"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1024)
	k, err := conn.Read(buf)
	if err != nil || !strings.Contains(string(buf[:k]), "200 OK") {
		t.Fatalf("%q, %v", buf[:k], err)
	}
}

// The VM's connection tracking, which rules of others switch on, does not see the
// tunnel; without our rules it does.
func TestTunnelIsNotTracked(t *testing.T) {
	for _, tc := range []struct {
		name  string
		noNFT bool
		flush []string
	}{
		{"nf_tables", false, []string{"nft", "flush", "table", "ip", rawTable}},
		{"iptables", true, []string{"iptables-legacy", "-t", "raw", "-F"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			testenv.Tool(t, "conntrack")
			l := newLab(t)
			l.tunnelEnd("192.168.100.2")
			l.in(l.vm, "nft", "add table inet others; add chain inet others c { type filter hook input priority 0; }; add rule inet others c ct state new counter")
			l.setup(base(t, nil), func(o *Options) { o.noNFT = tc.noNFT })
			l.in(l.vm, "conntrack", "-F") // the worker's end talks since it was made
			l.serve(l.pod, "10.244.1.7:8080")
			l.http(l.worker, "10.244.1.7:8080", "10.244.1.1")
			if got := l.in(l.vm, "conntrack", "-L", "-p", "udp"); strings.Contains(got, "dport=4789") {
				t.Error(got)
			}
			l.in(l.vm, tc.flush...)
			l.http(l.worker, "10.244.1.7:8080", "10.244.1.1")
			if got := l.in(l.vm, "conntrack", "-L", "-p", "udp"); !strings.Contains(got, "dport=4789") {
				t.Errorf("nothing is tracked without rules either: %s", got)
			}
		})
	}
}
