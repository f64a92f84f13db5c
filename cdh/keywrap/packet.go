package keywrap

import (
	"errors"
	"fmt"

	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/podvm"
)

// maxPacket caps an annotation packet in bytes. A real one has some hundred.
const maxPacket = 256 << 10

// Values of packet members.
// Source: guest-components confidential-data-hub/hub/src/image/annotation_packet
// at 8246e5e.
const (
	packetVersion = "0.1.0"
	providerKBS   = "kbs"
	wrapGCM       = "A256GCM"
	wrapCTR       = "A256CTR"
)

// ErrPacket says that bytes are not an annotation packet this build can open.
var ErrPacket = errors.New("unusable annotation packet")

// packet is an annotation packet of version 1 (kid, wrapped_data, iv,
// wrap_type) or 2, which adds members that have defaults, so one parser serves
// both. The provider is always kbs.
type packet struct {
	kid     string // resource URI of the KEK
	wrapped []byte // under A256GCM the 16-byte tag comes last
	iv      []byte
	wrap    string // wrapGCM or wrapCTR
}

// parsePacket reads raw. Members beyond those known are ignored, known ones may
// not be null or appear twice. Errors: ErrPacket.
func parsePacket(raw []byte) (packet, error) {
	p, err := readPacket(raw)
	if err != nil {
		return packet{}, fmt.Errorf("%w: %w", ErrPacket, err)
	}
	return p, nil
}

func readPacket(raw []byte) (p packet, err error) {
	if len(raw) > maxPacket {
		return p, podvm.Explain(podvm.ErrTooLarge, "annotation packet too large")
	}
	o, err := strict.Parse(raw)
	if err != nil {
		return p, podvm.Explain(err, "the annotation packet is not a JSON object")
	}
	provider, err := o.TextOr("provider", providerKBS)
	if err != nil {
		return p, explainMember(err)
	}
	if provider != providerKBS { // exact case, as upstream
		name := podvm.Printable(provider, 64)
		return p, podvm.Explain(fmt.Errorf("provider %q", name),
			fmt.Sprintf("the key provider %q is not available in this build, only %s", name, providerKBS))
	}
	version, err := o.TextOr("version", packetVersion)
	if err != nil {
		return p, explainMember(err)
	}
	if version != packetVersion {
		return p, podvm.Explain(fmt.Errorf("version %q", podvm.Printable(version, 32)),
			"the annotation packet is not of version "+packetVersion)
	}
	for _, name := range []string{"provider_settings", "annotations"} { // used by other providers only
		v, ok := o[name]
		if ok && v[0] != '{' {
			return p, explainMember(fmt.Errorf("member %q: not an object", name))
		}
	}
	if p.kid, err = o.Text("kid"); err != nil {
		return p, explainMember(err)
	}
	if p.wrap, err = o.Text("wrap_type"); err != nil {
		return p, explainMember(err)
	}
	if p.wrap != wrapGCM && p.wrap != wrapCTR {
		return p, podvm.Explain(fmt.Errorf("wrap_type %q", podvm.Printable(p.wrap, 32)),
			"the annotation packet is wrapped in neither "+wrapGCM+" nor "+wrapCTR)
	}
	if p.wrapped, err = o.Bytes("wrapped_data"); err != nil {
		return p, explainMember(err)
	}
	if p.iv, err = o.Bytes("iv"); err != nil {
		return p, explainMember(err)
	}
	return p, nil
}

// explainMember makes a member's error, which holds names but no values, public.
func explainMember(err error) error {
	return podvm.Explain(err, "malformed annotation packet: "+podvm.Printable(err.Error(), 200))
}
