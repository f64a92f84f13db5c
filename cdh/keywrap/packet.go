package keywrap

import (
	"crypto/aes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/sealpod/sealpod/cdh/internal/datakey"
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
)

// ErrPacket says that bytes are not an annotation packet this build can open.
var ErrPacket = errors.New("unusable annotation packet")

// packet is an annotation packet of version 1 (kid, wrapped_data, iv,
// wrap_type) or 2, which adds members that have defaults, so one parser serves
// both.
type packet struct {
	provider string // providerKBS, in exactly that case, or the name of a KMS
	kid      string // resource URI of the KEK, or what the KMS calls it
	wrapped  []byte // under datakey.GCM the 16-byte tag comes last

	// Of kbs only.
	iv   []byte
	wrap string // datakey.GCM or datakey.CTR

	// Of the others only.
	settings, annotations strict.Object
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
	if p.provider, err = o.TextOr("provider", providerKBS); err != nil {
		return p, explainMember(err)
	}
	version, err := o.TextOr("version", packetVersion)
	if err != nil {
		return p, explainMember(err)
	}
	if p.provider != providerKBS {
		err = p.readKMS(o) // of any version, as upstream
		return p, err
	}
	if version != packetVersion {
		return p, podvm.Explain(fmt.Errorf("version %q", podvm.Printable(version, 32)),
			"the annotation packet is not of version "+packetVersion)
	}
	err = p.readKBS(o)
	return p, err
}

func (p *packet) readKBS(o strict.Object) (err error) {
	for _, name := range []string{"provider_settings", "annotations"} { // used by other providers only
		v, ok := o[name]
		if ok && v[0] != '{' {
			return explainMember(fmt.Errorf("member %q: not an object", name))
		}
	}
	if p.kid, err = o.Text("kid"); err != nil {
		return explainMember(err)
	}
	if p.wrap, err = o.Text("wrap_type"); err != nil {
		return explainMember(err)
	}
	if !datakey.Known(p.wrap) {
		return podvm.Explain(fmt.Errorf("wrap_type %q", podvm.Printable(p.wrap, 32)),
			"the annotation packet is wrapped in neither "+datakey.GCM+" nor "+datakey.CTR)
	}
	if p.wrapped, err = o.Bytes("wrapped_data"); err != nil {
		return explainMember(err)
	}
	if p.iv, err = o.Bytes("iv"); err != nil {
		return explainMember(err)
	}
	if p.wrap == datakey.CTR && countsAsGCM(p.iv, len(p.wrapped)) {
		return podvm.Explain(errors.New("iv of A256CTR among the counters of A256GCM"),
			"the annotation packet may be one of "+datakey.GCM+" without its tag, said to be "+datakey.CTR)
	}
	return nil
}

// countsAsGCM tells whether CTR, starting at iv, comes by a counter that GCM uses
// for a packet: its nonce of 12 bytes and a number from 1. What GCM has wrapped
// would open under such an iv without its tag. An attacker could then change
// bits of the layer key and learn it from which changes a guest finds well
// formed, a few hundred pulls in all. An iv chosen at random is such a one with
// a probability below 2^-17.
// Source: NIST SP 800-38D section 7.1.
func countsAsGCM(iv []byte, size int) bool {
	if len(iv) != aes.BlockSize {
		return false // Open refuses it
	}
	const last = maxPacket/aes.BlockSize + 1
	blocks := uint64(size+aes.BlockSize-1) / aes.BlockSize
	first := binary.BigEndian.Uint32(iv[12:]) - 1 // so that 0 is GCM's first one
	return first < last || uint64(first)+blocks > 1<<32
}

func (p *packet) readKMS(o strict.Object) (err error) {
	if p.kid, err = o.Text("kid"); err != nil {
		return explainMember(err)
	}
	if p.wrapped, err = o.Bytes("wrapped_data"); err != nil {
		return explainMember(err)
	}
	if p.settings, err = objectOr(o, "provider_settings"); err != nil {
		return explainMember(err)
	}
	if p.annotations, err = objectOr(o, "annotations"); err != nil {
		return explainMember(err)
	}
	return nil
}

// objectOr returns the member name, or {} when it is absent.
func objectOr(o strict.Object, name string) (strict.Object, error) {
	if _, ok := o[name]; !ok {
		return strict.Object{}, nil
	}
	return o.Object(name)
}

// explainMember makes a member's error, which holds names but no values, public.
func explainMember(err error) error {
	return podvm.Explain(err, "malformed annotation packet: "+podvm.Printable(err.Error(), 200))
}
