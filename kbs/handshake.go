package kbs

import (
	"context"
	"crypto"
	_ "crypto/sha512" // crypto.SHA384 and SHA512 for report data
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"strings"
	"time"

	"github.com/sealpod/sealpod/podvm"
)

// Evidencer makes the evidence of a guest.
type Evidencer interface {
	// TEE returns the wire name of the primary TEE, as in "tdx".
	TEE() string
	// Evidence returns evidence of the primary TEE over reportData, a digest.
	Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error)
	// AdditionalEvidence returns the evidence of all devices over reportData
	// as the text of a JSON object {TEE name: evidence}, "" without devices.
	AdditionalEvidence(ctx context.Context, reportData []byte) (string, error)
}

// errEvidenceRefused marks a refusal in the second step of the handshake.
var errEvidenceRefused = errors.New("evidence refused")

// extraParams names the hashes report data can be made with, in a Request.
const extraParams = `{"supported-hash-algorithms":["sha256","sha384","sha512"]}`

// Attest proves the TEE to the KBS and returns the token it issues, bound to a
// new key of kind alg. init, the plaintext of the init data, may be nil. When
// the KBS does not answer, the handshake is tried again while ctx leaves time
// for it. Evidence that is refused is sent once more, because a server that was
// restarted in the middle and has lost the session says the same; the second
// refusal is final.
//
// Errors: ErrUnauthorized when the KBS refuses, ErrUnreachable, ErrProtocol, or
// what ev returned.
// Source: guest-components kbs_protocol/src/client/rcar_client.rs at 8246e5e0.
func (c *Client) Attest(ctx context.Context, ev Evidencer, init *InitData, alg KeyAlgorithm) (*Token, error) {
	key, err := GenerateTEEKey(alg)
	if err != nil {
		return nil, err
	}
	var jwt string
	refused := false
	err = c.retry(ctx, "attestation", func() (err error) {
		jwt, err = c.handshake(ctx, ev, init, key.Public())
		if errors.Is(err, errEvidenceRefused) && !refused {
			refused = true
			return fmt.Errorf("%w: %w", errRetry, err)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("attesting to %s: %w", c.web.base, err)
	}
	return c.token(jwt, key)
}

func (c *Client) token(jwt string, key *TEEKey) (*Token, error) {
	tok, err := NewToken(jwt, key)
	if err != nil {
		return nil, podvm.Explain(fmt.Errorf("%w: reading the token: %w", ErrProtocol, err),
			fmt.Sprintf("the KBS at %s issued something that is no JWT with an expiry", c.web.base))
	}
	return tok, nil
}

// wait returns true after d, or false at once when ctx will not last as long.
func wait(ctx context.Context, d time.Duration) bool {
	if end, ok := ctx.Deadline(); ok && time.Until(end) <= d {
		return false
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// handshake runs request, challenge, attestation, response once.
func (c *Client) handshake(ctx context.Context, ev Evidencer, init *InitData, pub PublicKey) (jwt string, err error) {
	jar, err := cookiejar.New(nil) // the session lives in a cookie
	if err != nil {
		return "", fmt.Errorf("creating a cookie jar: %w", err)
	}
	var ch Challenge
	hello := Request{Version: Version, TEE: ev.TEE(), ExtraParams: json.RawMessage(extraParams)}
	if err := timed(ctx, StepChallenge, func() error { return c.post(ctx, jar, "auth", hello, &ch, maxChallenge) }); err != nil {
		return "", err
	}
	h, err := challengeHash(ch)
	if err != nil {
		return "", podvm.Explain(err, "the KBS asks for a hash that is not supported")
	}
	msg := Attestation{InitData: init, RuntimeData: RuntimeData{Nonce: ch.Nonce, TEEPubKey: pub}}
	err = timed(ctx, StepEvidence, func() (err error) {
		msg.Evidence, err = collect(ctx, ev, h, msg.RuntimeData)
		return err
	})
	if err != nil {
		return "", err
	}
	var out TokenResponse
	err = timed(ctx, StepAttestation, func() error { return c.post(ctx, jar, "attest", msg, &out, maxToken) })
	if errors.Is(err, ErrUnauthorized) {
		return "", fmt.Errorf("%w: %w", errEvidenceRefused, err)
	} else if err != nil {
		return "", err
	}
	return out.Token, nil
}

// collect gathers evidence: devices first, because the primary commits to what
// they said.
func collect(ctx context.Context, ev Evidencer, h crypto.Hash, rd RuntimeData) (out TEEEvidence, err error) {
	digest, err := ReportData(h, rd)
	if err != nil {
		return out, err
	}
	if out.Additional, err = ev.AdditionalEvidence(ctx, digest); err != nil {
		return out, fmt.Errorf("collecting device evidence: %w", err)
	}
	if digest, err = ReportDataWithDevices(h, rd, out.Additional); err != nil {
		return out, err
	}
	if out.Primary, err = ev.Evidence(ctx, digest); err != nil {
		return out, fmt.Errorf("collecting %s evidence: %w", ev.TEE(), err)
	}
	return out, nil
}

// challengeHash returns the hash the KBS selected, SHA-384 if it did not.
func challengeHash(ch Challenge) (crypto.Hash, error) {
	if len(ch.ExtraParams) == 0 || ch.ExtraParams[0] != '{' {
		return crypto.SHA384, nil // usually ""
	}
	o, err := parseObject(ch.ExtraParams)
	if err != nil {
		return 0, fmt.Errorf("%w: reading extra-params: %w", ErrProtocol, err)
	}
	if _, ok := o["selected-hash-algorithm"]; !ok {
		return crypto.SHA384, nil
	}
	name, err := o.text("selected-hash-algorithm")
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	switch strings.ToLower(name) {
	case "sha256":
		return crypto.SHA256, nil
	case "sha384":
		return crypto.SHA384, nil
	case "sha512":
		return crypto.SHA512, nil
	}
	return 0, fmt.Errorf("%w: hash algorithm %q", ErrProtocol, podvm.Printable(name, 32))
}

// post sends one step of the handshake and reads its answer into out.
func (c *Client) post(ctx context.Context, jar http.CookieJar, step string, in any, out json.Unmarshaler, limit int64) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("encoding the %s request: %w", step, err)
	}
	body, err = c.web.send(ctx, request{method: http.MethodPost, path: "/kbs/v0/" + step, body: body, jar: jar, limit: limit})
	if err != nil {
		return fmt.Errorf("handshake step %s: %w", step, c.stepError(step, err))
	}
	if err := out.UnmarshalJSON(body); err != nil {
		return podvm.Explain(fmt.Errorf("%w: handshake step %s: %w", ErrProtocol, step, err),
			fmt.Sprintf("the server at %s does not answer like a KBS; check the URL", c.web.base))
	}
	return nil
}

// stepError maps an answer that refuses a step of the handshake.
func (c *Client) stepError(step string, err error) error {
	var e *httpError
	if !errors.As(err, &e) {
		return err
	}
	if e.status != http.StatusUnauthorized && e.status != http.StatusForbidden {
		return c.web.unexpected(e)
	}
	cause := fmt.Sprintf("the KBS refused to start a handshake (%s)", e.detail())
	if step == "attest" {
		cause = fmt.Sprintf("the KBS refused the evidence (%s); its log says why: check reference values, attestation policy and TEE type", e.detail())
	}
	return podvm.Explain(fmt.Errorf("%w: %w", ErrUnauthorized, e), cause)
}
