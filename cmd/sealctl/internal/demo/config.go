package demo

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/sealpod/sealpod/teesim"
)

// Where the demo's resources are at the relying party.
const (
	kekPath       = "demo/kek/app"
	signKeyPath   = "demo/cosign/key.pub"
	imagePolicy   = "demo/security-policy/images"
	secretPath    = "demo/secret/database-password"
	strangersKEK  = "other-tenant/kek/app"
	resourceOwner = "demo"
)

// resourcePolicy releases a resource of the demo's owner to a pod whose
// evidence met the reference values, and nothing else to anyone.
const resourcePolicy = `package policy

default allow := false

allow if {
	data.plugin == "resource"
	data["resource-path"][0] == "` + resourceOwner + `"
	input.submods.cpu0["ear.status"] == "affirming"
}
`

// referenceValues are what the owner expects of a good pod VM. The sample TEE
// always reports these; a hardware TEE reports measurements instead.
var referenceValues = map[string]any{
	"launch_digest":         []string{"abcde"},
	"svn":                   []string{"1"},
	"major_version":         1,
	"minimum_minor_version": 1,
}

// imagePolicyJSON is a containers policy.json: images of registry must carry a
// signature by the owner's key, which the relying party hands out; no other
// image may run.
func imagePolicyJSON(registry string) []byte {
	return fmt.Appendf(nil, `{
  "default": [{"type": "reject"}],
  "transports": {"docker": {%q: [{"type": "sigstoreSigned", "keyPath": "kbs:///%s"}]}}
}
`, registry, signKeyPath)
}

// guest is where one demo pod's daemons keep their sockets and files.
type guest struct {
	dir     string
	aaSock  string
	cdhSock string
	rest    string // host:port
	bundles string
	// initData is the document with the pod's configuration whose digest a
	// machine with a TEE is started with.
	initData string
	machine  *teesim.Machine // nil without a TEE
}

func newGuest(dir, restAddr string) (*guest, error) {
	g := &guest{
		dir: dir, rest: restAddr,
		aaSock: filepath.Join(dir, "aa.sock"), cdhSock: filepath.Join(dir, "cdh.sock"),
		bundles: filepath.Join(dir, "bundles"), initData: filepath.Join(dir, "initdata.toml"),
	}
	if len(g.cdhSock) > 100 {
		return nil, fmt.Errorf("the path %s is too long for a unix socket; set TMPDIR to a shorter one", g.cdhSock)
	}
	return g, os.MkdirAll(g.bundles, 0o700)
}

// close stops the machine.
func (g *guest) close() error {
	if g.machine == nil {
		return nil
	}
	return g.machine.Close()
}

// writeConfig writes aa.toml and cdh.toml as a pod VM's boot would, and the init
// data they came in. The registries speak plain HTTP on loopback.
func (g *guest) writeConfig(kbsURL string, registries ...string) error {
	aa := fmt.Sprintf("[token_configs.kbs]\nurl = %q\n", kbsURL)
	cdh := fmt.Sprintf(`socket = "unix://%s"

[aa]
aa_socket = "unix://%s"

[kbc]
name = "cc_kbc"
url = %q

[image]
work_dir = %q
image_security_policy_uri = "kbs:///%s"
`, g.cdhSock, g.aaSock, kbsURL, filepath.Join(g.dir, "images"), imagePolicy)
	for _, r := range registries {
		cdh += fmt.Sprintf("\n[[image.registry_config.registry]]\nlocation = %q\ninsecure = true\n", r)
	}
	init := fmt.Sprintf("version = \"0.1.0\"\nalgorithm = \"sha256\"\n\n[data]\n\"aa.toml\" = '''\n%s'''\n\"cdh.toml\" = '''\n%s'''\n", aa, cdh)
	for name, text := range map[string]string{"aa.toml": aa, "cdh.toml": cdh, filepath.Base(g.initData): init} {
		if err := os.WriteFile(filepath.Join(g.dir, name), []byte(text), 0o600); err != nil {
			return fmt.Errorf("writing %s: %w", name, err)
		}
	}
	return nil
}
