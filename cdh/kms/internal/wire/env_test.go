package wire

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sealpod/sealpod/podvm"
)

func TestCredentialDir(t *testing.T) {
	if d := CredentialDir(env(nil), "aws"); d != "/run/confidential-containers/cdh/kbs/kms-credential/aws" {
		t.Error(d)
	}
	host := env(map[string]string{"AWS_IN_GUEST_KEY_PATH": "/keys", "ALIYUN_IN_GUEST_KEY_PATH": ""})
	host.Root = "/machine"
	if d := CredentialDir(host, "aws"); d != "/machine/keys" {
		t.Error(d)
	}
	if d := CredentialDir(host, "aliyun"); d != "/machine/run/confidential-containers/cdh/kbs/kms-credential/aliyun" {
		t.Error(d)
	}
}

func TestCredentialFilesAreConfined(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "aws")
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "..data"), 0o700), syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600)); err != nil {
		t.Fatal(err)
	}
	write(filepath.Join(top, "outside"), "hunter2")
	write(filepath.Join(dir, "..data", "inside"), "content\n")
	write(filepath.Join(dir, "large"), strings.Repeat("x", maxCredential+1))
	write(filepath.Join(dir, "largest"), strings.Repeat("x", maxCredential))
	for name, to := range map[string]string{"inside": "..data/inside", "escape": "../outside", "absolute": filepath.Join(top, "outside"), "loop": "loop"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := Dir(dir).Read("inside"); err != nil || string(b) != "content\n" {
		t.Errorf("%q, %v", []byte(b), err)
	}
	if b, err := Dir(dir).Read("largest"); err != nil || len(b) != maxCredential {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	for _, name := range []string{
		"", ".", "..", "../outside", "/etc/passwd", filepath.Join(top, "outside"), "..data", "absent", "a\x00b",
		"escape", "absolute", "loop", "pipe", "large", strings.Repeat("x", 5000),
	} {
		b, err := Dir(dir).Read(name)
		if !errors.Is(err, ErrCredential) || b != nil || !strings.HasPrefix(podvm.Cause(err), "the KMS credential file ") {
			t.Errorf("%.20q: %q, %v", name, []byte(b), err)
		}
	}
	if _, err := Dir(filepath.Join(top, "none")).Read("inside"); !errors.Is(err, ErrCredential) {
		t.Errorf("no directory: %v", err)
	}
}

func TestEndpoint(t *testing.T) {
	e := Env{Host: env(map[string]string{"GOOD": "https://vpce-1.example/base/", "PLAIN": "http://kms.example", "HERE": "http://[::1]:80"})}
	for variable, want := range map[string]string{"UNSET": "https://default", "GOOD": "https://vpce-1.example/base", "HERE": "http://[::1]:80", "PLAIN": ""} {
		got, err := e.Endpoint(variable, "https://default")
		if got != want || (want == "") != errors.Is(err, ErrSettings) {
			t.Errorf("%s: %q, %v", variable, got, err)
		}
	}
}

// urls tells which addresses of servers are taken.
var urls = map[string]bool{
	"https://a": true, "https://a:1/b/": true, "https://[::1]": true, "http://localhost:8200": true, "http://127.9.9.9": true, "http://[::ffff:127.0.0.1]:1": true,
	"": false, "a": false, "//a": false, "https://": false, "https://:1": false, "https:a": false, "ftp://a": false, "file:///etc/passwd": false,
	"http://a": false, "http://localhost.evil": false, "http://127.0.0.1.evil": false, "http://0.0.0.0": false, "http://169.254.169.254": false,
	"https://u:hunter2@a": false, "https://a?b": false, "https://a?": false, "https://a#b": false, "https://a b": false, "https://a\n": false,
	"https://%zz": false, "http://u@127.0.0.1": false,
}

func TestBaseURL(t *testing.T) {
	for s, want := range urls {
		if _, err := BaseURL(s); (err == nil) != want || err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func FuzzBaseURL(f *testing.F) {
	for s := range urls {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := BaseURL(s)
		if err == nil && (u.Scheme != "https" && !loopback(u.Hostname()) || u.User != nil || u.RawQuery != "" || u.Fragment != "") {
			t.Errorf("%q is %v", s, u)
		}
	})
}
