package server

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"strings"

	"github.com/sealpod/sealpod/cdh/resource"
	"github.com/sealpod/sealpod/imagepull"
	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/metrics"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// ErrConfig says that the configuration cannot be used as it stands.
var ErrConfig = errors.New("invalid data hub configuration")

// Config is the data hub's configuration file. Start from LoadConfig.
// Source: guest-components confidential-data-hub/hub/src/config/mod.rs at 8246e5e.
type Config struct {
	Socket string `config:"socket"` // unix://PATH to listen on
	// SkipSealedSecretVerification takes sealed secrets whoever signed them.
	SkipSealedSecretVerification bool `config:"skip_sealed_secret_verification"`
	Log                          struct {
		Level string `config:"level"`
	} `config:"log"`
	AA struct {
		Socket string `config:"aa_socket"` // unix://PATH of the attestation agent
	} `config:"aa"`
	KBC         KBC              `config:"kbc"`
	Credentials []Credential     `config:"credentials"`
	Image       imagepull.Config `config:"image"`
	Metrics     struct {         // upstream has no such table
		// Listen is where metrics and status are, see metrics.Listen: "" is the
		// socket beside Socket.
		Listen string `config:"listen"`
	} `config:"metrics"`

	GRPC GRPC `config:"grpc"` // upstream has no such table
	// CloudVolumes is for the forwarder, see forwarder/volume.Rules; upstream has no
	// such table.
	CloudVolumes map[string]any `config:"cloud_volumes"`

	// WriteNothing keeps Open from writing files, credentials among them, and so
	// from fetching those.
	WriteNothing bool `config:"-"`
	// Observer, if not nil, is told of every pull.
	Observer imagepull.Observer `config:"-"`
	// TokenAASocket is AA.Socket unless the environment names another for
	// getting tokens; measurements always go to AA.Socket.
	TokenAASocket string `config:"-"`
	// ExtraFiles are the offline provider's additional files.
	ExtraFiles []string `config:"-"`
}

// KBC says where resources come from.
type KBC struct {
	Name string `config:"name"` // cc_kbc or offline_fs_kbc; required in a file
	URL  string `config:"url"`
	Cert string `config:"kbs_cert"` // PEM, trusted beside the system's roots
}

// Credential is a resource written to a file before the data hub serves.
type Credential struct {
	Path string `config:"path"`         // absolute, below podvm.CDHResourceDir
	URI  string `config:"resource_uri"` // kbs:///…
}

// LoadConfig puts the configuration together. Later wins:
//
//	defaults
//	the file at path, or, when path is "", the kernel parameter agent.aa_kbc_params
//	the environment: AA_KBC_PARAMS, AA_SOCKET, KBS_CERT (only where the file
//	  names no certificate), OFFLINE_FS_KBC_EXTRA_FILE_PATH
//
// The kernel parameter cdh.kbs_resources adds credentials, and agent.image_… and
// agent.*_proxy make up the image table when the file has none. The credentials
// variable of the image table is applied by package imagepull.
//
// It returns the file's keys that nothing reads. Errors: ErrConfig,
// podvm.ErrConfig, or why a file could not be read.
func LoadConfig(path string, host podvm.Host) (Config, []podvm.UnknownKey, error) {
	params, err := host.KernelParams()
	if err != nil {
		return Config{}, nil, err
	}
	c := Config{Socket: "unix://" + podvm.CDHSocket, Image: imagepull.DefaultConfig()}
	c.AA.Socket = "unix://" + podvm.AASocket
	var unknown []podvm.UnknownKey
	var hasImage bool
	if path != "" {
		if unknown, err = podvm.LoadConfig(path, &c); err != nil {
			return Config{}, nil, err
		}
		if hasImage, err = checkFile(path, c); err != nil {
			return Config{}, nil, err
		}
	}
	if !hasImage {
		c.Image = imagepull.KernelConfig(params)
	}
	if err := c.applyKBCParams(path == "", params, host); err != nil {
		return Config{}, nil, err
	}
	c.applyEnv(host)
	c.Credentials = append(c.Credentials, kernelCredentials(params)...)
	return c, unknown, c.validate()
}

// checkFile checks what only a file has to have and tells whether it has an
// image table, which the decoded values no longer show.
func checkFile(path string, c Config) (hasImage bool, err error) {
	if c.KBC.Name == "" {
		return false, fmt.Errorf("%w: %s: [kbc] name is missing: want %s or %s", ErrConfig, path, resource.CC, resource.OfflineFS)
	}
	for i, cred := range c.Credentials {
		if cred.Path == "" || cred.URI == "" {
			return false, fmt.Errorf("%w: %s: credentials[%d] needs path and resource_uri", ErrConfig, path, i)
		}
	}
	var tables struct {
		Image map[string]any `config:"image"`
	}
	if _, err := podvm.LoadConfig(path, &tables); err != nil {
		return false, err
	}
	return tables.Image != nil, nil
}

// applyKBCParams overrides [kbc] with "<name>::<url>" from the environment or,
// without a file, the kernel command line. The text is split at the first "::",
// so that an IPv6 address may follow.
func (c *Config) applyKBCParams(noFile bool, params podvm.KernelParams, host podvm.Host) error {
	from, text := "AA_KBC_PARAMS", host.Getenv("AA_KBC_PARAMS")
	if text == "" && noFile {
		from = "agent.aa_kbc_params"
		if text, _ = params.First(from); text == "" {
			text = resource.OfflineFS + "::"
		}
	}
	if text == "" {
		return nil
	}
	name, url, ok := strings.Cut(text, "::")
	if !ok || name == "" {
		return fmt.Errorf("%w: %s is %q: want KBC::URL", ErrConfig, from, podvm.Printable(text, 200))
	}
	c.KBC.Name, c.KBC.URL = name, url
	return nil
}

