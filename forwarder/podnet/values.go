package podnet

import (
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
)

// Protocol says who made a route, an RTPROT number; 0 where nobody said.
type Protocol int

// Scope is the distance to a route's destination, an RT_SCOPE number; 0 is
// the universe, also where nobody said.
type Scope int

// State is that of a neighbour, an NUD number; 0 is permanent, also where
// nobody said, and stateNone that of no entry.
type State int

const stateNone State = -1

var (
	protocols = map[string]Protocol{
		"kernel": unix.RTPROT_KERNEL, "boot": unix.RTPROT_BOOT, "static": unix.RTPROT_STATIC, "dhcp": unix.RTPROT_DHCP,
	}
	scopes = map[string]Scope{
		"universe": unix.RT_SCOPE_UNIVERSE, "site": unix.RT_SCOPE_SITE, "link": unix.RT_SCOPE_LINK,
		"host": unix.RT_SCOPE_HOST, "nowhere": unix.RT_SCOPE_NOWHERE,
	}
	states = map[string]State{
		"none": stateNone, "incomplete": unix.NUD_INCOMPLETE, "reachable": unix.NUD_REACHABLE, "stale": unix.NUD_STALE,
		"delay": unix.NUD_DELAY, "probe": unix.NUD_PROBE, "failed": unix.NUD_FAILED, "noarp": unix.NUD_NOARP,
		"permanent": unix.NUD_PERMANENT,
	}
)

// fields reads texts and keeps the first error, which names the field. An empty
// text is the zero value.
type fields struct{ err error }

func (f *fields) refuse(field, what, text string) {
	if f.err == nil {
		f.err = fmt.Errorf("%s: %s: %q", field, what, podvm.Printable(text, 64))
	}
}

// prefix reads "10.0.0.7/24". cloud-api-adaptor writes its default route as
// "::ffff:0.0.0.0/0": an IPv4 address in IPv6 clothes, with the length of an
// IPv4 prefix. One beyond 32 is taken as that of the whole.
func (f *fields) prefix(field, text string) netip.Prefix {
	if text == "" {
		return netip.Prefix{}
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		f.refuse(field, "not a prefix", text)
		return netip.Prefix{}
	}
	if !p.Addr().Is4In6() {
		return p
	}
	bits := p.Bits()
	if bits > 32 {
		bits -= 96
	}
	if bits < 0 {
		f.refuse(field, "not a prefix of IPv4 nor of IPv6", text)
		return netip.Prefix{}
	}
	return netip.PrefixFrom(p.Addr().Unmap(), bits)
}

// addr reads "10.0.0.1".
func (f *fields) addr(field, text string) netip.Addr {
	if text == "" {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		f.refuse(field, "not an address", text)
		return netip.Addr{}
	}
	return a.Unmap()
}

// mac reads the six bytes of "0a:58:0a:84:03:ce".
func (f *fields) mac(field, text string) net.HardwareAddr {
	if text == "" {
		return nil
	}
	m, err := net.ParseMAC(text)
	if err != nil || len(m) != 6 {
		f.refuse(field, "not a MAC address", text)
		return nil
	}
	return m
}

// oneOf reads a name.
func oneOf[T any](f *fields, field, text string, all map[string]T) T {
	v, ok := all[text]
	if !ok && text != "" {
		f.refuse(field, "unknown", text)
	}
	return v
}
