package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sealpod/sealpod/cmd/internal/cli"
)

// TestSecretScripts runs testdata/secret/*.txtar on a machine below $WORK/host,
// whose offline resources come from the command place. fails and misuse are exec
// with an exit code of 101 and 2, lastline copies the last line of a file, and
// vaultcredential writes a credential for a Vault.
func TestSecretScripts(t *testing.T) {
	address, aws := transit(t), awsKMS(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/secret", RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("SEALPOD_HOST_ROOT", filepath.Join(env.WorkDir, "host"))
			env.Setenv("OFFLINE_FS_KBC_EXTRA_FILE_PATH", "/resources.json")
			env.Setenv("AWS_ENDPOINT_URL_KMS", aws)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"fails":  exits(cli.ExitPanic),
			"misuse": exits(cli.ExitUsage),
			"place":  placeOffline,
			"lastline": func(ts *testscript.TestScript, _ bool, args []string) {
				lines := strings.Split(strings.TrimSuffix(ts.ReadFile(args[0]), "\n"), "\n")
				write(ts, args[1], lines[len(lines)-1]+"\n")
			},
			"vaultcredential": func(ts *testscript.TestScript, _ bool, args []string) {
				write(ts, args[0], fmt.Sprintf(`{"address":%q,"token":"owner"}`, address))
			},
		},
	})
}

func write(ts *testscript.TestScript, name, content string) {
	ts.Check(os.WriteFile(ts.MkAbs(name), []byte(content), 0o600))
}

// exits is exec for a program that has to end with that exit code.
func exits(code int) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		var e *exec.ExitError
		if err := ts.Exec(args[0], args[1:]...); neg || !errors.As(err, &e) || e.ExitCode() != code {
			ts.Fatalf("%v: want exit code %d", err, code)
		}
	}
}

// placeOffline is "place PATH FILE": the file becomes a resource of the machine.
func placeOffline(ts *testscript.TestScript, _ bool, args []string) {
	all := map[string][]byte{}
	const file = "host/resources.json"
	ts.Check(os.MkdirAll(ts.MkAbs("host"), 0o755))
	if raw, err := os.ReadFile(ts.MkAbs(file)); err == nil {
		ts.Check(json.Unmarshal(raw, &all))
	}
	all[args[0]] = []byte(ts.ReadFile(args[1]))
	raw, err := json.Marshal(all)
	ts.Check(err)
	write(ts, file, string(raw))
}

// transit is Vault's transit engine with the key acme, whose ciphertexts hold
// the plaintext and the context behind a prefix. It returns the address.
func transit(t *testing.T) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			Plaintext  []byte `json:"plaintext"`
			Context    []byte `json:"context"`
			Ciphertext string `json:"ciphertext"`
		}
		op, ok := map[string]string{"/v1/transit/encrypt/acme": "encrypt", "/v1/transit/decrypt/acme": "decrypt"}[r.URL.Path]
		if !ok || r.Header.Get("X-Vault-Token") != "owner" {
			w.WriteHeader(http.StatusForbidden)
			_, _ = w.Write([]byte(`{"errors":["permission denied"]}`))
			return
		}
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			t.Error(err)
		}
		b64 := base64.StdEncoding
		data := map[string]any{}
		if op == "encrypt" {
			data["ciphertext"] = "vault:v1:" + b64.EncodeToString(append(in.Context, in.Plaintext...))
		} else {
			both, err := b64.DecodeString(strings.TrimPrefix(in.Ciphertext, "vault:v1:"))
			plain, same := bytes.CutPrefix(both, in.Context)
			if err != nil || !same {
				t.Errorf("asked to decrypt %q with context %q", in.Ciphertext, in.Context)
			}
			data["plaintext"] = plain
		}
		if err := json.NewEncoder(w).Encode(map[string]any{"data": data}); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

// awsKMS is AWS KMS with the key alias/acme, whose ciphertexts hold the
// encryption context and the plaintext. It returns the address.
func awsKMS(t *testing.T) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in, out struct {
			KeyID             string            `json:"KeyId"`
			EncryptionContext map[string]string `json:",omitempty"`
			Plaintext         []byte            `json:",omitempty"`
			CiphertextBlob    []byte            `json:",omitempty"`
		}
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			t.Error(err)
		}
		if !strings.Contains(r.Header.Get("Authorization"), "Credential=AKIDACME/") || in.KeyID != "alias/acme" {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write([]byte(`{"__type":"AccessDeniedException","message":"not yours"}`))
			return
		}
		out.KeyID = in.KeyID
		prefix := fmt.Appendf(nil, "%v|", in.EncryptionContext)
		switch r.Header.Get("X-Amz-Target") {
		case "TrentService.Encrypt":
			out.CiphertextBlob = append(prefix, in.Plaintext...)
		case "TrentService.Decrypt":
			plain, same := bytes.CutPrefix(in.CiphertextBlob, prefix)
			if !same {
				t.Errorf("asked to decrypt %q with context %s", in.CiphertextBlob, prefix)
			}
			out.Plaintext = plain
		default:
			t.Errorf("asked for %s", r.Header.Get("X-Amz-Target"))
		}
		if err := json.NewEncoder(w).Encode(out); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}
