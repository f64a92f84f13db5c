package server

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"strconv"
	"strings"

	"github.com/sealpod/sealpod/attester"
	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/metrics"
)

// Config is the attestation agent's configuration file. Keys marked "ours" are
// unknown to upstream, which ignores them.
// Source: guest-components attestation-agent/src/config at 8246e5e0.
type Config struct {
	Tokens   TokenConfigs   `config:"token_configs"`
	EventLog EventLogConfig `config:"eventlog_config"`
	Log      LogConfig      `config:"log"`
	Attester AttesterConfig `config:"attester"` // ours
	InitData InitDataConfig `config:"initdata"` // ours
	Metrics  MetricsConfig  `config:"metrics"`  // ours
}

// TokenConfigs says where tokens come from; nil means not at all.
type TokenConfigs struct {
	KBS    *KBSConfig    `config:"kbs"`
	CoCoAS *CoCoASConfig `config:"coco_as"`
}

// KBSConfig is the table token_configs.kbs.
type KBSConfig struct {
	URL string `config:"url"` // required
	// Cert is PEM: certificates to trust beside those of the system.
	Cert            string           `config:"cert"`
	TEEKeyAlgorithm kbs.KeyAlgorithm `config:"tee_key_algorithm"`
	// Cache keeps a token until 0.8 of its life; nil means true. Ours.
	Cache *bool `config:"cache"`
}

// CoCoASConfig is the table token_configs.coco_as.
type CoCoASConfig struct {
	URL string `config:"url"` // required
}

// EventLogConfig is the table eventlog_config.
type EventLogConfig struct {
	// InitPCR is for events that name no register; nil means the platform's
	// default.
	InitPCR *uint64 `config:"init_pcr"`
	Enable  bool    `config:"enable_eventlog"`
}

// LogConfig is the table log.
type LogConfig struct {
	Level string `config:"level"`
}

// MetricsConfig is the table metrics. Ours.
type MetricsConfig struct {
	// Listen is where metrics and status are, see metrics.Listen: "" is the
	// socket beside the agent's.
	Listen string `config:"listen"`
}

// AttesterConfig is the table attester. Ours.
type AttesterConfig struct {
	// Allow lists the TEEs that may be used; empty means all. The environment
	// variable SEALPOD_ATTESTERS, separated by commas, takes its place.
	Allow []string `config:"allow"`
}

// InitDataConfig is the table initdata. Ours.
type InitDataConfig struct {
	// RTMR3 makes init data the first event of RTMR3 on a TDX guest whose host
	// set no MRCONFIGID, instead of refusing to start; see BindInitData. The
	// environment variable SEALPOD_INITDATA_RTMR3, true or false, takes its
	// place.
	RTMR3 bool `config:"rtmr3"`
}

// LoadConfig reads the file at path, or, when path is "", takes the KBS from
// the environment variable AA_KBC_PARAMS or the kernel parameter
// agent.aa_kbc_params (with a file neither is looked at, as upstream). The
// result is valid. Keys nothing reads are returned beside it.
//
// Errors: podvm.ErrConfig for content, those of podvm.LoadConfig.
func LoadConfig(path string, host podvm.Host) (Config, []podvm.UnknownKey, error) {
	c := Config{Log: LogConfig{Level: "info"}}
	var unknown []podvm.UnknownKey
	if path == "" {
		if u := kbsFromParams(host); u != "" {
			c.Tokens.KBS = &KBSConfig{URL: u}
		}
	} else {
		var err error
		if unknown, err = podvm.LoadConfig(path, &c); err != nil {
			return Config{}, nil, fmt.Errorf("loading the configuration: %w", err)
		}
	}
	var allow []string
	for tee := range strings.SplitSeq(host.Getenv("SEALPOD_ATTESTERS"), ",") {
		if tee = strings.TrimSpace(tee); tee != "" {
			allow = append(allow, tee)
		}
	}
	if len(allow) > 0 { // an empty list must not allow all
		c.Attester.Allow = allow
	}
	if text := host.Getenv("SEALPOD_INITDATA_RTMR3"); text != "" {
		on, err := strconv.ParseBool(text)
		if err != nil {
			return Config{}, nil, fmt.Errorf("checking the configuration: %w: SEALPOD_INITDATA_RTMR3: want true or false", podvm.ErrConfig)
		}
		c.InitData.RTMR3 = on
	}
	if err := c.validate(); err != nil {
		return Config{}, nil, fmt.Errorf("checking the configuration: %w: %w", podvm.ErrConfig, err)
	}
	return c, unknown, nil
}

