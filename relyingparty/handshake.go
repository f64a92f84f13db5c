package relyingparty

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/relyingparty/attestation"
	"github.com/sealpod/sealpod/relyingparty/policy"
	"github.com/sealpod/sealpod/relyingparty/session"
	"github.com/sealpod/sealpod/relyingparty/token"
	"github.com/sealpod/sealpod/relyingparty/verifier"
)

// cookieName names the session cookie.
const cookieName = "kbs-session-id"

const (
	detailAuth   = "Attestation error: RCAR handshake Auth failed"
	detailAttest = "Attestation error: RCAR handshake Attest failed"
)

// maxAuthBytes caps the body of POST auth: two short strings and a list of
// algorithms.
const maxAuthBytes = 64 << 10

// maxWorkBytes is how many bytes of attestations and tokens are verified and
// appraised at a time; what comes on top waits. Anybody can send them, and a
// policy takes up to a hundred times their size.
const maxWorkBytes = 8 << 20

// serveAuth is POST auth: Request to Challenge, and a session cookie.
func (s *Server) serveAuth(c *call) error {
	s.metrics.add("kbs_auth_requests_total")
	challenge, ses, err := s.openSession(c)
	if err != nil {
		s.metrics.add("kbs_auth_errors_total")
		var tooLarge *http.MaxBytesError
		var f *failure
		if errors.As(err, &tooLarge) || errors.As(err, &f) {
			return err
		}
		return fault(variantAttestation, because(detailAuth, err), err)
	}
	s.metrics.add("kbs_auth_successes_total")
	c.log = c.log.With("tee", ses.TEE)
	c.setCookie(ses)
	return c.replyJSON(challenge)
}

func (s *Server) openSession(c *call) (kbs.Challenge, session.Session, error) {
	c.r.Body = http.MaxBytesReader(c.w, c.r.Body, maxAuthBytes)
	raw, err := c.body()
	if err != nil {
		return kbs.Challenge{}, session.Session{}, err
	}
	var req kbs.Request
	if err := json.Unmarshal(raw, &req); err != nil {
		return kbs.Challenge{}, session.Session{}, err
	}
	// Of a semantic version only the build metadata may differ.
	if v, _, _ := strings.Cut(req.Version, "+"); v != kbs.Version {
		return kbs.Challenge{}, session.Session{}, fmt.Errorf("KBS Client Protocol Version Mismatch: expect =%s while the request is %s",
			kbs.Version, podvm.Printable(req.Version, 64))
	}
	if err := s.attest.CheckTEE(req.TEE); err != nil {
		return kbs.Challenge{}, session.Session{}, err
	}
	ses := session.New(req.TEE, s.now().Add(s.cfg.SessionLifetime))
	if err := s.sessions.Put(c.r.Context(), ses); err != nil {
		return kbs.Challenge{}, session.Session{}, fault(variantAttestation, detailAuth, err)
	}
	return kbs.Challenge{Nonce: ses.Nonce, ExtraParams: json.RawMessage(`""`)}, ses, nil
}

// setCookie sends the session cookie with no attribute but Expires: clients
// derive the path /kbs/v0 from the request.
func (c *call) setCookie(ses session.Session) {
	http.SetCookie(c.w, &http.Cookie{Name: cookieName, Value: ses.ID, Expires: ses.Expires}) //nolint:gosec // attributes are the protocol's
}

// session returns the session that the request's cookie names.
func (s *Server) session(c *call) (session.Session, error) {
	cookie, err := c.r.Cookie(cookieName)
	if err != nil {
		return session.Session{}, fmt.Errorf("reading the session cookie: %w", err)
	}
	return s.sessions.Get(c.r.Context(), cookie.Value)
}

// serveAttest is POST attest: Attestation to token. A session that attested
// answers with the token it has; evidence is not verified again.
func (s *Server) serveAttest(c *call) error {
	s.metrics.add("kbs_attestation_requests_total")
	ses, err := s.session(c)
	if err != nil {
		s.metrics.add("kbs_attestation_errors_total")
		return fault(variantAttestation, because(detailAttest, attestCause(err)), err)
	}
	c.log = c.log.With("tee", ses.TEE)
	if ses.Token == "" {
		if err := s.attestSession(c, &ses); err != nil {
			s.metrics.add("kbs_attestation_failures_total", ses.TEE)
			var tooLarge *http.MaxBytesError
			if errors.As(err, &tooLarge) {
				return err
			}
			return fault(variantAttestation, because(detailAttest, attestCause(err)), err)
		}
		s.metrics.add("kbs_attestation_successes_total", ses.TEE)
		s.metrics.attestations.Add(1)
	}
	c.setCookie(ses)
	return c.replyJSON(kbs.TokenResponse{Token: ses.Token})
}

func (s *Server) attestSession(c *call, ses *session.Session) error {
	raw, err := c.body()
	if err != nil {
		return err
	}
	// Only now that all of it is here: a slow sender must not hold room.
	room, err := s.enter(c.r.Context(), int64(len(raw)))
	if err != nil {
		return fmt.Errorf("waiting for attestations before this one: %w", err)
	}
	defer room.leave()
	var a kbs.Attestation
	if err := json.Unmarshal(raw, &a); err != nil {
		return fmt.Errorf("%w: %w", attestation.ErrAttestation, err)
	}
	result, err := s.attest.Attest(verifier.WithPark(c.r.Context(), room.park), ses.TEE, ses.Nonce, a)
	if err != nil {
		return err
	}
	c.log = c.log.With("status", result.Status)
	if result.Unmet != "" {
		c.log = c.log.With("unmet", podvm.Printable(result.Unmet, maxLogBytes))
	}
	ses.Token, err = s.sessions.Settle(c.r.Context(), ses.ID, result.Token)
	return err
}

// attestCause is what the guest is told of an attestation that is refused. Which
// check its evidence does not pass tells it nothing that it does not know. What
// is wrong on this side it may know of in general only.
func attestCause(err error) error {
	for _, own := range []error{attestation.ErrAttestation, attestation.ErrNonce, attestation.ErrTEE, verifier.ErrEvidence} {
		if errors.Is(err, own) {
			return err
		}
	}
	switch {
	case errors.Is(err, session.ErrNotFound), errors.Is(err, http.ErrNoCookie):
		return errors.New("no such session: it is over, or another relying party has it")
	case errors.Is(err, policy.ErrNone):
		return errors.New("no attestation policy for this kind of evidence")
	case errors.Is(err, policy.ErrEval), errors.Is(err, policy.ErrPolicy):
		return errors.New("the attestation policy gives no result")
	case errors.Is(err, token.ErrTooLarge):
		return errors.New("the evidence does not fit into a token")
	}
	return errors.New("the relying party cannot verify evidence at the moment")
}
