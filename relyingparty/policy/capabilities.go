package policy

import (
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

const referenceFunction = "query_reference_value"

// capabilities is what a policy may use: builtins that compute from their
// arguments alone, and the clock. Trustee's engine has core, regex, base64 and
// time; the others here are as harmless. Left out are the network (http, net,
// providers), the process (opa, rego, trace), randomness (rand, uuid), schema
// fetching (json.*schema, graphql), JWT and certificate handling, which belongs
// into verifiers, and numbers.range, which fills memory from one number.
func capabilities() *ast.Capabilities {
	groups := []string{
		"array", "base64", "base64url", "bits", "glob", "hex", "internal", "json", "object", "regex",
		"semver", "strings", "time", "units", "urlquery", "yaml",
	}
	caps := ast.CapabilitiesForThisVersion()
	caps.AllowNet = []string{}
	caps.Builtins = slices.DeleteFunc(slices.Clone(caps.Builtins), func(b *ast.Builtin) bool {
		group, _, dotted := strings.Cut(b.Name, ".")
		switch {
		case b.Name == "trace", strings.HasSuffix(b.Name, "_schema"), b.Name == "strings.render_template":
			return true
		case b.Name == "crypto.sha256":
			return false
		}
		return dotted && !slices.Contains(groups, group)
	})
	return caps
}
