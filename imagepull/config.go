package imagepull

import (
	"errors"
	"fmt"

	"github.com/sealpod/sealpod/imagepull/registry"
	"github.com/sealpod/sealpod/podvm"
)

// ErrConfig says that the [image] configuration, or a file it points to, cannot
// be used as it stands.
var ErrConfig = errors.New("invalid image configuration")

// maxConcurrentLayers bounds what a configuration may ask for: each layer in
// flight holds buffers.
const maxConcurrentLayers = 64

// authEnv always overrides Config.AuthURI.
// Source: guest-components hub/src/config/mod.rs at 8246e5e.
const authEnv = "CDH_DEFAULT_IMAGE_AUTHENTICATED_REGISTRY_CREDENTIALS"

// Config is the [image] table of the data hub's configuration. Start from
// DefaultConfig: absent keys keep their defaults. Names ending in URI take
// kbs://, kbs+<plugin>://, file:// or a bare path; what they point to is
// fetched anew for each pull.
// Source: guest-components image-rs src/config.rs at 8246e5e.
type Config struct {
	// WorkDir is the root of the layer store. It is created at the first pull,
	// because a volume may be mounted there after start-up.
	WorkDir string `config:"work_dir"`
	// ConcurrentLayers is how many layers of one image are in flight.
	ConcurrentLayers int `config:"max_concurrent_layer_downloads_per_image"`
	// PolicyURI locates the signature policy and beats Policy. Both empty:
	// every image is allowed, with a warning.
	PolicyURI string `config:"image_security_policy_uri"`
	// Policy is the signature policy itself, as JSON text.
	Policy string `config:"image_security_policy"`
	// SigstoreConfigURI and SigstoreConfig say where the signatures of GPG
	// simple signing are, as YAML; the URI beats the text. Both are read only
	// when the policy asks for signedBy. See package lookaside.
	SigstoreConfigURI string `config:"sigstore_config_uri"`
	SigstoreConfig    string `config:"sigstore_config"`
	// AuthURI locates registry credentials in auth.json form. Empty means
	// anonymous.
	AuthURI string `config:"authenticated_registry_credentials_uri"`
	// RegistriesURI locates registry rules as TOML; Registries beats it.
	RegistriesURI string          `config:"registry_configuration_uri"`
	Registries    *registry.Rules `config:"registry_config"`
	// Proxy replaces the proxy variables of the process environment.
	Proxy *Proxy `config:"image_pull_proxy"`
	// ExtraRoots are PEM certificates trusted beside the system's.
	ExtraRoots []string `config:"extra_root_certificates"`
	// DecryptionKeys locate private keys, RSA or EC in PEM, DER or JWK form, for
	// layers whose key is wrapped by JWE. They are tried in order and fetched
	// when a layer needs them. Upstream has no such key.
	DecryptionKeys []string `config:"decryption_keys"`
}

// Proxy says which URLs go through a proxy: HTTPS for https URLs, HTTP for
// http URLs, NoProxy (comma-separated hosts, domains, CIDRs) exempts from both.
type Proxy struct {
	HTTPS   string `config:"https_proxy"`
	HTTP    string `config:"http_proxy"`
	NoProxy string `config:"no_proxy"`
}

// DefaultConfig is what an empty [image] table means.
func DefaultConfig() Config {
	return Config{WorkDir: podvm.ImageWorkDir, ConcurrentLayers: 3}
}

// KernelConfig is what the kernel command line asks for, the last word of a
// name counting; it is used only when a configuration has no [image] section.
func KernelConfig(params podvm.KernelParams) Config {
	c := DefaultConfig()
	c.AuthURI, _ = params.Last("agent.image_registry_auth")
	var proxy Proxy
	proxy.HTTPS, _ = params.Last("agent.https_proxy")
	proxy.HTTP, _ = params.Last("agent.http_proxy")
	proxy.NoProxy, _ = params.Last("agent.no_proxy")
	if proxy != (Proxy{}) {
		c.Proxy = &proxy
	}
	if on, _ := params.Last("agent.enable_signature_verification"); on == "true" {
		c.PolicyURI, _ = params.Last("agent.image_policy_file")
	}
	return c
}

// WithEnv returns c with the environment's override of the credentials file
// applied.
func (c Config) WithEnv(host podvm.Host) Config {
	if uri := host.Getenv(authEnv); uri != "" {
		c.AuthURI = uri
	}
	return c
}

// Validate reports the first value that cannot work, as ErrConfig.
func (c Config) Validate() error {
	if c.WorkDir == "" {
		return fmt.Errorf("%w: work_dir is empty", ErrConfig)
	}
	if c.ConcurrentLayers < 1 || c.ConcurrentLayers > maxConcurrentLayers {
		return fmt.Errorf("%w: max_concurrent_layer_downloads_per_image is %d: want 1 to %d",
			ErrConfig, c.ConcurrentLayers, maxConcurrentLayers)
	}
	if c.Registries != nil {
		if err := c.Registries.Validate(); err != nil {
			return fmt.Errorf("%w: registry_config: %w", ErrConfig, err)
		}
	}
	return nil
}
