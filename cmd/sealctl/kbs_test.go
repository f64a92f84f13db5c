package main

import (
	"bytes"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/cmd/internal/cli"
	"github.com/sealpod/sealpod/relyingparty"
	"github.com/sealpod/sealpod/relyingparty/store"
)

// TestKBSCommands administers a real relying party, as its owner does.
func TestKBSCommands(t *testing.T) {
	rp, err := relyingparty.Open(relyingparty.Config{Store: store.NewMemory()})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(rp.Handler())
	t.Cleanup(func() {
		srv.Close()
		_ = rp.Close()
	})
	file := func(name, content string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good, bad := file("token", string([]byte(rp.AdminToken()))+"\n"), file("token", "not the token")
	policy := file("p.rego", "package policy\ndefault allow := false\n")
	tests := []struct {
		name, token string
		stdin       string
		args        []string
		code        int
		out, err    string
	}{
		{name: "place", token: good, args: []string{"set-resource", "a/b/c", file("r", "x")}},
		{name: "place from standard input", token: good, stdin: "y", args: []string{"set-resource", "a/b/d", "-"}},
		{name: "list", token: good, args: []string{"list-resources"}, out: "a/b/c\na/b/d\n"},
		{name: "delete", token: good, args: []string{"delete-resource", "a/b/d"}},
		{name: "list again", token: good, args: []string{"list-resources"}, out: "a/b/c\n"},
		{name: "resource policy", token: good, args: []string{"set-resource-policy", policy}},
		{
			name: "broken policy", token: good, args: []string{"set-resource-policy", file("p", "package")},
			code: cli.ExitFailed, err: "rego_parse_error",
		},
		{
			name: "attestation policy", token: good,
			args: []string{"set-attestation-policy", "default_cpu", file("p", "package policy\ntrust_claims := {\"executables\": 3}\n")},
		},
		{name: "reference values", token: good, stdin: `{"svn":["1"],"n":1}`, args: []string{"set-reference-values", "-"}},
		{
			name: "reference values that are none", token: good, stdin: `["svn"]`, args: []string{"set-reference-values", "-"},
			code: cli.ExitFailed, err: "want a JSON object",
		},
		{name: "wrong token", token: bad, args: []string{"list-resources"}, code: cli.ExitFailed, err: "AdminAuth"},
		{name: "no such file", token: good, args: []string{"set-resource", "a/b/c", "/nonexistent"}, code: cli.ExitFailed, err: "/nonexistent"},
		{name: "no such token file", token: "/nonexistent", args: []string{"list-resources"}, code: cli.ExitFailed, err: "KBS token"},
		{name: "path that is no resource", token: good, args: []string{"set-resource", "../x", policy}, code: cli.ExitFailed, err: "placing the resource"},
		{name: "missing argument", token: good, args: []string{"set-resource", "a/b/c"}, code: cli.ExitUsage, err: "see --help"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			root := rootCommand()
			root.SetOut(&stdout)
			root.SetIn(strings.NewReader(tt.stdin))
			args := append([]string{"kbs", "--kbs", srv.URL, "--kbs-token", tt.token}, tt.args...)
			code := cli.Run(t.Context(), root, "sealctl", args, &stderr)
			if code != tt.code || stdout.String() != tt.out || !strings.Contains(stderr.String(), tt.err) {
				t.Errorf("exit %d, stdout %q, stderr %q", code, stdout.String(), stderr.String())
			}
			if strings.Contains(stderr.String(), string([]byte(rp.AdminToken()))) {
				t.Error("the token is in the output")
			}
		})
	}
}
