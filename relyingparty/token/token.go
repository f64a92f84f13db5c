// Package token issues and verifies the attestation result of the relying
// party: an EAR (EAT attestation result) as a JWT signed with ES256.
//
// Place in the data path: package attestation hands appraisals to Issue; the
// resource endpoint gives what a guest presents to Verify and reads the key of
// the guest from the claims.
//
// Trust: a token comes from the network. Verify takes nothing from it before
// the signature under this issuer's own key is checked: not the algorithm, not
// the key in its header. Tokens of other issuers are refused.
//
// Source: trustee attestation-service/src/ear_token and kbs/src/token at
// 78962cd4; draft-fv-rats-ear.
package token

import (
	"bytes"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/sealpod/sealpod/kbs"
)

// What callers tell apart.
var (
	// ErrToken says that a text is no valid token of this issuer.
	ErrToken = errors.New("not a valid attestation token")
	// ErrExpired says that the token was valid once; it is an ErrToken too.
	ErrExpired = fmt.Errorf("%w: expired", ErrToken)
	// ErrTooLarge says that the claims make a token no client could send back.
	ErrTooLarge = errors.New("attestation token too large")
)

const (
	// MaxBytes is the longest token issued or read: half of the request head
	// that net/http accepts by default.
	MaxBytes = 512 << 10
	// Leeway is how long after exp a token still passes, for clocks that
	// differ. Source: trustee kbs/src/token/jwk.rs.
	Leeway = 60 * time.Second
)

// The constant claims. Source: trustee attestation-service/src/ear_token/mod.rs.
const (
	profile   = "tag:github.com,2024:confidential-containers/Trustee"
	issuer    = "CoCo-Attestation-Service"
	developer = "https://confidentialcontainers.org"
	build     = "attestation-service 0.1.0"
)

// Issuer signs tokens and verifies its own. It may be used by any number of
// goroutines.
type Issuer struct {
	signer   jose.Signer
	public   *ecdsa.PublicKey
	lifetime time.Duration
	now      func() time.Time
}

// NewIssuer returns an issuer with that P-256 key whose tokens live for
// lifetime by the clock now (nil for time.Now).
func NewIssuer(key *ecdsa.PrivateKey, lifetime time.Duration, now func() time.Time) (*Issuer, error) {
	// The algorithm stands in the header's jwk too; Trustee compares the two.
	jwk := jose.JSONWebKey{Key: key, Algorithm: string(jose.ES256)}
	opts := (&jose.SignerOptions{EmbedJWK: true}).WithType("JWT")
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jwk}, opts)
	if err != nil {
		return nil, fmt.Errorf("preparing the token signer: %w", err)
	}
	if now == nil {
		now = time.Now
	}
	return &Issuer{signer: signer, public: &key.PublicKey, lifetime: lifetime, now: now}, nil
}

// Issue signs a token over the submods, one appraisal for each evidence, under
// names such as "cpu0". A token over MaxBytes is ErrTooLarge.
func (i *Issuer) Issue(submods map[string]any) (string, error) {
	now := i.now().Unix()
	payload, err := json.Marshal(map[string]any{
		"eat_profile":     profile,
		"iss":             issuer,
		"iat":             now,
		"exp":             now + int64(i.lifetime/time.Second),
		"ear.verifier-id": map[string]string{"developer": developer, "build": build},
		"submods":         submods,
	})
	if err != nil {
		return "", fmt.Errorf("encoding the token: %w", err)
	}
	signed, err := i.signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("signing the token: %w", err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		return "", fmt.Errorf("serialising the token: %w", err)
	}
	if len(text) > MaxBytes {
		return "", fmt.Errorf("%w: %d bytes, want at most %d", ErrTooLarge, len(text), MaxBytes)
	}
	return text, nil
}

// Verify returns the claims of a token of this issuer that has not expired.
// Anything else is ErrToken. Only ES256 in compact form is read, so that
// neither "none" nor a MAC keyed with the public key can pass.
func (i *Issuer) Verify(text string) (Claims, error) {
	if len(text) > MaxBytes {
		return nil, fmt.Errorf("%w: %d bytes, want at most %d", ErrToken, len(text), MaxBytes)
	}
	signed, err := jose.ParseSignedCompact(text, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrToken, err)
	}
	if err := i.checkHeader(signed.Signatures[0].Protected); err != nil {
		return nil, err
	}
	payload, err := signed.Verify(i.public)
	if err != nil {
		return nil, fmt.Errorf("%w: checking the signature: %w", ErrToken, err)
	}
	d := json.NewDecoder(bytes.NewReader(payload))
	d.UseNumber()
	var c Claims
	if err := d.Decode(&c); err != nil {
		return nil, fmt.Errorf("%w: reading the claims: %w", ErrToken, err)
	}
	return c, i.checkExpiry(c)
}

// checkHeader refuses a header whose key is not this issuer's. The signature
// is checked with the issuer's key in any case; this only says it earlier.
func (i *Issuer) checkHeader(h jose.Header) error {
	if h.JSONWebKey == nil {
		return fmt.Errorf("%w: the header has no jwk", ErrToken)
	}
	if h.JSONWebKey.Algorithm != h.Algorithm {
		return fmt.Errorf("%w: the header's jwk is for algorithm %q", ErrToken, h.JSONWebKey.Algorithm)
	}
	if !i.public.Equal(h.JSONWebKey.Key) {
		return fmt.Errorf("%w: signed with the key of another issuer", ErrToken)
	}
	return nil
}

func (i *Issuer) checkExpiry(c Claims) error {
	number, ok := c["exp"].(json.Number)
	if !ok {
		return fmt.Errorf("%w: exp is missing", ErrToken)
	}
	exp, err := number.Int64()
	if err != nil {
		return fmt.Errorf("%w: exp is not a number of seconds", ErrToken)
	}
	if now := i.now(); now.After(time.Unix(exp, 0).Add(Leeway)) {
		return fmt.Errorf("%w %s ago", ErrExpired, now.Sub(time.Unix(exp, 0)).Round(time.Second))
	}
	return nil
}

// Claims is the verified payload of a token. Numbers are json.Number.
type Claims map[string]any

// TEEKey returns the key to which the primary evidence of the token is bound:
// what the token's holder alone can decrypt with. A token without one is
// ErrToken.
func (c Claims) TEEKey() (kbs.PublicKey, error) {
	var node any = map[string]any(c)
	for _, name := range []string{"submods", "cpu0", "ear.veraison.annotated-evidence", "runtime_data_claims", "tee-pubkey"} {
		object, _ := node.(map[string]any)
		node = object[name]
	}
	raw, err := json.Marshal(node)
	if err != nil {
		return kbs.PublicKey{}, fmt.Errorf("%w: reading the TEE key: %w", ErrToken, err)
	}
	var key kbs.PublicKey
	if err := json.Unmarshal(raw, &key); err != nil {
		return kbs.PublicKey{}, fmt.Errorf("%w: reading the TEE key: %w", ErrToken, err)
	}
	return key, key.Validate()
}
