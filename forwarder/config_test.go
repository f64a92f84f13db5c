package forwarder

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/podvm"
)

const podNetwork = `{"podip":"10.128.0.7/24","interface":"eth0","worker-node-ip":"10.0.0.1/24","tunnel-type":"vxlan"}`

func TestParse(t *testing.T) {
	f, unknown, err := Parse([]byte(`{
		"Pod-Network": ` + podNetwork + `, "pod-namespace": "default", "pod-name": "nginx",
		"TLS-Server-Cert": "CERT\n", "tls-server-key": "KEY\n", "tls-client-ca": "CA\n",
		"tls-min-version": "VersionTLS12", "tls-cipher-suites": ["TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"],
		"sc-pp-prv": "aGk=", "sc-wn-pub": null, "zeta": {"a": [1]}, "alpha\u0007": 1
	} garbage behind it`))
	if err != nil {
		t.Fatal(err)
	}
	if f.PodNetwork.Interface != "eth0" || f.PodNamespace != "default" || f.PodName != "nginx" ||
		string(f.ServerCert.Secret) != "CERT\n" || string(f.ServerKey.Secret) != "KEY\n" || string(f.ClientCA.Secret) != "CA\n" ||
		f.MinVersion != "VersionTLS12" || len(f.CipherSuites) != 1 {
		t.Errorf("%+v", f)
	}
	if want := []string{"alpha ", "zeta"}; !slices.Equal(unknown, want) {
		t.Errorf("unknown keys %q, want %q", unknown, want)
	}
	if s := fmt.Sprintf("%v %+v", f, f); strings.Contains(s, "KEY") {
		t.Errorf("the key is printed: %s", s)
	}
}

func TestParseRefuses(t *testing.T) {
	for name, tt := range map[string]struct{ raw, want string }{
		"nothing":                {"", "EOF"},
		"a cut":                  {`{"pod-network": {`, "unexpected EOF"},
		"garbage":                {"\x00\xff", "invalid character"},
		"a list":                 {"[]", "want a JSON object"},
		"null":                   {"null", "there is no pod-network in it"},
		"no pod network":         {`{"pod-name":"x"}`, "there is no pod-network in it"},
		"pod network null":       {`{"pod-network":null}`, "there is no pod-network in it"},
		"pod network of a kind":  {`{"pod-network":7}`, "pod network"},
		"an unreadable address":  {`{"pod-network":{"podip":"10.0.0.300/24"}}`, "podip"},
		"a key that is no text":  {`{"pod-network":` + podNetwork + `,"tls-server-key":{"a":1}}`, "not a string"},
		"suites that are a text": {`{"pod-network":` + podNetwork + `,"tls-cipher-suites":"x"}`, "tls-cipher-suites"},
	} {
		t.Run(name, func(t *testing.T) {
			f, _, err := Parse([]byte(tt.raw))
			if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			if f.PodNetwork != nil {
				t.Error("something came with the error")
			}
		})
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	path, old := filepath.Join(dir, "apf.json"), filepath.Join(dir, "daemon.json")
	write := func(path, raw string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(raw), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := Load(path); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "failed to open "+path) {
		t.Errorf("no file: %v", err)
	}
	write(old, `{"pod-name":"old"}`)
	if _, _, err := Load(path); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "failed to decode") || !strings.Contains(err.Error(), old) {
		t.Errorf("an unusable old file: %v", err)
	}
	write(old, `{"pod-network":`+podNetwork+`,"pod-name":"old"}`)
	if f, _, err := Load(path); err != nil || f.PodName != "old" {
		t.Errorf("the old name: %+v, %v", f, err)
	}
	write(path, `{"pod-network":`+podNetwork+`,"pod-name":"new"}`)
	if f, _, err := Load(path); err != nil || f.PodName != "new" {
		t.Errorf("the new name: %+v, %v", f, err)
	}
	write(path, `{"pod-name":"`+strings.Repeat("x", maxFile)+`"}`)
	if _, _, err := Load(path); !errors.Is(err, podvm.ErrTooLarge) {
		t.Errorf("a large file: %v", err)
	}
	if _, _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "failed to open") {
		t.Errorf("a directory: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"pod-network":` + podNetwork + `}`))
	f.Add([]byte(`{"pod-network":null}`))
	f.Add([]byte(`{"POD-NETWORK":` + podNetwork + `,"tls-server-key":"k","x":[{}]} trailing`))
	f.Add([]byte(`{"pod-network":{"routes":[{"dst":"::ffff:0.0.0.0/0","gw":"10.0.0.1"}]}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		file, unknown, err := Parse(raw)
		if err != nil {
			if !errors.Is(err, ErrConfig) {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		if file.PodNetwork == nil {
			t.Fatal("no pod network and no error")
		}
		for _, k := range unknown {
			if strings.ContainsAny(k, "\n\r\x1b") {
				t.Fatalf("%q is not printable", k)
			}
		}
	})
}
