package secret

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/podvm"
)

// Limits in bytes.
const (
	maxSealed = 4 << 20  // the whole text: what one message to the data hub holds
	maxHeader = 16 << 10 // the encoded header
	maxKey    = 64 << 10 // a signing key as JWK
)

// prefix marks a sealed secret among other values.
const prefix = "sealed."

// algorithm is the only one signatures are made by: ECDSA on P-256 with SHA-256
// (RFC 7518 section 3.4).
const algorithm = "ES256"

// message is a sealed secret taken apart. Nothing in it is verified.
type message struct {
	alg, kid  string
	signed    string // header and payload as received, what the signature is over
	payload   []byte
	signature []byte
}

// parseMessage takes a sealed secret apart. The prefix may be missing or be
// there several times, as upstream reads it. Errors: ErrParse.
func parseMessage(sealed []byte) (message, error) {
	m, err := readMessage(sealed)
	if err != nil {
		return message{}, malformed(err)
	}
	return m, nil
}

func readMessage(sealed []byte) (m message, err error) {
	text, err := readText(sealed)
	if err != nil {
		return m, err
	}
	for strings.HasPrefix(text, prefix) {
		text = text[len(prefix):]
	}
	if n := strings.Count(text, "."); n != 2 {
		return m, fmt.Errorf("%d parts between dots: want header, payload and signature", n+1)
	}
	end := strings.LastIndexByte(text, '.')
	m.signed = text[:end]
	header, payload, _ := strings.Cut(m.signed, ".")
	if m.signature, err = strict.Base64URL(text[end+1:]); err != nil {
		return m, fmt.Errorf("signature: %w", err)
	}
	if m.alg, m.kid, err = parseHeader(header); err != nil {
		return m, fmt.Errorf("header: %w", err)
	}
	if m.payload, err = strict.Base64URL(payload); err != nil {
		return m, fmt.Errorf("payload: %w", err)
	}
	return m, nil
}

// parseHeader returns the members of a JWS header that count. Upstream's header
// also says "b64":true; the same member false, or "crit", would change what the
// rest means (RFC 7515 section 4.1.11, RFC 7797) and is refused.
func parseHeader(encoded string) (alg, kid string, err error) {
	if len(encoded) > maxHeader {
		return "", "", podvm.ErrTooLarge
	}
	raw, err := strict.Base64URL(encoded)
	if err != nil {
		return "", "", err
	}
	o, err := strict.Parse(raw)
	if err != nil {
		return "", "", err
	}
	if b64, ok := o["b64"]; ok && string(b64) != "true" {
		return "", "", errors.New(`member "b64": not true`)
	}
	if o.Has("crit") {
		return "", "", errors.New(`member "crit": extensions are not supported`)
	}
	if alg, err = o.Text("alg"); err != nil {
		return "", "", err
	}
	kid, err = o.Text("kid")
	return alg, kid, err
}

// unverifiedPayload returns the payload of a text of exactly four parts and
// looks at no other part. Real secrets pass as well as those that only look like
// one, "sealed.fakejwsheader.<payload>.fakesignature". Errors: ErrParse.
func unverifiedPayload(sealed []byte) ([]byte, error) {
	text, err := readText(sealed)
	if err != nil {
		return nil, malformed(err)
	}
	if n := strings.Count(text, "."); n != 3 {
		return nil, malformed(fmt.Errorf("%d parts between dots: want sealed, header, payload and signature", n+1))
	}
	payload, err := strict.Base64URL(strings.SplitN(text, ".", 4)[2])
	if err != nil {
		return nil, malformed(fmt.Errorf("payload: %w", err))
	}
	return payload, nil
}

func readText(sealed []byte) (string, error) {
	if len(sealed) > maxSealed {
		return "", podvm.ErrTooLarge
	}
	if !utf8.Valid(sealed) {
		return "", errors.New("not UTF-8")
	}
	return string(sealed), nil
}

// malformed makes err, whose text holds names but no values, an ErrParse.
func malformed(err error) error {
	return podvm.Explain(fmt.Errorf("%w: %w", ErrParse, err), "malformed sealed secret: "+podvm.Printable(err.Error(), 200))
}
