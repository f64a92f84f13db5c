package server

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm"
)

func hostWith(env map[string]string, root string) podvm.Host {
	return podvm.Host{Root: root, LookupEnv: func(k string) (string, bool) { v, ok := env[k]; return v, ok }}
}

func defaults(change func(*Config)) Config {
	c := Config{Log: LogConfig{Level: "info"}}
	if change != nil {
		change(&c)
	}
	return c
}

func TestLoadConfig(t *testing.T) {
	off := false
	tests := map[string]struct {
		file, text string
		env        map[string]string
		want       Config
		unknown    []podvm.UnknownKey
	}{
		"empty file": {file: "aa.toml", want: defaults(nil)},
		"everything": {file: "aa.toml", text: `
[token_configs.kbs]
url = "https://kbs.example:8080/"
cert = "PEM"
tee_key_algorithm = "RSA-OAEP-256"
cache = false
[token_configs.coco_as]
url = "http://as.example"
[eventlog_config]
init_pcr = 23
enable_eventlog = true
[log]
level = "debug"
[attester]
allow = ["sample"]
[initdata]
rtmr3 = true
`, want: defaults(func(c *Config) {
			c.Tokens.KBS = &KBSConfig{URL: "https://kbs.example:8080/", Cert: "PEM", TEEKeyAlgorithm: kbs.RSAOAEP, Cache: &off}
			c.Tokens.CoCoAS = &CoCoASConfig{URL: "http://as.example"}
			c.EventLog = EventLogConfig{InitPCR: new(uint64(23)), Enable: true}
			c.Log.Level = "debug"
			c.Attester.Allow = []string{"sample"}
			c.InitData.RTMR3 = true
		})},
		"json with text for scalars": {file: "aa.json", text: `{"token_configs":{"kbs":{"url":"http://k","cache":"no"}},"eventlog_config":{"init_pcr":"8","enable_eventlog":"yes"}}`,
			want: defaults(func(c *Config) {
				c.Tokens.KBS = &KBSConfig{URL: "http://k", Cache: &off}
				c.EventLog = EventLogConfig{InitPCR: new(uint64(8)), Enable: true}
			})},
		"unknown keys are reported with their line": {file: "aa.toml", text: "[token_configs.kbs]\nurl='http://k'\nurll='x'\n",
			want:    defaults(func(c *Config) { c.Tokens.KBS = &KBSConfig{URL: "http://k"} }),
			unknown: []podvm.UnknownKey{{Key: "token_configs.kbs.urll", Line: 3}}},
		"a file hides the parameters": {file: "aa.toml", env: map[string]string{"AA_KBC_PARAMS": "cc_kbc::http://k"}, want: defaults(nil)},
		"parameters in the environment": {env: map[string]string{"AA_KBC_PARAMS": "cc_kbc::http://k:8080"},
			want: defaults(func(c *Config) { c.Tokens.KBS = &KBSConfig{URL: "http://k:8080"} })},
		"parameters with an IPv6 address": {env: map[string]string{"AA_KBC_PARAMS": "cc_kbc::http://[::1]:8080"},
			want: defaults(func(c *Config) { c.Tokens.KBS = &KBSConfig{URL: "http://[::1]:8080"} })},
		"parameters of another kbc":                {env: map[string]string{"AA_KBC_PARAMS": "offline_fs_kbc::null"}, want: defaults(nil)},
		"parameters without separator":             {env: map[string]string{"AA_KBC_PARAMS": "cc_kbc"}, want: defaults(nil)},
		"environment before command line":          {env: map[string]string{"AA_KBC_PARAMS": "x", "cmdline": "agent.aa_kbc_params=cc_kbc::http://k"}, want: defaults(nil)},
		"parameters of the kernel":                 {env: map[string]string{"cmdline": "ro agent.aa_kbc_params=cc_kbc::http://k quiet\n"}, want: defaults(func(c *Config) { c.Tokens.KBS = &KBSConfig{URL: "http://k"} })},
		"no command line at all":                   {want: defaults(nil)},
		"allow-list from the environment":          {file: "aa.toml", text: "[attester]\nallow=['tdx']", env: map[string]string{"SEALPOD_ATTESTERS": "sample, sampledevice,"}, want: defaults(func(c *Config) { c.Attester.Allow = []string{"sample", "sampledevice"} })},
		"RTMR3 from the environment":               {file: "aa.toml", env: map[string]string{"SEALPOD_INITDATA_RTMR3": "1"}, want: defaults(func(c *Config) { c.InitData.RTMR3 = true })},
		"the environment wins there too":           {file: "aa.toml", text: "[initdata]\nrtmr3=true", env: map[string]string{"SEALPOD_INITDATA_RTMR3": "false"}, want: defaults(nil)},
		"nothing in the environment":               {file: "aa.toml", text: "[initdata]\nrtmr3=true", env: map[string]string{"SEALPOD_INITDATA_RTMR3": ""}, want: defaults(func(c *Config) { c.InitData.RTMR3 = true })},
		"an empty environment allows nothing more": {file: "aa.toml", text: "[attester]\nallow=['tdx']", env: map[string]string{"SEALPOD_ATTESTERS": ""}, want: defaults(func(c *Config) { c.Attester.Allow = []string{"tdx"} })},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := ""
			if tt.file != "" {
				path = filepath.Join(dir, tt.file)
				write(t, path, tt.text)
			}
			if line, ok := tt.env["cmdline"]; ok {
				write(t, filepath.Join(dir, "proc/cmdline"), line)
			}
			got, unknown, err := LoadConfig(path, hostWith(tt.env, dir))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
			if d := cmp.Diff(tt.unknown, unknown); d != "" {
				t.Error(d)
			}
		})
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestLoadConfigRefuses(t *testing.T) {
	for name, tt := range map[string]struct{ file, text, says string }{
		"kbs without url":     {"aa.toml", "[token_configs.kbs]\n", "token_configs.kbs.url is missing"},
		"as without url":      {"aa.toml", "[token_configs.coco_as]\n", "token_configs.coco_as.url is missing"},
		"unknown key kind":    {"aa.toml", "[token_configs.kbs]\nurl='http://k'\ntee_key_algorithm='ML-KEM-768+A192KW'", "tee_key_algorithm"},
		"unknown level":       {"aa.toml", "[log]\nlevel='loud'", "log.level"},
		"unknown attester":    {"aa.toml", "[attester]\nallow=['sevsnp']", "attester.allow"},
		"negative pcr":        {"aa.toml", "[eventlog_config]\ninit_pcr=-1", "init_pcr"},
		"not TOML":            {"aa.toml", "[", "line 1"},
		"format not known":    {"aa.conf", "", ".toml or .json"},
		"table that is text":  {"aa.toml", "token_configs='x'", "token_configs"},
		"several at once (1)": {"aa.toml", "[token_configs.kbs]\n[log]\nlevel='x'", "url is missing"},
		"several at once (2)": {"aa.toml", "[token_configs.kbs]\n[log]\nlevel='x'", "log.level"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), tt.file)
			write(t, path, tt.text)
			_, _, err := LoadConfig(path, hostWith(nil, t.TempDir()))
			if !errors.Is(err, podvm.ErrConfig) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v", err)
			}
		})
	}
	env := map[string]string{"SEALPOD_INITDATA_RTMR3": "maybe"}
	if _, _, err := LoadConfig("", hostWith(env, t.TempDir())); !errors.Is(err, podvm.ErrConfig) || !strings.Contains(err.Error(), "SEALPOD_INITDATA_RTMR3") {
		t.Errorf("RTMR3 from the environment: %v", err)
	}
	if _, _, err := LoadConfig(filepath.Join(t.TempDir(), "absent.toml"), podvm.Host{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent file: %v", err)
	}
}

func TestDescribeHidesPasswords(t *testing.T) {
	c := defaults(func(c *Config) {
		c.Tokens.KBS = &KBSConfig{URL: "http://user:hunter2@k", Cert: "hunter2"}
		c.Tokens.CoCoAS = &CoCoASConfig{URL: "http://user:hunter2@as"}
	})
	var b strings.Builder
	if err := c.Describe(&b); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(b.String(), "hunter2") || !strings.Contains(b.String(), `token_configs.kbs.cache = true`) ||
		!strings.Contains(b.String(), "initdata.rtmr3 = false\n") {
		t.Error(b.String())
	}
	if err := c.CheckClients(); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v", err)
	}
}
