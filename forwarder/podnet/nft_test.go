package podnet

import (
	"errors"
	"strings"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ack is an answer of the kernel's to a message.
func ack(seq uint32, errno unix.Errno) []byte {
	native := nl.NativeEndian()
	b := make([]byte, unix.NLMSG_HDRLEN+4+unix.NLMSG_HDRLEN)
	native.PutUint32(b, uint32(len(b)))
	native.PutUint16(b[4:], unix.NLMSG_ERROR)
	native.PutUint32(b[8:], seq)
	native.PutUint32(b[unix.NLMSG_HDRLEN:], uint32(-int32(errno)))
	return b
}

func TestNFTAnswers(t *testing.T) {
	short := ack(3, 0)
	nl.NativeEndian().PutUint32(short, 1<<20)
	for _, tc := range []struct {
		name    string
		packets [][]byte
		want    error
		text    string
	}{
		{"all is well, in packets", [][]byte{ack(1, 0), ack(2, 0), ack(3, 0)}, nil, ""},
		{"all is well, in one packet", [][]byte{append(append(ack(1, 0), ack(2, 0)...), ack(3, 0)...)}, nil, ""},
		{"one was refused", [][]byte{ack(1, 0), ack(2, unix.EPERM), ack(3, 0)}, unix.EPERM, ""},
		{"a kernel without nf_tables", [][]byte{ack(0, unix.EOPNOTSUPP)}, errNoNFT, ""},
		{"a kernel without the family", [][]byte{ack(1, 0), ack(2, unix.EAFNOSUPPORT)}, errNoNFT, ""},
		{"a size beyond the packet", [][]byte{short}, nil, "short answer"},
		{"no last answer", [][]byte{ack(1, 0)}, unix.EAGAIN, "waiting for nf_tables"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fds[0])
			defer unix.Close(fds[1])
			for _, p := range tc.packets {
				if err := unix.Sendto(fds[1], p, 0, nil); err != nil {
					t.Fatal(err)
				}
			}
			err = answer(fds[0], 3)
			if tc.text != "" && (err == nil || !strings.Contains(err.Error(), tc.text)) || tc.text == "" && tc.want == nil && err != nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("%v, want %v %q", err, tc.want, tc.text)
			}
		})
	}
}

// The VM's rules of the way to a metadata service are what the program nft shows.
func TestNFTRules(t *testing.T) {
	l := newLab(t)
	n := l.setup(base(t, map[string]any{"worker-node-ip": "fd64::1/64"}), func(o *Options) { o.IMDS = metadataServices[:1] })
	want := `table ip6 sealpod-podnet {
	chain output {
		type filter hook output priority raw; policy accept;
		udp dport 4789 ip6 daddr fd64::1 notrack
	}

	chain prerouting {
		type filter hook prerouting priority raw; policy accept;
		udp dport 4789 ip6 saddr fd64::1 notrack
	}
}
table ip sealpod-imds {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 10.244.1.7 ip daddr 169.254.169.254 masquerade
	}

	chain forward {
		type filter hook forward priority filter; policy accept;
		iifname "veth-imds" ip saddr 10.244.1.7 ip daddr 169.254.169.254 accept
		iifname "veth-imds" drop
		oifname "veth-imds" ct state established,related accept
		oifname "veth-imds" drop
	}

	chain input {
		type filter hook input priority filter; policy accept;
		iifname "veth-imds" drop
	}
}
`
	if got := l.in(l.vm, "nft", "list", "ruleset"); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}
