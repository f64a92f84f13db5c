package lookaside

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sealpod/sealpod/imagepull/policy"
	"github.com/sealpod/sealpod/podvm"
)

const sample = `
default-docker:
  sigstore: file:///var/lib/sigs/
  sigstore-staging: file:///elsewhere
  color: blue
docker:
  registry.example.com/team:
    lookaside: https://sigs.example.com/team
  registry.example.com/team/app:
    use-sigstore-attachments: true
  registry.example.com:
    lookaside: http://other.example.com:8080
    sigstore: http://other.example.com:8080/
  "*.example.org":
    lookaside: https://wild.example.org/
  registry.example.com/team/web:1:
    lookaside: file:///only/this/tag
  Upper.Example.net:
    lookaside: https://upper.example.net
rumors: ~
`

func TestStoreOfAnImage(t *testing.T) {
	c, err := Parse([]byte(sample))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{`line 5: unknown key "color" ignored`, `line 20: unknown key "rumors" ignored`}, c.Warnings()); d != "" {
		t.Error(d)
	}
	for name, want := range map[string]string{
		"registry.example.com/team/app:1":  "https://sigs.example.com/team",
		"registry.example.com/team/x/y:1":  "https://sigs.example.com/team",
		"registry.example.com/teams:1":     "http://other.example.com:8080",
		"registry.example.com/team/web:1":  "file:///only/this/tag",
		"registry.example.com/team/web:2":  "https://sigs.example.com/team",
		"registry.example.com:5000/team:1": "file:///var/lib/sigs",
		"a.b.example.org/x:1":              "https://wild.example.org",
		"docker.io/library/nginx:1":        "file:///var/lib/sigs",
		"Registry.Example.com/team/x/y:1":  "https://sigs.example.com/team",
		"upper.example.net/a:1":            "https://upper.example.net",
	} {
		host, rest, _ := strings.Cut(name, "/")
		repo, tag, _ := strings.Cut(rest, ":")
		if got := c.find(policy.Image{Registry: host, Repository: repo, Tag: tag}); got == nil || got.String() != want {
			t.Errorf("%s: %v, want %s", name, got, want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for name, tt := range map[string]struct{ text, want string }{
		"not YAML":          {"\t:", "not YAML"},
		"a list":            {"[]", "not a mapping"},
		"a text":            {"hello", "not a mapping"},
		"two documents":     {"docker: {}\n---\ndocker: {}\n", "more than one document"},
		"twice":             {"docker: {}\ndocker: {}\n", "appears twice"},
		"scope twice":       {"docker:\n  a: {}\n  a: {}\n", "appears twice"},
		"both, different":   {"default-docker: {lookaside: \"https://a\", sigstore: \"https://b\"}", "differ"},
		"no scheme":         {"default-docker: {lookaside: /var/lib}", "want an http"},
		"another scheme":    {"default-docker: {lookaside: \"ftp://a/b\"}", "want an http"},
		"file with a host":  {"default-docker: {lookaside: \"file://a/b\"}", "want an http"},
		"file, relative":    {"default-docker: {lookaside: \"file:a/b\"}", "credentials, query or fragment"},
		"a password":        {"default-docker: {lookaside: \"https://u:secret@a/b\"}", "with credentials"},
		"a query":           {"default-docker: {lookaside: \"https://a/b?c\"}", "query"},
		"a number":          {"default-docker: {lookaside: 7}", "not a URL"},
		"an alias":          {"docker:\n  a: &x {lookaside: \"https://a\"}\n  b: *x\n", "not a mapping"},
		"a merge":           {"docker:\n  a: &x {lookaside: \"https://a\"}\n  b:\n    <<: *x\n", "not a plain key"},
		"a key of its own":  {"? [a]\n: b\n", "not a plain key"},
		"a bomb of aliases": {"a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\ndocker: *b\n", "not a mapping"},
		"too large":         {strings.Repeat("#", MaxConfig+1), "too large"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := Parse([]byte(tt.text))
			if c != nil || !errors.Is(err, ErrInvalid) || !strings.Contains(podvm.Cause(err), tt.want) {
				t.Errorf("Parse = %v, %v; want %q", c, err, tt.want)
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("the password is in %v", err)
			}
		})
	}
	for _, text := range []string{"", "---\n", "# nothing\n", "docker:\ndefault-docker:\n", "docker: {a: }\n"} {
		c, err := Parse([]byte(text))
		if err != nil || c.find(policy.Image{Registry: "a", Repository: "b"}) != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(sample))
	f.Add([]byte("docker: {a: {lookaside: \"file:///x\"}, b: *c}\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := Parse(raw)
		if err != nil {
			if c != nil || !errors.Is(err, ErrInvalid) {
				t.Fatalf("Parse = %v, %v", c, err)
			}
			return
		}
		u := c.find(policy.Image{Registry: "registry.example.com", Repository: "team/app", Tag: "1"})
		if u != nil && (u.Scheme != "file" && u.Host == "" || u.User != nil || !bytes.Contains(raw, []byte(":"))) {
			t.Fatalf("%q is at %s", raw, u)
		}
	})
}
