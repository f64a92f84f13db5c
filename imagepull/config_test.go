package imagepull

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sealpod/sealpod/imagepull/registry"
	"github.com/sealpod/sealpod/podvm"
)

func TestConfigKeys(t *testing.T) {
	const text = `
work_dir = "/w"
max_concurrent_layer_downloads_per_image = 5
image_security_policy_uri = "kbs:///a/b/c"
image_security_policy = "{}"
sigstore_config_uri = "kbs:///d/e/f"
sigstore_config = "x"
authenticated_registry_credentials_uri = "file:///auth.json"
registry_configuration_uri = "/registries.toml"
extra_root_certificates = ["pem"]
decryption_keys = ["kbs:///g/h/i", "/key.pem"]
[registry_config]
unqualified-search-registries = ["quay.io"]
[[registry_config.registry]]
prefix = "a.test"
location = "b.test"
[[registry_config.registry.mirror]]
location = "c.test"
insecure = true
[image_pull_proxy]
https_proxy = "http://p:1"
http_proxy = "http://p:2"
no_proxy = "local"
`
	got := DefaultConfig()
	unknown, err := podvm.DecodeConfig([]byte(text), "toml", &got)
	if err != nil || len(unknown) > 0 {
		t.Fatal(err, unknown)
	}
	want := Config{
		WorkDir: "/w", ConcurrentLayers: 5,
		PolicyURI: "kbs:///a/b/c", Policy: "{}", SigstoreConfigURI: "kbs:///d/e/f", SigstoreConfig: "x",
		AuthURI: "file:///auth.json", RegistriesURI: "/registries.toml", ExtraRoots: []string{"pem"},
		DecryptionKeys: []string{"kbs:///g/h/i", "/key.pem"},
		Registries: &registry.Rules{
			UnqualifiedSearch: []string{"quay.io"},
			Registry: []registry.Rule{{
				Prefix: "a.test", Location: "b.test",
				Mirror: []registry.Mirror{{Location: "c.test", Insecure: true}},
			}},
		},
		Proxy: &Proxy{HTTPS: "http://p:1", HTTP: "http://p:2", NoProxy: "local"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if err := got.Validate(); err != nil {
		t.Error(err)
	}
}

func TestEmptyConfigHasTheDefaults(t *testing.T) {
	c := DefaultConfig()
	if c.WorkDir != "/run/kata-containers/image/" || c.ConcurrentLayers != 3 || c.Validate() != nil {
		t.Errorf("%+v", c)
	}
}

func TestConfigRefuses(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"no work directory":      func(c *Config) { c.WorkDir = "" },
		"no layer at a time":     func(c *Config) { c.ConcurrentLayers = 0 },
		"a thousand layers":      func(c *Config) { c.ConcurrentLayers = 1000 },
		"an empty rule":          func(c *Config) { c.Registries = &registry.Rules{Registry: []registry.Rule{{}}} },
		"a root that is not PEM": func(c *Config) { c.ExtraRoots = []string{"x"} },
	} {
		c := DefaultConfig()
		change(&c)
		if _, err := New(Deps{Config: c}); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestKernelConfig(t *testing.T) {
	got := KernelConfig(strings.Fields("quiet agent.image_registry_auth=kbs:///x/y/z agent.image_registry_auth=kbs:///a/b/c agent.https_proxy=http://p:1 agent.no_proxy=x agent.image_policy_file=kbs:///p/o/l"))
	want := DefaultConfig()
	want.AuthURI = "kbs:///a/b/c"
	want.Proxy = &Proxy{HTTPS: "http://p:1", NoProxy: "x"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	got = KernelConfig(strings.Fields("agent.enable_signature_verification=true agent.image_policy_file=kbs:///p/o/l"))
	if got.PolicyURI != "kbs:///p/o/l" || got.Proxy != nil {
		t.Errorf("%+v", got)
	}
}

func TestEnvironmentOverridesCredentials(t *testing.T) {
	host := podvm.Host{LookupEnv: func(k string) (string, bool) { return "file:///env.json", k == authEnv }}
	if c := (Config{AuthURI: "kbs:///a/b/c"}).WithEnv(host); c.AuthURI != "file:///env.json" {
		t.Errorf("%q", c.AuthURI)
	}
}
