package podnet

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Rules are written in the kernel's nf_tables messages: the handful of kinds below
// are less than what a library for all of them brings along, and one transaction
// exchanges a whole table, so a crash leaves the old or the new one.
// Source: Linux include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h v6.12;
// numbers are big-endian throughout.

// errNoNFT says that the kernel lacks nf_tables, or a part of it.
var errNoNFT = errors.New("the kernel has no nf_tables")

// batch is a transaction of nf_tables.
type batch struct {
	family byte // NFPROTO_…
	seq    uint32
	buf    []byte
}

// message appends a message; its header is host-endian, as all of netlink.
func (b *batch) message(kind, flags uint16, family byte, resource uint16, attrs ...*nl.RtAttr) {
	start := len(b.buf)
	b.buf = append(b.buf, make([]byte, unix.NLMSG_HDRLEN)...)
	b.buf = append(b.buf, family, unix.NFNETLINK_V0)
	b.buf = append(b.buf, be16(resource)...)
	for _, a := range attrs {
		b.buf = append(b.buf, a.Serialize()...)
	}
	header := b.buf[start:]
	native := nl.NativeEndian()
	native.PutUint32(header, uint32(len(header)))
	native.PutUint16(header[4:], kind)
	native.PutUint16(header[6:], flags|unix.NLM_F_REQUEST)
	b.seq++
	native.PutUint32(header[8:], b.seq)
}

func (b *batch) add(kind, flags uint16, attrs ...*nl.RtAttr) {
	b.message(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags|unix.NLM_F_ACK, b.family, 0, attrs...)
}

// create makes a table of these chains, which must not be there.
func (b *batch) create(name string, chains []nftChain) {
	b.add(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, attr(unix.NFTA_TABLE_NAME, nl.ZeroTerminated(name)))
	for _, c := range chains {
		b.add(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE,
			attr(unix.NFTA_CHAIN_TABLE, nl.ZeroTerminated(name)), attr(unix.NFTA_CHAIN_NAME, nl.ZeroTerminated(c.name)),
			nested(unix.NFTA_CHAIN_HOOK, attr(unix.NFTA_HOOK_HOOKNUM, be32(c.hook)), attr(unix.NFTA_HOOK_PRIORITY, be32(uint32(c.priority)))),
			attr(unix.NFTA_CHAIN_TYPE, nl.ZeroTerminated(c.kind)))
		for _, r := range c.rules {
			exprs := nested(unix.NFTA_RULE_EXPRESSIONS)
			for _, e := range r {
				exprs.AddChild(nested(unix.NFTA_LIST_ELEM, attr(unix.NFTA_EXPR_NAME, nl.ZeroTerminated(e.name)), nested(unix.NFTA_EXPR_DATA, e.attrs...)))
			}
			b.add(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND,
				attr(unix.NFTA_RULE_TABLE, nl.ZeroTerminated(name)), attr(unix.NFTA_RULE_CHAIN, nl.ZeroTerminated(c.name)), exprs)
		}
	}
}

// drop deletes a table, which must be there.
func (b *batch) drop(table string) {
	b.add(unix.NFT_MSG_DELTABLE, 0, attr(unix.NFTA_TABLE_NAME, nl.ZeroTerminated(table)))
}

// nft applies what fill puts into a transaction for the family.
//
// Errors: errNoNFT, those of the kernel.
func nft(family byte, fill func(*batch)) error {
	b := &batch{family: family}
	b.message(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	fill(b)
	last := b.seq
	b.message(unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	return b.send(last)
}

// nftHas reports whether there is a table of the family. Asking costs next to
// nothing, a transaction that deletes or fails 15 ms of waiting for all
// processors.
//
// Errors: errNoNFT, those of the kernel.
func nftHas(family byte, table string) (bool, error) {
	b := &batch{family: family}
	b.add(unix.NFT_MSG_GETTABLE, 0, attr(unix.NFTA_TABLE_NAME, nl.ZeroTerminated(table)))
	err := b.send(b.seq)
	switch {
	case errors.Is(err, unix.ENOENT):
		return false, nil
	case errors.Is(err, unix.EINVAL): // what a kernel without says outside of transactions
		return false, errors.Join(errNoNFT, err)
	}
	return err == nil, err
}

// send sends what is in b and waits until the message of the number last is done.
func (b *batch) send(last uint32) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return errors.Join(errNoNFT, err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing to write
	timeout := unix.NsecToTimeval(socketTimeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return err
	}
	if err := unix.Sendto(fd, b.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	return answer(fd, last)
}

// answer reads acknowledgements up to the last one, or the first that tells of an
// error.
func answer(fd int, last uint32) error {
	buf := make([]byte, 64<<10)
	native := nl.NativeEndian()
	for {
		got, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("waiting for nf_tables: %w", err)
		}
		for rest := buf[:got]; len(rest) >= unix.NLMSG_HDRLEN+4; {
			size := int(native.Uint32(rest))
			if size < unix.NLMSG_HDRLEN+4 || size > len(rest) {
				return errors.New("nf_tables sent a short answer")
			}
			if native.Uint16(rest[4:]) == unix.NLMSG_ERROR {
				switch errno := unix.Errno(-int32(native.Uint32(rest[unix.NLMSG_HDRLEN:]))); {
				case errno == unix.EOPNOTSUPP || errno == unix.EAFNOSUPPORT:
					return errors.Join(errNoNFT, errno)
				case errno != 0:
					return errno
				case native.Uint32(rest[8:]) == last:
					return nil
				}
			}
			rest = rest[min((size+3)&^3, len(rest)):]
		}
	}
}
