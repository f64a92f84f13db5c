package relyingparty

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/relyingparty/attestation"
	"github.com/sealpod/sealpod/relyingparty/policy"
	"github.com/sealpod/sealpod/relyingparty/store"
	"github.com/sealpod/sealpod/relyingparty/token"
)

const resourcePlugin = "resource"

// resourcePath is repository/type/tag.
// Source: trustee kbs/src/plugins/implementations/resource at 78962cd4.
var resourcePath = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*){2}$`)

// serveResource is the resource plugin: guests read with a token, the
// administrator writes, deletes and lists.
func (s *Server) serveResource(c *call) error {
	// Some clients write resource//a/b/c; the policy must not see a difference.
	for len(c.path) > 0 && c.path[0] == "" {
		c.path = c.path[1:]
	}
	if c.r.Method == http.MethodGet && len(c.path) > 0 {
		return s.serveRelease(c)
	}
	if err := s.checkAdmin(c.r); err != nil {
		return fault(variantPluginAdmin, "failed to initialize [admin] configuration: "+whyNotAdmin(err), err)
	}
	if c.r.Method == http.MethodGet {
		return s.serveListResources(c)
	}
	return s.serveChangeResource(c)
}

// serveRelease is GET resource/REPOSITORY/TYPE/TAG by a guest.
func (s *Server) serveRelease(c *call) error {
	key, err := s.authorise(c)
	if err != nil {
		return err
	}
	path, err := c.resource()
	if err != nil {
		return fault(variantPlugin, detailPlugin, err)
	}
	value, err := s.store.Get(c.r.Context(), store.Repository, path)
	if err != nil {
		return fault(variantPlugin, detailPlugin, fmt.Errorf("reading resource %s: %w", path, err))
	}
	defer podvm.Secret(value).Wipe()
	sealed, err := kbs.Encrypt(key, value)
	if err != nil {
		return fault(variantJWE, "JWE failed", fmt.Errorf("encrypting resource %s: %w", path, err))
	}
	s.metrics.add("kbs_resource_reads_total", path)
	c.reply("application/json", sealed)
	return nil
}

// authorise returns the key of a guest whose token opens the resource.
func (s *Server) authorise(c *call) (kbs.PublicKey, error) {
	text, err := s.tokenOf(c)
	if err != nil {
		return kbs.PublicKey{}, err
	}
	room, err := s.enter(c.r.Context(), int64(min(len(text), token.MaxBytes)))
	if err != nil {
		return kbs.PublicKey{}, fault(variantPlugin, detailPlugin, fmt.Errorf("waiting for requests before this one: %w", err))
	}
	defer room.leave()
	claims, err := s.issuer.Verify(text)
	if err != nil {
		return kbs.PublicKey{}, fault(variantToken, "Token Verifier error", err)
	}
	if err := s.checkResourcePolicy(c, claims); err != nil {
		return kbs.PublicKey{}, err
	}
	key, err := claims.TEEKey()
	if err != nil {
		return kbs.PublicKey{}, fault(variantToken, "Token Verifier error", err)
	}
	return key, nil
}

// tokenOf returns the token of the session, or else the bearer token.
func (s *Server) tokenOf(c *call) (string, error) {
	text := ""
	if ses, err := s.session(c); err == nil {
		text = ses.Token
	}
	if text == "" {
		text = bearer(c.r)
	}
	if text == "" {
		return "", fault(variantNoToken, "Attestation Token not found",
			errors.New("no attested session and no bearer token: the guest has to attest first"))
	}
	return text, nil
}

// checkResourcePolicy asks the policy whether the token opens the resource.
func (s *Server) checkResourcePolicy(c *call, claims token.Claims) error {
	s.metrics.add("kbs_policy_evaluations_total")
	path := make([]any, len(c.path))
	for i, seg := range c.path {
		path[i] = seg
	}
	query := map[string]any{}
	for k, v := range c.args {
		query[k] = v
	}
	data := map[string]any{"plugin": resourcePlugin, "resource-path": path, "query": query}
	p, err := s.policies.Resource(c.r.Context())
	allowed := false
	if err == nil {
		allowed, err = p.Allow(c.r.Context(), claims, data)
	}
	switch {
	case err != nil:
		s.metrics.add("kbs_policy_errors_total")
		return fault(variantPolicyEngine, "Policy engine error", err)
	case !allowed:
		s.metrics.add("kbs_policy_violations_total")
		reasons, err := p.Reasons(c.r.Context(), claims, data)
		if err != nil {
			c.log.Warn("The resource policy gives no reasons", "err", podvm.Printable(err.Error(), maxLogBytes))
		}
		why := refusal(reasons, attestation.Unmet(claims))
		return fault(variantDenied, because("Access denied by policy", why),
			fmt.Errorf("%s does not allow %s: %w", policy.ResourceID, podvm.Printable(strings.Join(c.path, "/"), 256), why))
	}
	s.metrics.add("kbs_policy_approvals_total")
	return nil
}

// refusal is why a resource policy refuses a guest: its own reasons, and what
// the attestation policy did not affirm.
func refusal(reasons []string, unmet string) error {
	if unmet != "" {
		reasons = append(reasons, unmet)
	}
	if len(reasons) == 0 {
		return errors.New("the guest is affirmed, but may not read this")
	}
	return errors.New(strings.Join(reasons, "; "))
}

// serveChangeResource is POST and DELETE by the administrator.
func (s *Server) serveChangeResource(c *call) error {
	path, err := c.resource()
	if err != nil {
		return fault(variantPlugin, detailPlugin, err)
	}
	switch c.r.Method {
	case http.MethodPost:
		value, err := c.body()
		if err != nil {
			return err
		}
		defer podvm.Secret(value).Wipe()
		if err := s.store.Put(c.r.Context(), store.Repository, path, value); err != nil {
			return fault(variantPlugin, detailPlugin, fmt.Errorf("writing resource %s: %w", path, err))
		}
		s.metrics.add("kbs_resource_writes_total", path)
	case http.MethodDelete:
		if err := s.store.Delete(c.r.Context(), store.Repository, path); err != nil {
			return fault(variantPlugin, detailPlugin, fmt.Errorf("deleting resource %s: %w", path, err))
		}
		s.metrics.add("kbs_resource_deletes_total", path)
	default:
		return fault(variantPlugin, detailPlugin, errors.New("resources have GET, POST and DELETE"))
	}
	c.reply("text/xml", nil)
	return nil
}

// serveListResources is GET resource by the administrator.
func (s *Server) serveListResources(c *call) error {
	keys, err := s.store.List(c.r.Context(), store.Repository)
	if err != nil {
		return fault(variantPlugin, detailPlugin, fmt.Errorf("listing resources: %w", err))
	}
	list := []string{}
	for _, key := range keys {
		if resourcePath.MatchString(key) {
			list = append(list, key)
		}
	}
	return c.replyJSON(list)
}

// resource returns the path of the resource that the request names.
func (c *call) resource() (string, error) {
	path := strings.Join(c.path, "/")
	if !resourcePath.MatchString(path) {
		return "", fmt.Errorf("resource %q: want repository/type/tag of letters, digits and - _ ., with no dot in front",
			podvm.Printable(path, 256))
	}
	return path, nil
}
