package kbs

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/sealpod/sealpod/podvm"
)

// Token is an attestation token with the key that secrets released against it
// are encrypted to. It is immutable after creation.
type Token struct {
	JWT string
	Key *TEEKey

	issued, expires time.Time
}

// NewToken checks that jwt has the form of a JWT with an expiry and joins it
// with its key. The signature is not verified: that is for whoever relies on
// the token, and a guest does not.
func NewToken(jwt string, key *TEEKey) (*Token, error) {
	if key == nil {
		return nil, fmt.Errorf("%w: no key", ErrToken)
	}
	issued, expires, err := lifetime(jwt)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrToken, err)
	}
	return &Token{JWT: jwt, Key: key, issued: issued, expires: expires}, nil
}

// Issued returns when the token was issued (claim iat), the zero time if the
// token does not say.
func (t *Token) Issued() time.Time { return t.issued }

// Expires returns when the token ends (claim exp).
func (t *Token) Expires() time.Time { return t.expires }

// lifetime reads the claims iat and exp of a JWT without verifying it.
func lifetime(jwt string) (issued, expires time.Time, err error) {
	for _, c := range jwt {
		if !strings.ContainsRune(jwtAlphabet, c) {
			return issued, expires, errors.New("a character that no JWT has")
		}
	}
	parts := strings.Split(jwt, ".")
	if len(parts) != 3 || parts[0] == "" || parts[2] == "" {
		return issued, expires, errors.New("not the three parts of a signed JWT")
	}
	claims, err := b64u.DecodeString(parts[1])
	if err != nil {
		return issued, expires, errors.New("the claims are not base64url")
	}
	o, err := parseObject(claims)
	if err != nil {
		return issued, expires, fmt.Errorf("reading the claims: %w", err)
	}
	if issued, err = o.date("iat"); err != nil {
		return issued, expires, err
	}
	if expires, err = o.date("exp"); err != nil {
		return issued, expires, err
	}
	if expires.IsZero() {
		return issued, expires, errors.New("no expiry")
	}
	return issued, expires, nil
}

// jwtAlphabet is base64url and the separator.
const jwtAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."

// maxDate is the last second of the year 9999.
const maxDate = 253402300799

// date returns the NumericDate (RFC 7519 §2) under name, or the zero time.
func (o object) date(name string) (time.Time, error) {
	if !o.has(name) {
		return time.Time{}, nil
	}
	var seconds float64
	if err := json.Unmarshal(o[name], &seconds); err != nil || seconds < 0 || seconds > maxDate {
		return time.Time{}, fmt.Errorf("claim %q is not a date", name)
	}
	return time.Unix(int64(seconds), 0), nil
}

// Marshal returns the form in which GetToken of the attestation agent answers:
// {"token":JWT,"tee_keypair":PEM}. The caller wipes it.
// Source: guest-components attestation-agent/src/token/kbs.rs at 8246e5e0.
func (t *Token) Marshal() (podvm.Secret, error) {
	key, err := t.Key.MarshalPEM()
	if err != nil {
		return nil, err
	}
	defer key.Wipe()
	// Appended by hand so that no copy of the key is left behind in a buffer
	// of the JSON encoder: of all characters in PEM only the line end needs an
	// escape, and a JWT has none that does (see NewToken).
	out := make([]byte, 0, len(t.JWT)+2*len(key)+64)
	out = append(out, `{"token":"`...)
	out = append(out, t.JWT...)
	out = append(out, `","tee_keypair":"`...)
	for _, c := range []byte(key) {
		if c == '\n' {
			out = append(out, '\\', 'n')
		} else {
			out = append(out, c)
		}
	}
	return append(out, `"}`...), nil
}

// ParseToken reads what Marshal writes; the caller wipes raw. Errors: ErrToken;
// the text of an error holds nothing of the input.
func ParseToken(raw []byte) (*Token, error) {
	o, err := parseObject(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: not a JSON object with a token", ErrToken)
	}
	jwt, err := o.text("token")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrToken, err)
	}
	pem, err := o.secret("tee_keypair")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrToken, err)
	}
	defer pem.Wipe()
	key, err := ParseTEEKeyPEM(pem)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrToken, err)
	}
	return NewToken(jwt, key)
}
