package seal

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/podvm"
)

// ErrKey says that bytes are not the private half of a P-256 key as JWK.
var ErrKey = errors.New("unusable signing key")

// scalarSize is the length of d, x, y, r and s on P-256 in bytes.
const scalarSize = 32

// jwk is a P-256 key in the order upstream writes it. D is empty in a public one.
type jwk struct {
	KTY string `json:"kty"`
	CRV string `json:"crv"`
	ALG string `json:"alg"`
	Use string `json:"use"`
	KID string `json:"kid"`
	D   string `json:"d,omitempty"`
	X   string `json:"x"`
	Y   string `json:"y"`
}

// b64u is the base64 of JOSE.
var b64u = base64.RawURLEncoding

// NewKey makes a signing key and returns both halves as JWK, each with a line
// end after it. The caller wipes the private one. kid goes into both; guests
// find a key by the id given to Sign, not by this one.
func NewKey(kid string) (private podvm.Secret, public []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generating a signing key: %w", err)
	}
	d, err := key.Bytes()
	if err != nil {
		return nil, nil, fmt.Errorf("encoding the private key: %w", err)
	}
	defer clear(d)
	point, err := key.PublicKey.Bytes() // 4, x, y
	if err != nil {
		return nil, nil, fmt.Errorf("encoding the public key: %w", err)
	}
	k := jwk{
		KTY: "EC", CRV: "P-256", ALG: "ES256", Use: "sig", KID: kid,
		X: b64u.EncodeToString(point[1 : 1+scalarSize]), Y: b64u.EncodeToString(point[1+scalarSize:]),
	}
	if public, err = pretty(k); err != nil {
		return nil, nil, err
	}
	k.D = b64u.EncodeToString(d)
	private, err = pretty(k)
	return private, public, err
}

// pretty writes JSON as upstream does: two spaces, no escapes for HTML.
func pretty(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("encoding the key: %w", err)
	}
	return b.Bytes(), nil
}

// ParseKey reads a private P-256 key as JWK. Its public half must be there and
// belong to it. Errors: ErrKey.
func ParseKey(raw []byte) (*ecdsa.PrivateKey, error) {
	key, err := parseKey(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	return key, nil
}

func parseKey(raw []byte) (*ecdsa.PrivateKey, error) {
	o, err := strict.Parse(raw)
	if err != nil {
		return nil, err
	}
	for _, m := range [][2]string{{"kty", "EC"}, {"crv", "P-256"}} { // in order, so that one file has one error
		name, want := m[0], m[1]
		if got, err := o.Text(name); err != nil {
			return nil, err
		} else if got != want {
			return nil, fmt.Errorf("%s %q: want %s", name, podvm.Printable(got, 32), want)
		}
	}
	if !o.Has("d") {
		return nil, errors.New("it is the public half, the private one signs")
	}
	part := map[string][]byte{}
	for _, name := range []string{"d", "x", "y"} {
		text, err := o.Text(name)
		if err != nil {
			return nil, err
		}
		n, err := strict.Base64URL(text)
		if err != nil || len(n) != scalarSize {
			return nil, fmt.Errorf("member %q: want %d bytes in base64url", name, scalarSize)
		}
		part[name] = n
	}
	defer clear(part["d"])
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), part["d"])
	if err != nil {
		return nil, errors.New(`member "d": not a private key`)
	}
	if point, err := key.PublicKey.Bytes(); err != nil || !bytes.Equal(point[1:], append(part["x"], part["y"]...)) {
		return nil, errors.New("x and y are not the public half of d")
	}
	return key, nil
}
