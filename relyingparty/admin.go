package relyingparty

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"unicode/utf8"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/relyingparty/policy"
	"github.com/sealpod/sealpod/relyingparty/store"
)

// adminDigest is where the hex SHA-256 of the admin token is in
// store.RelyingParty. The token has 256 random bits: a plain hash is enough.
const adminDigest = "admin-token.sha256"

// What a caller without access is told.
var (
	errNoAdminToken    = errors.New("no bearer token in the request")
	errWrongAdminToken = errors.New("the bearer token is not the admin token")
	errNoAdminCheck    = errors.New("the admin token cannot be checked now")
)

// setUpAdmin makes the admin token if the store has none, or if a fresh one is
// asked for, and returns it; otherwise it returns nil.
func setUpAdmin(ctx context.Context, s store.Store, fresh bool) (podvm.Secret, error) {
	var raw [32]byte
	_, _ = rand.Read(raw[:]) // crypto/rand never returns an error
	text := podvm.Secret(base64.RawURLEncoding.AppendEncode(nil, raw[:]))
	digest := sha256.Sum256(text)
	write := s.Create
	if fresh {
		write = s.Put
	}
	err := write(ctx, store.RelyingParty, adminDigest, hex.AppendEncode(nil, digest[:]))
	if errors.Is(err, store.ErrExists) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("making the admin token: %w", err)
	}
	return text, nil
}

// checkAdmin tells whether the request carries the admin token. The digest is
// read anew each time, so that a new token takes effect at once everywhere.
func (s *Server) checkAdmin(r *http.Request) error {
	text := bearer(r)
	if text == "" {
		return errNoAdminToken
	}
	want, err := s.store.Get(r.Context(), store.RelyingParty, adminDigest)
	if err != nil {
		return fmt.Errorf("%w: %w", errNoAdminCheck, err)
	}
	digest := sha256.Sum256([]byte(text))
	if subtle.ConstantTimeCompare(want, hex.AppendEncode(nil, digest[:])) != 1 {
		return errWrongAdminToken
	}
	return nil
}

// whyNotAdmin is what a stranger may know of an error of checkAdmin: nothing
// about the store.
func whyNotAdmin(err error) string {
	for _, known := range []error{errNoAdminToken, errWrongAdminToken} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	return errNoAdminCheck.Error()
}

// bearer returns the bearer token of the request, "" if it has none.
func bearer(r *http.Request) string {
	scheme, text, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(text)
}

// checkEndpointAdmin is checkAdmin for a built-in endpoint.
func (s *Server) checkEndpointAdmin(c *call, endpoint string) error {
	if err := s.checkAdmin(c.r); err != nil {
		return fault(variantAdmin, "admin access denied for endpoint "+endpoint+": "+whyNotAdmin(err), err)
	}
	return nil
}

// upload is the body of POST resource-policy and attestation-policy.
type upload struct {
	ID     string  `json:"policy_id"`
	Policy *string `json:"policy"` // unpadded base64url of the Rego text
}

// readUpload returns the body and the Rego text in it.
func (c *call) readUpload() (upload, string, error) {
	var u upload
	raw, err := c.body()
	if err != nil {
		return u, "", err
	}
	if err := json.Unmarshal(raw, &u); err != nil {
		return u, "", fmt.Errorf("reading the policy: %w", err)
	}
	if u.Policy == nil {
		return u, "", errors.New("reading the policy: member policy is missing")
	}
	text, err := base64.RawURLEncoding.DecodeString(*u.Policy)
	if err != nil {
		return u, "", fmt.Errorf("reading the policy: want unpadded base64url: %w", err)
	}
	if !utf8.Valid(text) {
		return u, "", errors.New("reading the policy: not UTF-8")
	}
	return u, string(text), nil
}

// serveSetAttestationPolicy is POST attestation-policy.
func (s *Server) serveSetAttestationPolicy(c *call) error {
	if err := s.checkEndpointAdmin(c, "attestation-policy"); err != nil {
		return err
	}
	u, text, err := c.readUpload()
	if err == nil {
		err = s.policies.SetAttestation(c.r.Context(), u.ID, text)
	}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return err
	}
	if err != nil {
		return fault(variantAttestation, because("Attestation error: Set Attestation Policy failed", err), err)
	}
	return nil
}

// serveSetResourcePolicy is POST resource-policy.
func (s *Server) serveSetResourcePolicy(c *call) error {
	if err := s.checkEndpointAdmin(c, "resource-policy"); err != nil {
		return err
	}
	_, text, err := c.readUpload()
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return err
	}
	if err != nil {
		return fault(variantParsePolicy, because("Error parsing policy", err), err)
	}
	if err := s.policies.SetResource(c.r.Context(), text); err != nil {
		return fault(variantPolicyEngine, because("Policy engine error", err), err)
	}
	return nil
}

// serveListResourcePolicies is GET resource-policy: ids, not texts.
func (s *Server) serveListResourcePolicies(c *call) error {
	if err := s.checkEndpointAdmin(c, "resource-policy"); err != nil {
		return err
	}
	return c.replyJSON([]string{policy.ResourceID})
}

// serveSetReferenceValues is POST reference-value.
func (s *Server) serveSetReferenceValues(c *call) error {
	if err := s.checkEndpointAdmin(c, "reference-value"); err != nil {
		return err
	}
	raw, err := c.body()
	if err != nil {
		return err
	}
	if err := s.values.Register(c.r.Context(), raw); err != nil {
		return fault(variantReferenceData, because("Reference Value Provider Service error", err), err)
	}
	c.reply("application/json", nil)
	return nil
}

// serveReferenceValue is GET reference-value/NAME.
func (s *Server) serveReferenceValue(c *call) error {
	if err := s.checkEndpointAdmin(c, "reference-value"); err != nil {
		return err
	}
	value, err := s.values.Raw(c.r.Context(), strings.Join(c.path, "/"))
	if err != nil {
		return fault(variantReferenceData, because("Reference Value Provider Service error", err), err)
	}
	c.reply("application/json", value)
	return nil
}
