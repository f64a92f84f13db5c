package forwarder

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// peers are the open connections. When there is no place left, a new one takes
// that of another: a port that answers nobody is what a flood wants.
type peers struct {
	limits limits
	mu     sync.Mutex
	all    map[net.Conn]*peer
	// clients of all are known, the others are strangers.
	clients int
}

type peer struct {
	conn   *net.TCPConn
	source netip.Prefix
	since  time.Time
	spoke  bool // began a handshake
	client bool
	gone   bool // another has its place
}

func newPeers(l limits) *peers { return &peers{limits: l, all: map[net.Conn]*peer{}} }

// enter adds a stranger.
func (p *peers) enter(conn *net.TCPConn) *peer {
	n := &peer{conn: conn, source: source(conn), since: time.Now()}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.all)-p.clients >= p.limits.strangers {
		p.displace(p.leastStranger())
	}
	p.all[conn] = n
	return n
}

// spoke notes that a stranger began a handshake.
func (p *peers) spoke(conn net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := p.all[conn]; n != nil {
		n.spoke = true
	}
}

// admit makes a stranger a client, unless it was displaced meanwhile.
func (p *peers) admit(n *peer) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n.gone {
		return false
	}
	if p.clients >= p.limits.clients {
		p.displace(p.leastClient())
	}
	n.client = true
	p.clients++
	return true
}

// shed ends a stranger, if there is one.
func (p *peers) shed() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.displace(p.leastStranger())
}

// leave forgets a connection.
func (p *peers) leave(n *peer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.remove(n)
}

// displaced reports whether another connection has the place of n.
func (p *peers) displaced(n *peer) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return n.gone
}

// counts returns how many of each there are.
func (p *peers) counts() (strangers, clients int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.all) - p.clients, p.clients
}

func (p *peers) remove(n *peer) {
	if p.all[n.conn] != n {
		return
	}
	delete(p.all, n.conn)
	if n.client {
		p.clients--
	}
}

// displace ends a connection at once; its own goroutine tidies up.
func (p *peers) displace(n *peer) {
	if n == nil {
		return
	}
	n.gone = true
	p.remove(n)
	_ = n.conn.SetLinger(0)
	_ = n.conn.Close()
}

// leastStranger is one of the network that has most of them: the oldest that has
// said nothing, else the oldest.
func (p *peers) leastStranger() *peer {
	from := map[netip.Prefix]int{}
	for _, n := range p.all {
		if !n.client {
			from[n.source]++
		}
	}
	var least *peer
	for _, n := range p.all {
		if n.client {
			continue
		}
		switch {
		case least == nil || from[n.source] > from[least.source]:
			least = n
		case from[n.source] < from[least.source]:
		case n.spoke != least.spoke:
			if least.spoke {
				least = n
			}
		case n.since.Before(least.since):
			least = n
		}
	}
	return least
}

// leastClient is the one that has been silent for longest, those that never said
// anything first. An adaptor that comes back has nothing to say about the
// connections of its predecessor, but they are silent.
func (p *peers) leastClient() *peer {
	var least *peer
	var longest uint64
	for _, n := range p.all {
		if !n.client {
			continue
		}
		if s := silence(n.conn); least == nil || s > longest {
			least, longest = n, s
		}
	}
	return least
}

// silence returns for how many milliseconds nothing came from a peer; more than
// any time if nothing ever came.
func silence(conn *net.TCPConn) uint64 {
	const ever = 1 << 40
	raw, err := conn.SyscallConn()
	if err != nil {
		return ever
	}
	var info *unix.TCPInfo
	if cerr := raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	}); cerr != nil || err != nil {
		return ever
	}
	if info.Bytes_received == 0 {
		return ever + uint64(info.Last_ack_recv)
	}
	return uint64(info.Last_data_recv)
}

// source is the network a connection comes from, as far as one host has it.
func source(conn *net.TCPConn) netip.Prefix {
	at, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return netip.Prefix{}
	}
	addr, bits := at.Addr().Unmap().WithZone(""), 32
	if addr.Is6() {
		bits = 64
	}
	prefix, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return prefix
}
