package relay

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// Fields of ttrpc's Request. Source: containerd/ttrpc request.proto at v1.2.10.
const (
	fieldService = 1
	fieldMethod  = 2
	fieldPayload = 3
	fieldTimeout = 4
)

// errRequest says that a body is no protobuf message.
var errRequest = errors.New("not a request")

// request is what the relay wants to know of a Request. The slices are parts of
// the message.
type request struct {
	service, method, payload []byte
	timeout                  time.Duration // 0 is none
}

// parseRequest reads a Request. Of fields that occur more than once the last
// one counts, as protobuf has it; fields of another type than theirs count as
// unknown. A message that is malformed anywhere is errRequest: what one parser
// gives up on, another could take for a method that is to be changed.
func parseRequest(p []byte) (request, error) {
	var r request
	for len(p) > 0 {
		num, typ, n := protowire.ConsumeTag(p)
		if n < 0 {
			return request{}, fmt.Errorf("%w: %w", errRequest, protowire.ParseError(n))
		}
		p = p[n:]
		switch {
		case typ == protowire.BytesType:
			var v []byte
			if v, n = protowire.ConsumeBytes(p); n < 0 {
				break
			}
			switch num {
			case fieldService:
				r.service = v
			case fieldMethod:
				r.method = v
			case fieldPayload:
				r.payload = v
			}
		case typ == protowire.VarintType && num == fieldTimeout:
			var v uint64
			v, n = protowire.ConsumeVarint(p)
			r.timeout = time.Duration(v)
		default:
			n = protowire.ConsumeFieldValue(num, typ, p)
		}
		if n < 0 {
			return request{}, fmt.Errorf("%w: %w", errRequest, protowire.ParseError(n))
		}
		p = p[n:]
	}
	return r, nil
}

// withoutField appends to dst the message p, which parseRequest has taken, less
// the fields with this number and type. What is unknown stays, in its order.
func withoutField(dst, p []byte, number protowire.Number, wire protowire.Type) []byte {
	for len(p) > 0 {
		num, typ, n := protowire.ConsumeField(p)
		if n < 0 {
			return append(dst, p...)
		}
		if num != number || typ != wire {
			dst = append(dst, p[:n]...)
		}
		p = p[n:]
	}
	return dst
}

// withPayload returns p with another payload.
func withPayload(p, payload []byte) []byte {
	out := make([]byte, 0, len(p)+len(payload)+headerSize)
	out = withoutField(out, p, fieldPayload, protowire.BytesType)
	if len(payload) == 0 {
		return out // as proto3 writes it
	}
	out = protowire.AppendTag(out, fieldPayload, protowire.BytesType)
	return protowire.AppendBytes(out, payload)
}

// appendWithTimeout appends p with another timeout to dst. It is not longer
// than p if the timeout is positive and at most the one before.
func appendWithTimeout(dst, p []byte, timeout time.Duration) []byte {
	dst = withoutField(dst, p, fieldTimeout, protowire.VarintType)
	dst = protowire.AppendTag(dst, fieldTimeout, protowire.VarintType)
	return protowire.AppendVarint(dst, uint64(timeout))
}
