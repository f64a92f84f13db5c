package keywrap

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/podvm"
)

// ErrRequest says that bytes are not a request of the key provider protocol
// from which an annotation packet can be read.
var ErrRequest = errors.New("malformed key provider request")

// UnwrapRequest answers a request of ocicrypt's key provider protocol:
//
//	{"op":…,"keywrapparams":{…},"keyunwrapparams":{"dc":{…},"annotation":BASE64}}
//
// with the unwrapped key as an array of integers, the only form the Rust peer
// reads, though Go's encoder would write base64:
//
//	{"keyunwrapresults":{"optsdata":[123,34,…]}}
//
// The response is as secret as the key.
// Errors: ErrRequest before anything is fetched, then those of Unwrap.
// Source: ocicrypt-rs/src/keywrap/keyprovider/mod.rs and
// confidential-data-hub/hub/src/bin/message/mod.rs in guest-components at 8246e5e.
func UnwrapRequest(ctx context.Context, keys Keys, request []byte) (podvm.Secret, error) {
	raw, err := parseRequest(request)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	options, err := Unwrap(ctx, keys, raw)
	if err != nil {
		return nil, err
	}
	defer options.Wipe()
	const head, tail = `{"keyunwrapresults":{"optsdata":[`, `]}}`
	// Room for the worst case, so that growing leaves no copy behind.
	out := make([]byte, 0, len(head)+len("255,")*len(options)+len(tail))
	out = append(out, head...)
	for i, b := range options {
		if i > 0 {
			out = append(out, ',')
		}
		out = strconv.AppendUint(out, uint64(b), 10)
	}
	return append(out, tail...), nil
}

// parseRequest returns the annotation packet in a request. The operation is not
// looked at and neither are the decryption parameters: the caller has said by
// the method it called what it wants, and keys come from where the packet says.
func parseRequest(request []byte) (packet []byte, err error) {
	o, err := strict.Parse(request)
	if err != nil {
		return nil, explainRequest(err)
	}
	if _, err := o.Text("op"); err != nil {
		return nil, explainRequest(err)
	}
	for _, name := range []string{"keywrapparams", "keyunwrapparams"} {
		if v, ok := o[name]; !ok || v[0] != '{' {
			return nil, explainRequest(fmt.Errorf("member %q: missing or not an object", name))
		}
	}
	if _, err := strict.Parse(o["keywrapparams"]); err != nil {
		return nil, explainRequest(fmt.Errorf("member %q: %w", "keywrapparams", err))
	}
	params, err := strict.Parse(o["keyunwrapparams"])
	if err != nil {
		return nil, explainRequest(fmt.Errorf("member %q: %w", "keyunwrapparams", err))
	}
	if params.Has("dc") && params["dc"][0] != '{' {
		return nil, explainRequest(errors.New(`member "dc": not an object`))
	}
	if packet, err = params.Bytes("annotation"); err != nil {
		return nil, explainRequest(err)
	}
	return packet, nil
}

func explainRequest(err error) error {
	return podvm.Explain(err, podvm.Printable(err.Error(), 200))
}