func (c *Config) applyEnv(host podvm.Host) {
	c.TokenAASocket = c.AA.Socket
	if s := host.Getenv("AA_SOCKET"); s != "" {
		c.TokenAASocket = s
	}
	if c.KBC.Cert == "" {
		c.KBC.Cert = host.Getenv("KBS_CERT")
	}
	for _, f := range strings.Split(host.Getenv("OFFLINE_FS_KBC_EXTRA_FILE_PATH"), ",") {
		if f = strings.TrimSpace(f); f != "" {
			c.ExtraFiles = append(c.ExtraFiles, f)
		}
	}
	if host.Getenv("SKIP_SEALED_SECRET_VERIFICATION") == "true" {
		c.SkipSealedSecretVerification = true
	}
}

// kernelCredentials reads cdh.kbs_resources=<uri>::<path>,… and leaves out
// malformed entries, as upstream does.
func kernelCredentials(params podvm.KernelParams) []Credential {
	text, _ := params.First("cdh.kbs_resources")
	var out []Credential
	for _, entry := range strings.Split(text, ",") {
		if uri, path, ok := strings.Cut(entry, "::"); ok && uri != "" && path != "" {
			out = append(out, Credential{Path: path, URI: uri})
		}
	}
	return out
}

func (c *Config) validate() error {
	for key, addr := range map[string]string{"socket": c.Socket, "aa.aa_socket": c.AA.Socket, "AA_SOCKET": c.TokenAASocket} {
		if _, err := rpc.SocketPath(addr); err != nil {
			if _, e := netip.ParseAddrPort(addr); e == nil && key == "socket" { // as upstream's grpc-cdh has it
				err = fmt.Errorf("%w; for gRPC as well, set listen in [grpc]", err)
			}
			return fmt.Errorf("%w: %s: %w", ErrConfig, key, err)
		}
	}
	if c.KBC.Name != resource.CC && c.KBC.Name != resource.OfflineFS {
		return fmt.Errorf("%w: kbc %q: want %s or %s", ErrConfig, podvm.Printable(c.KBC.Name, 64), resource.CC, resource.OfflineFS)
	}
	if err := metrics.Check(c.Metrics.Listen); err != nil {
		return fmt.Errorf("%w: metrics.listen: %w", ErrConfig, err)
	}
	if err := c.GRPC.check(); err != nil {
		return fmt.Errorf("%w: grpc.listen: %w", ErrConfig, err)
	}
	if c.Log.Level != "" {
		if _, err := podvm.LogLevel(c.Log.Level); err != nil {
			return fmt.Errorf("%w: log.level: %w", ErrConfig, err)
		}
	}
	for _, cred := range c.Credentials {
		if _, err := credentialName(cred.Path); err != nil {
			return err
		}
	}
	return nil
}

// Print writes the settings in force for people to read.
func (c Config) Print(w io.Writer) error {
	cert := "system roots"
	if c.KBC.Cert != "" {
		cert += " and kbs_cert"
	}
	policy := c.Image.PolicyURI
	switch {
	case policy == "" && c.Image.Policy != "":
		policy = "inline"
	case policy == "":
		policy = "none: every image is allowed"
	}
	sealed := "verified"
	if c.SkipSealedSecretVerification {
		sealed = "taken without verification"
	}
	var b strings.Builder
	for _, row := range [][2]string{
		{"socket", c.Socket}, {"attestation agent", c.AA.Socket},
		{"resources from", c.KBC.Name + " " + redacted(c.KBC.URL)}, {"trusted certificates", cert},
		{"gRPC", c.GRPC.String()}, {"metrics", c.metricsAt()},
		{"credentials", fmt.Sprint(len(c.Credentials))},
		{"sealed secrets", sealed}, {"image store", c.Image.WorkDir}, {"image policy", policy},
	} {
		fmt.Fprintf(&b, "%-21s %s\n", row[0], podvm.Printable(row[1], 200))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// metricsAt is where metrics and status are.
func (c Config) metricsAt() string {
	if c.Metrics.Listen != "" {
		return c.Metrics.Listen
	}
	return metrics.Socket(c.Socket)
}

// redacted is text without the password a URL may hold.
func redacted(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return "(not a URL)"
	}
	return u.Redacted()
}

// CheckClients checks without connecting what a start would not: the KBS address
// and certificate, the offline files, the image table.
func (c Config) CheckClients(host podvm.Host) error {
	if c.KBC.Name == resource.CC {
		client, err := kbs.NewClient(kbs.ClientConfig{URL: c.KBC.URL, CertPEM: []byte(c.KBC.Cert)})
		if err != nil {
			return fmt.Errorf("[kbc]: %w", err)
		}
		client.Close()
	} else {
		offline, err := resource.New(resource.Config{KBC: c.KBC.Name, ExtraFiles: c.ExtraFiles, Host: host})
		if err != nil {
			return err
		}
		if err := offline.Close(); err != nil {
			return err
		}
	}
	if err := c.Image.WithEnv(host).Validate(); err != nil {
		return fmt.Errorf("[image]: %w", err)
	}
	return nil
}