// kbsFromParams returns the URL in "cc_kbc::URL", "" if there is none. Only the
// first "::" separates, so the URL may hold an IPv6 address.
func kbsFromParams(host podvm.Host) string {
	value, ok := host.Env("AA_KBC_PARAMS")
	if !ok {
		params, err := host.KernelParams()
		if err != nil {
			return "" // no /proc: no KBS configured, as upstream
		}
		value, _ = params.First("agent.aa_kbc_params")
	}
	kbc, u, ok := strings.Cut(value, "::")
	if !ok || kbc != "cc_kbc" {
		return ""
	}
	return u
}

// validate checks what can be checked without the network.
func (c *Config) validate() error {
	var errs []error
	if k := c.Tokens.KBS; k != nil {
		if k.URL == "" {
			errs = append(errs, errors.New("token_configs.kbs.url is missing"))
		}
		if err := k.TEEKeyAlgorithm.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("token_configs.kbs.tee_key_algorithm: %w", err))
		}
	}
	if a := c.Tokens.CoCoAS; a != nil && a.URL == "" {
		errs = append(errs, errors.New("token_configs.coco_as.url is missing"))
	}
	if _, err := podvm.LogLevel(c.Log.Level); err != nil {
		errs = append(errs, fmt.Errorf("log.level: %w", err))
	}
	if err := metrics.Check(c.Metrics.Listen); err != nil {
		errs = append(errs, fmt.Errorf("metrics.listen: %w", err))
	}
	if err := attester.CheckAllow(c.Attester.Allow); err != nil {
		errs = append(errs, fmt.Errorf("attester.allow: %w", err))
	}
	return errors.Join(errs...)
}

// CheckClients tells whether addresses and certificates are usable, which the
// agent finds out only when it starts.
func (c *Config) CheckClients() error {
	var errs []error
	if k := c.Tokens.KBS; k != nil {
		_, err := k.client(nil)
		errs = append(errs, err)
	}
	if a := c.Tokens.CoCoAS; a != nil {
		_, err := a.client()
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (k *KBSConfig) client(log *slog.Logger) (*kbs.Client, error) {
	c, err := kbs.NewClient(kbs.ClientConfig{URL: k.URL, CertPEM: []byte(k.Cert), Log: log})
	if err != nil {
		return nil, fmt.Errorf("token_configs.kbs: %w", err)
	}
	return c, nil
}

func (a *CoCoASConfig) client() (*kbs.ASClient, error) {
	c, err := kbs.NewASClient(a.URL)
	if err != nil {
		return nil, fmt.Errorf("token_configs.coco_as: %w", err)
	}
	return c, nil
}

func (k *KBSConfig) cache() bool { return k.Cache == nil || *k.Cache }

// Describe writes the configuration in effect, one "key = value" per line, for
// a person to check. Passwords in URLs are left out.
func (c *Config) Describe(w io.Writer) error {
	var lines []string
	add := func(key, value string) { lines = append(lines, key+" = "+value) }
	if k := c.Tokens.KBS; k != nil {
		alg := k.TEEKeyAlgorithm
		if alg == "" {
			alg = kbs.ECDHP256
		}
		add("token_configs.kbs.url", redactURL(k.URL))
		add("token_configs.kbs.cert", fmt.Sprintf("(%d bytes)", len(k.Cert)))
		add("token_configs.kbs.tee_key_algorithm", strconv.Quote(string(alg)))
		add("token_configs.kbs.cache", strconv.FormatBool(k.cache()))
	}
	if a := c.Tokens.CoCoAS; a != nil {
		add("token_configs.coco_as.url", redactURL(a.URL))
	}
	pcr := "17, on a TPM 23"
	if c.EventLog.InitPCR != nil {
		pcr = strconv.FormatUint(*c.EventLog.InitPCR, 10)
	}
	add("eventlog_config.init_pcr", pcr)
	add("eventlog_config.enable_eventlog", strconv.FormatBool(c.EventLog.Enable))
	add("log.level", strconv.Quote(c.Log.Level))
	add("attester.allow", fmt.Sprintf("%q", c.Attester.Allow))
	add("initdata.rtmr3", strconv.FormatBool(c.InitData.RTMR3))
	_, err := io.WriteString(w, strings.Join(lines, "\n")+"\n")
	return err
}

func redactURL(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return strconv.Quote("[not a URL]")
	}
	return strconv.Quote(u.Redacted())
}
