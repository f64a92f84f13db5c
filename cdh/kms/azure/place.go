package azure

import (
	"errors"
	"fmt"
	"strings"

	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
)

// publicAuthority is the host that logins to the public cloud go to.
const publicAuthority = "login.microsoftonline.com"

// clouds are the domains of Key Vault and of Managed HSM, each with the host that
// logins go to.
// Source: Microsoft, "Azure Key Vault keys, secrets and certificates overview"
// (DNS suffixes); azure-sdk-for-go sdk/azcore/cloud/cloud.go (authority hosts);
// azure-cli src/azure-cli-core/azure/cli/core/cloud.py (Managed HSM suffixes).
var clouds = []struct{ domain, authority string }{
	{"vault.azure.net", publicAuthority},
	{"managedhsm.azure.net", publicAuthority},
	{"vault.azure.cn", "login.chinacloudapi.cn"},
	{"managedhsm.azure.cn", "login.chinacloudapi.cn"},
	{"vault.usgovcloudapi.net", "login.microsoftonline.us"},
	{"managedhsm.usgovcloudapi.net", "login.microsoftonline.us"},
}

// place is where a vault is.
type place struct {
	name      string // a label in lower case
	domain    string
	authority string // host name
}

func (p place) host() string { return p.name + "." + p.domain }

// resource is what a token for the vault is good for.
func (p place) resource() string { return "https://" + p.domain }

// parsePlace reads a vault URL, https://NAME.DOMAIN with a known domain.
func parsePlace(text string) (place, error) {
	u, err := wire.BaseURL(text)
	if err != nil {
		return place{}, err
	}
	if u.Scheme == "https" && u.Port() == "" && strings.Trim(u.Path, "/") == "" {
		name, domain, _ := strings.Cut(u.Hostname(), ".")
		for _, c := range clouds {
			if isObjectName(name) && c.domain == strings.ToLower(domain) {
				return place{strings.ToLower(name), c.domain, c.authority}, nil
			}
		}
	}
	return place{}, errors.New("want https://NAME.vault.azure.net, or .managedhsm.azure.net, or their like in the clouds of China and the US government")
}

// object returns the path of an object of a kind ("keys", "secrets") that is
// named NAME, NAME/VERSION or by its identifier, which is a URL.
func (p place) object(kind, id string) (string, error) {
	id = strings.TrimPrefix(id, "https://"+p.host()+"/"+kind+"/")
	name, version, versioned := strings.Cut(id, "/")
	if !isObjectName(name) || versioned && !isObjectName(version) {
		return "", fmt.Errorf("identifier among the %s: want NAME or NAME/VERSION of letters, digits and hyphens", kind)
	}
	return "/" + kind + "/" + id, nil
}

// isObjectName tells whether s is a name of letters, digits and hyphens.
func isObjectName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if ('a' > c || c > 'z') && ('A' > c || c > 'Z') && ('0' > c || c > '9') && c != '-' {
			return false
		}
	}
	return s != "" && len(s) <= 127
}
