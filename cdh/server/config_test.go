package server

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sealpod/sealpod/imagepull"
	"github.com/sealpod/sealpod/podvm"
)

func defaults() Config {
	c := Config{Socket: "unix://" + podvm.CDHSocket, Image: imagepull.DefaultConfig(), TokenAASocket: "unix://" + podvm.AASocket}
	c.AA.Socket = c.TokenAASocket
	return c
}

func TestLoadConfig(t *testing.T) {
	const cert = "-----BEGIN CERTIFICATE-----\n"
	tests := map[string]struct {
		file, text string // "" without -c
		cmdline    string
		env        map[string]string
		want       func(*Config)
		unknown    []string
		err        error
		errText    string
	}{
		"nothing at all": {want: func(c *Config) { c.KBC.Name = "offline_fs_kbc" }},
		"kernel parameter": {
			cmdline: "agent.aa_kbc_params=cc_kbc::http://k:1 agent.aa_kbc_params=x::y",
			want:    func(c *Config) { c.KBC = KBC{Name: "cc_kbc", URL: "http://k:1"} },
		},
		"environment before kernel parameter": {
			cmdline: "agent.aa_kbc_params=cc_kbc::http://k:1", env: map[string]string{"AA_KBC_PARAMS": "cc_kbc::http://e"},
			want: func(c *Config) { c.KBC = KBC{Name: "cc_kbc", URL: "http://e"} },
		},
		"an IPv6 address after ::": {
			env:  map[string]string{"AA_KBC_PARAMS": "cc_kbc::http://[fd00::1]:8080"},
			want: func(c *Config) { c.KBC = KBC{Name: "cc_kbc", URL: "http://[fd00::1]:8080"} },
		},
		"parameter without ::":   {cmdline: "agent.aa_kbc_params=cc_kbc", err: ErrConfig, errText: "agent.aa_kbc_params"},
		"parameter without name": {env: map[string]string{"AA_KBC_PARAMS": "::http://x"}, err: ErrConfig, errText: "AA_KBC_PARAMS"},
		"unknown kbc":            {env: map[string]string{"AA_KBC_PARAMS": "sample_kbc::x"}, err: ErrConfig, errText: `"sample_kbc"`},
		"a whole file": {
			file: "c.toml",
			text: `socket = "unix:///tmp/c.sock"
skip_sealed_secret_verification = "yes"
[log]
level = "debug"
[aa]
aa_socket = "unix:///tmp/a.sock"
[kbc]
name = "cc_kbc"
url = "https://k"
kbs_cert = "C"
[[credentials]]
path = "/run/confidential-containers/cdh/kbs/a"
resource_uri = "kbs:///a/b/c"
[image]
work_dir = "/w"
max_concurrent_layer_downloads_per_image = 5
`,
			env: map[string]string{"KBS_CERT": cert},
			want: func(c *Config) {
				c.Socket, c.SkipSealedSecretVerification, c.Log.Level = "unix:///tmp/c.sock", true, "debug"
				c.AA.Socket, c.TokenAASocket = "unix:///tmp/a.sock", "unix:///tmp/a.sock"
				c.KBC = KBC{"cc_kbc", "https://k", "C"}
				c.Credentials = []Credential{{podvm.CDHResourceDir + "/a", "kbs:///a/b/c"}}
				c.Image.WorkDir, c.Image.ConcurrentLayers = "/w", 5
			},
		},
		"JSON": {
			file: "c.json", text: `{"kbc":{"name":"offline_fs_kbc"},"image":{}}`,
			want: func(c *Config) { c.KBC.Name = "offline_fs_kbc" },
		},
		"the file beats the kernel command line": {
			file: "c.toml", text: "[kbc]\nname='offline_fs_kbc'\n[image]\n",
			cmdline: "agent.aa_kbc_params=cc_kbc::http://k agent.image_registry_auth=file:///auth",
			want:    func(c *Config) { c.KBC.Name = "offline_fs_kbc" },
		},
		"no image table: kernel parameters make one": {
			file: "c.toml", text: "[kbc]\nname='offline_fs_kbc'\n",
			cmdline: "agent.image_registry_auth=file:///auth agent.https_proxy=http://p",
			want: func(c *Config) {
				c.KBC.Name, c.Image.AuthURI, c.Image.Proxy = "offline_fs_kbc", "file:///auth", &imagepull.Proxy{HTTPS: "http://p"}
			},
		},
		"the environment beats the file": {
			file: "c.toml", text: "[kbc]\nname='cc_kbc'\nurl='http://file'\n[image]\n",
			env: map[string]string{
				"AA_KBC_PARAMS": "cc_kbc::http://env", "AA_SOCKET": "unix:///tmp/e.sock", "KBS_CERT": cert,
				"OFFLINE_FS_KBC_EXTRA_FILE_PATH": "/one, /two,,", "SKIP_SEALED_SECRET_VERIFICATION": "true",
			},
			want: func(c *Config) {
				c.KBC = KBC{"cc_kbc", "http://env", cert}
				c.TokenAASocket, c.ExtraFiles, c.SkipSealedSecretVerification = "unix:///tmp/e.sock", []string{"/one", "/two"}, true
			},
		},
		"kernel credentials are added": {
			file: "c.toml", text: "[kbc]\nname='offline_fs_kbc'\n[image]\n",
			cmdline: "cdh.kbs_resources=kbs:///a/b/c::/run/confidential-containers/cdh/kbs/x,broken,::y,kbs:///d/e/f::/run/confidential-containers/cdh/kbs/z",
			want: func(c *Config) {
				c.KBC.Name = "offline_fs_kbc"
				c.Credentials = []Credential{{podvm.CDHResourceDir + "/x", "kbs:///a/b/c"}, {podvm.CDHResourceDir + "/z", "kbs:///d/e/f"}}
			},
		},
		"a table of the forwarder's": {
			file: "c.toml", text: "[kbc]\nname = \"offline_fs_kbc\"\n[cloud_volumes]\nplain = true\n",
			want: func(c *Config) {
				c.KBC.Name, c.CloudVolumes = "offline_fs_kbc", map[string]any{"plain": true}
			},
		},
		"unknown keys are named with their line": {
			file: "c.toml", text: "[kbc]\nname='offline_fs_kbc'\nsurprise=1\n[image]\nskip_proxy_ips='x'\n",
			want:    func(c *Config) { c.KBC.Name = "offline_fs_kbc" },
			unknown: []string{`line 3: unknown key "kbc.surprise"`, `line 5: unknown key "image.skip_proxy_ips"`},
		},
		"name missing":              {file: "c.toml", text: "[kbc]\nurl='x'\n", err: ErrConfig, errText: "[kbc] name is missing"},
		"an empty file":             {file: "c.toml", text: " ", err: ErrConfig, errText: "[kbc] name is missing"},
		"a credential without URI":  {file: "c.toml", text: "[kbc]\nname='cc_kbc'\n[[credentials]]\npath='x'\n", err: ErrConfig, errText: "credentials[0]"},
		"a credential elsewhere":    {file: "c.toml", text: "[kbc]\nname='cc_kbc'\n[[credentials]]\npath='/etc/passwd'\nresource_uri='kbs:///a/b/c'\n", err: ErrConfig, errText: `"/etc/passwd"`},
		"a socket without unix://":  {file: "c.toml", text: "socket='/tmp/x'\n[kbc]\nname='cc_kbc'\n", err: ErrConfig, errText: "unix://PATH"},
		"a log level nobody knows":  {file: "c.toml", text: "[log]\nlevel='loud'\n[kbc]\nname='cc_kbc'\n", err: ErrConfig, errText: "loud"},
		"broken TOML":               {file: "c.toml", text: "[kbc\n", err: podvm.ErrConfig, errText: "line 1"},
		"a string for the proxy":    {file: "c.toml", text: "[kbc]\nname='cc_kbc'\n[image]\nimage_pull_proxy='x'\n", err: podvm.ErrConfig},
		"an extension nobody knows": {file: "c.conf", text: "x", err: podvm.ErrConfig, errText: ".conf"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			host := machine(t, tt.env, map[string]string{"/proc/cmdline": tt.cmdline})
			path := ""
			if tt.file != "" {
				path = filepath.Join(host.Root, tt.file)
				write(t, path, tt.text)
			}
			got, unknown, err := LoadConfig(path, host)
			if tt.err != nil {
				if !errors.Is(err, tt.err) || !strings.Contains(err.Error(), tt.errText) {
					t.Fatalf("%v, want %v with %q", err, tt.err, tt.errText)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := defaults()
			tt.want(&want)
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
			var lines []string
			for _, u := range unknown {
				lines = append(lines, u.String())
			}
			if d := cmp.Diff(tt.unknown, lines); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestUnreadableKernelCommandLineStopsTheStart(t *testing.T) {
	if _, _, err := LoadConfig("", podvm.Host{Root: t.TempDir()}); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

func TestCredentialName(t *testing.T) {
	for path, want := range map[string]string{
		podvm.CDHResourceDir + "/a":         "a",
		podvm.CDHResourceDir + "/a/b.json":  "a/b.json",
		podvm.CDHResourceDir + "//a":        "a",
		podvm.CDHResourceDir:                "",
		podvm.CDHResourceDir + "/":          "",
		podvm.CDHResourceDir + "-other/a":   "",
		podvm.CDHResourceDir + "/../x":      "",
		podvm.CDHResourceDir + "/./x":       "",
		podvm.CDHResourceDir + "/a/..":      "",
		podvm.CDHResourceDir + "/a/":        "",
		"run/confidential-containers/cdh/a": "",
		"":                                  "",
	} {
		got, err := credentialName(path)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%q: %q, %v, want %q", path, got, err, want)
		}
	}
}

func TestPrintShowsNoPassword(t *testing.T) {
	c := defaults()
	c.KBC = KBC{"cc_kbc", "https://user:hunter2@kbs", "certificate"}
	var b bytes.Buffer
	if err := c.Print(&b); err != nil || strings.Contains(b.String(), "hunter2") || !strings.Contains(b.String(), "kbs") {
		t.Fatalf("%v\n%s", err, b.String())
	}
	if err := c.CheckClients(machine(t, nil, nil)); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Fatal(err)
	}
}
