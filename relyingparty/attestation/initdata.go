package attestation

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm"
)

const (
	// maxConfigBytes is the longest configuration file of init data that is
	// parsed into claims. A longer one stays text: its nesting could exhaust the
	// stack.
	maxConfigBytes = 64 << 10
	// maxKeys is how many keys TOML from a guest may have. The decoder compares
	// each key with all before it: 100,000 of them keep it busy for half a minute.
	maxKeys = 1024
)

// readInitData returns the digest of the init data, over its exact bytes, and
// its data as claims: aa.toml and cdh.toml parsed where they parse, and in
// place of policy.rego the policy data it ends with as agent_policy_claims.
// Only the TOML form and the algorithms sha256, sha384 and sha512 are read;
// anything else is ErrAttestation.
// Source: trustee attestation-service/src/lib.rs; kata-containers initdata.
func readInitData(in kbs.InitData) (digest []byte, claims map[string]any, err error) {
	if in.Format != "toml" {
		return nil, nil, fmt.Errorf("%w: init data of format %q, want toml", ErrAttestation, podvm.Printable(in.Format, 32))
	}
	var doc struct {
		Version   *string           `toml:"version"`
		Algorithm string            `toml:"algorithm"`
		Data      map[string]string `toml:"data"`
	}
	if err := checkKeys([]byte(in.Body)); err != nil {
		return nil, nil, fmt.Errorf("%w: init data: %w", ErrAttestation, err)
	}
	if err := toml.Unmarshal([]byte(in.Body), &doc); err != nil {
		return nil, nil, fmt.Errorf("%w: init data: %w", ErrAttestation, err)
	}
	if doc.Version == nil || doc.Data == nil {
		return nil, nil, fmt.Errorf("%w: init data without version or [data]", ErrAttestation)
	}
	switch doc.Algorithm {
	case "sha256":
		d := sha256.Sum256([]byte(in.Body))
		digest = d[:]
	case "sha384":
		d := sha512.Sum384([]byte(in.Body))
		digest = d[:]
	case "sha512":
		d := sha512.Sum512([]byte(in.Body))
		digest = d[:]
	default:
		return nil, nil, fmt.Errorf("%w: init data algorithm %q, want sha256, sha384 or sha512",
			ErrAttestation, podvm.Printable(doc.Algorithm, 32))
	}
	return digest, initDataClaims(doc.Data), nil
}

// agentPolicy is the claim with the data of the guest's own policy.
const agentPolicy = "agent_policy_claims"

func initDataClaims(data map[string]string) map[string]any {
	claims := map[string]any{}
	for name, text := range data {
		if name == agentPolicy {
			continue // only a policy may say what the policy says
		}
		claims[name] = text
		switch name {
		case "aa.toml", "cdh.toml":
			if parsed := parseConfig(text); parsed != nil {
				claims[name] = parsed
			}
		case "policy.rego":
			if parsed := policyData(text); parsed != nil {
				delete(claims, name)
				claims[agentPolicy] = parsed
			}
		}
	}
	return claims
}

// parseConfig returns the TOML text as JSON, nil if it is not TOML or has
// values JSON does not (infinity, not a number) or too many keys.
func parseConfig(text string) json.RawMessage {
	var doc map[string]any
	if len(text) > maxConfigBytes || checkKeys([]byte(text)) != nil || toml.Unmarshal([]byte(text), &doc) != nil {
		return nil
	}
	raw, err := json.Marshal(doc)
	if err != nil {
		return nil
	}
	return raw
}

// checkKeys is an error for TOML with more than maxKeys keys; each part of a
// dotted key counts. It takes time in proportion to the text.
func checkKeys(text []byte) error {
	var p unstable.Parser
	p.Reset(text)
	for n := 0; p.NextExpression(); {
		if n += countKeys(p.Expression()); n > maxKeys {
			return fmt.Errorf("more than %d keys", maxKeys)
		}
	}
	return p.Error()
}

// countKeys returns the number of keys in an expression and in its value.
func countKeys(e *unstable.Node) int {
	n := 0
	switch e.Kind {
	case unstable.KeyValue:
		for key := e.Key(); key.Next(); {
			n++
		}
		n += countKeys(e.Value())
	case unstable.Table, unstable.ArrayTable:
		for key := e.Key(); key.Next(); {
			n++
		}
	case unstable.Array, unstable.InlineTable:
		for child := e.Children(); child.Next(); {
			n += countKeys(child.Node())
		}
	}
	return n
}

// policyData returns the JSON object that a kata agent policy assigns to
// policy_data at its end, nil if there is none.
func policyData(text string) json.RawMessage {
	const assignment = "policy_data := {"
	at := strings.Index(text, assignment)
	if at < 0 {
		return nil
	}
	raw := json.RawMessage(text[at+len(assignment)-1:])
	if !json.Valid(raw) {
		return nil
	}
	return raw
}
