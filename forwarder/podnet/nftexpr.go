package podnet

import (
	"encoding/binary"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// nftChain is a chain at a hook of the kernel that accepts what no rule decides.
type nftChain struct {
	name, kind string // kind is filter or nat
	hook       uint32 // NF_INET_…
	priority   int32
	rules      [][]nftExpr
}

// nftExpr is one expression of a rule: its name and its attributes.
type nftExpr struct {
	name  string
	attrs []*nl.RtAttr
}

// What golang.org/x/sys/unix has no names for. Source: Linux
// include/uapi/linux/netfilter.h, nf_conntrack_common.h and nf_tables.h v6.12.
const (
	nfDrop     = 0 // NF_DROP
	nfAccept   = 1 // NF_ACCEPT
	ctKeyState = 0 // NFT_CT_STATE
	// ctEstablished is the bits of states established and related.
	ctEstablished = 1<<1 | 1<<2
)

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

func attr(kind int, data []byte) *nl.RtAttr { return nl.NewRtAttr(kind, data) }

func nested(kind int, children ...*nl.RtAttr) *nl.RtAttr {
	a := nl.NewRtAttr(kind|unix.NLA_F_NESTED, nil)
	for _, c := range children {
		a.AddChild(c)
	}
	return a
}

// compare ends a rule unless register 1 is value, or is not if op says so.
func compare(op uint32, value []byte) nftExpr {
	return nftExpr{"cmp", []*nl.RtAttr{
		attr(unix.NFTA_CMP_SREG, be32(unix.NFT_REG_1)), attr(unix.NFTA_CMP_OP, be32(op)),
		nested(unix.NFTA_CMP_DATA, attr(unix.NFTA_DATA_VALUE, value)),
	}}
}

// meta compares a property of the packet.
func meta(key uint32, value []byte) []nftExpr {
	return []nftExpr{
		{"meta", []*nl.RtAttr{attr(unix.NFTA_META_DREG, be32(unix.NFT_REG_1)), attr(unix.NFTA_META_KEY, be32(key))}},
		compare(unix.NFT_CMP_EQ, value),
	}
}

// payload compares bytes of the packet's header.
func payload(base, offset uint32, value []byte) []nftExpr {
	return []nftExpr{
		{"payload", []*nl.RtAttr{
			attr(unix.NFTA_PAYLOAD_DREG, be32(unix.NFT_REG_1)), attr(unix.NFTA_PAYLOAD_BASE, be32(base)),
			attr(unix.NFTA_PAYLOAD_OFFSET, be32(offset)), attr(unix.NFTA_PAYLOAD_LEN, be32(uint32(len(value)))),
		}},
		compare(unix.NFT_CMP_EQ, value),
	}
}

// source and destination compare an address of the IP header.
func source(a netip.Addr) []nftExpr {
	if a.Is6() {
		return payload(unix.NFT_PAYLOAD_NETWORK_HEADER, 8, a.AsSlice())
	}
	return payload(unix.NFT_PAYLOAD_NETWORK_HEADER, 12, a.AsSlice())
}

func destination(a netip.Addr) []nftExpr {
	if a.Is6() {
		return payload(unix.NFT_PAYLOAD_NETWORK_HEADER, 24, a.AsSlice())
	}
	return payload(unix.NFT_PAYLOAD_NETWORK_HEADER, 16, a.AsSlice())
}

// toPort compares the protocol and its destination port.
func toPort(protocol byte, port int) []nftExpr {
	return append(meta(unix.NFT_META_L4PROTO, []byte{protocol}), payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, be16(uint16(port)))...)
}

// device compares the name of the device a packet came in or goes out by.
func device(key uint32, name string) []nftExpr {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return meta(key, padded)
}

// established ends a rule for packets that belong to no connection known.
func established() []nftExpr {
	return []nftExpr{
		{"ct", []*nl.RtAttr{attr(unix.NFTA_CT_DREG, be32(unix.NFT_REG_1)), attr(unix.NFTA_CT_KEY, be32(ctKeyState))}},
		{"bitwise", []*nl.RtAttr{
			attr(unix.NFTA_BITWISE_SREG, be32(unix.NFT_REG_1)), attr(unix.NFTA_BITWISE_DREG, be32(unix.NFT_REG_1)),
			attr(unix.NFTA_BITWISE_LEN, be32(4)),
			// Registers hold numbers in the order of the machine.
			nested(unix.NFTA_BITWISE_MASK, attr(unix.NFTA_DATA_VALUE, nl.Uint32Attr(ctEstablished))),
			nested(unix.NFTA_BITWISE_XOR, attr(unix.NFTA_DATA_VALUE, nl.Uint32Attr(0))),
		}},
		compare(unix.NFT_CMP_NEQ, nl.Uint32Attr(0)),
	}
}

// verdict decides about the packet: nfAccept or nfDrop.
func verdict(code uint32) nftExpr {
	return nftExpr{"immediate", []*nl.RtAttr{
		attr(unix.NFTA_IMMEDIATE_DREG, be32(unix.NFT_REG_VERDICT)),
		nested(unix.NFTA_IMMEDIATE_DATA, nested(unix.NFTA_DATA_VERDICT, attr(unix.NFTA_VERDICT_CODE, be32(code)))),
	}}
}

// rule makes one of its parts.
func rule(last nftExpr, parts ...[]nftExpr) []nftExpr {
	var all []nftExpr
	for _, p := range parts {
		all = append(all, p...)
	}
	return append(all, last)
}
