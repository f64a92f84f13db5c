package registry

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sealpod/sealpod/podvm"
)

func candidates(t testing.TB, r *Rules, text string) ([]string, error) {
	t.Helper()
	ref, err := ParseReference(text)
	if err != nil {
		t.Fatal(err)
	}
	list, err := r.Candidates(ref)
	var out []string
	for _, c := range list {
		s := c.Reference.String()
		if c.Insecure {
			s = "http " + s
		}
		out = append(out, s)
	}
	return out, err
}

func TestCandidates(t *testing.T) {
	tests := map[string]struct {
		rules string
		image string
		want  []string
		err   error
	}{
		"no rules": {image: "quay.io/a:1", want: []string{"quay.io/a:1"}},
		"location rewrites, rest is kept": {
			rules: "[[registry]]\nprefix='quay.io/team'\nlocation='mirror.test:5000/x'",
			image: "quay.io/team/app:1@" + digest1, want: []string{"mirror.test:5000/x/app:1@" + digest1},
		},
		"the case of hosts does not matter": {
			rules: "unqualified-search-registries=['Search.TEST']\n[[registry]]\nprefix='Search.Test/team'\nlocation='Mirror.TEST/x'",
			image: "team/app:V1", want: []string{"mirror.test/x/app:V1"},
		},
		"a block holds in every case": {
			rules: "[[registry]]\nprefix='*.Corp.test'\nlocation='m.test'\nblocked=true", image: "A.CORP.Test/x:1", err: ErrBlocked,
		},
		"mirrors come first, in order": {
			rules: "[[registry]]\nlocation='quay.io'\n[[registry.mirror]]\nlocation='m1.test'\ninsecure=true\n[[registry.mirror]]\nlocation='m2.test/y'",
			image: "quay.io/a:1", want: []string{"http m1.test/a:1", "m2.test/y/a:1", "quay.io/a:1"},
		},
		"insecure counts with a location": {
			rules: "[[registry]]\nprefix='quay.io'\nlocation='quay.io'\ninsecure=true", image: "quay.io/a:1", want: []string{"http quay.io/a:1"},
		},
		"insecure without a location does not": {
			rules: "[[registry]]\nprefix='quay.io'\ninsecure=true", image: "quay.io/a:1", want: []string{"quay.io/a:1"},
		},
		"longest prefix wins": {
			rules: "[[registry]]\nprefix='quay.io'\nlocation='short.test'\n[[registry]]\nprefix='quay.io/a'\nlocation='long.test'",
			image: "quay.io/a/b:1", want: []string{"long.test/b:1"},
		},
		"prefix ends at a component": {
			rules: "[[registry]]\nprefix='quay.io/a'\nblocked=true", image: "quay.io/ab:1", want: []string{"quay.io/ab:1"},
		},
		"prefix is anchored": {
			rules: "[[registry]]\nprefix='quay.io/a'\nblocked=true", image: "evil.test/quay.io/a:1", want: []string{"evil.test/quay.io/a:1"},
		},
		"host prefix does not cover a port": {
			rules: "[[registry]]\nprefix='quay.io'\nblocked=true", image: "quay.io:5000/a:1", want: []string{"quay.io:5000/a:1"},
		},
		"prefix with a tag": {
			rules: "[[registry]]\nprefix='quay.io/a:1'\nblocked=true", image: "quay.io/a:1", err: ErrBlocked,
		},
		"wildcard covers subdomains at any depth": {
			rules: "[[registry]]\nprefix='*.corp.test'\nlocation='m.test'", image: "a.b.corp.test/x:1", want: []string{"m.test/x:1"},
		},
		"wildcard ignores the port": {
			rules: "[[registry]]\nprefix='*.corp.test'\nlocation='m.test'", image: "a.corp.test:5000/x:1", want: []string{"m.test/x:1"},
		},
		"wildcard does not cover the domain or a lookalike": {
			rules: "[[registry]]\nprefix='*.corp.test'\nlocation='m.test'", image: "xcorp.test/x:1", want: []string{"xcorp.test/x:1"},
		},
		"blocked": {rules: "[[registry]]\nprefix='quay.io'\nblocked=true", image: "quay.io/a:1", err: ErrBlocked},
		"search list replaces Docker Hub, digest stays": {
			rules: "unqualified-search-registries=['quay.io','docker.io']", image: "nginx:1@" + digest1,
			want: []string{"quay.io/nginx:1@" + digest1, "docker.io/library/nginx:1@" + digest1},
		},
		"one of the search list is blocked": {
			rules: "unqualified-search-registries=['quay.io','docker.io']\n[[registry]]\nprefix='quay.io'\nblocked=true",
			image: "nginx:1", want: []string{"docker.io/library/nginx:1"},
		},
		"mirrors of Docker Hub keep library": {
			rules: "[[registry]]\nprefix='docker.io'\n[[registry.mirror]]\nlocation='mirror.test'\n[[registry.mirror]]\nlocation='registry-1.docker.io'", image: "nginx:1",
			want: []string{"mirror.test/library/nginx:1", "registry-1.docker.io/library/nginx:1", "docker.io/library/nginx:1"},
		},
		"search list also for a written-out Docker Hub": {
			rules: "unqualified-search-registries=['quay.io']", image: "docker.io/team/app:1", want: []string{"quay.io/team/app:1"},
		},
		"search list is for nothing else": {
			rules: "unqualified-search-registries=['quay.io']", image: "ghcr.io/team/app:1", want: []string{"ghcr.io/team/app:1"},
		},
		"each of the search list has its rule": {
			rules: "unqualified-search-registries=['quay.io','docker.io']\n[[registry]]\nprefix='docker.io'\nlocation='hub.test'", image: "team/app:1",
			want: []string{"quay.io/team/app:1", "hub.test/team/app:1"},
		},
		"rewriting is not repeated": {
			rules: "[[registry]]\nprefix='a.test'\nlocation='b.test'\n[[registry]]\nprefix='b.test'\nlocation='a.test'", image: "a.test/x:1", want: []string{"b.test/x:1"},
		},
		"longest wildcard wins": {
			rules: "[[registry]]\nprefix='*.test'\nlocation='short.x'\n[[registry]]\nprefix='*.corp.test'\nlocation='long.x'", image: "a.corp.test/x:1", want: []string{"long.x/x:1"},
		},
		"wildcard keeps the path": {
			rules: "[[registry]]\nprefix='*.corp.test'\nlocation='m.test/sub'", image: "a.corp.test/x/y@" + digest1, want: []string{"m.test/sub/x/y@" + digest1},
		},
		"mirrors of a wildcard": {
			rules: "[[registry]]\nprefix='*.corp.test'\nlocation='o.test'\n[[registry.mirror]]\nlocation='m.test'\ninsecure=true", image: "a.corp.test/x:1", want: []string{"http m.test/x:1", "o.test/x:1"},
		},
		"a blocked rule has no mirrors": {
			rules: "[[registry]]\nprefix='quay.io'\nblocked=true\n[[registry.mirror]]\nlocation='m.test'", image: "quay.io/a:1", err: ErrBlocked,
		},
		"empty search list": {rules: "unqualified-search-registries=[]", image: "nginx:1", err: ErrBlocked},
		"rewrite that is no reference": {
			rules: "[[registry]]\nprefix='quay.io/a'\nlocation='m.test'", image: "quay.io/a:1", err: ErrRules,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			rules, _, err := ParseRules([]byte(tt.rules))
			if err != nil {
				t.Fatal(err)
			}
			got, err := candidates(t, rules, tt.image)
			if !errors.Is(err, tt.err) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestRefusalsSayWhichRule is at work, and name what it was about.
func TestRefusalsSayWhichRule(t *testing.T) {
	for text, want := range map[string]string{
		"[[registry]]\nprefix='quay.io'\nblocked=true":        "image quay.io/a:1 is blocked by registry rule",
		"[[registry]]\nprefix='quay.io/a'\nlocation='m.test'": "quay.io/a:1 becomes m.test:1, which is no image",
	} {
		rules, _, err := ParseRules([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		_, err = candidates(t, rules, "quay.io/a:1")
		if got := podvm.Cause(err); !strings.Contains(got, want) {
			t.Errorf("cause %q lacks %q", got, want)
		}
	}
	if _, err := candidates(t, &Rules{UnqualifiedSearch: []string{}}, "nginx"); !strings.Contains(podvm.Cause(err), "unqualified-search-registries is empty") {
		t.Errorf("%v", err)
	}
}

func TestParseRulesRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"not TOML":                      "][",
		"neither prefix nor location":   "[[registry]]\nblocked=true",
		"wildcard without a location":   "[[registry]]\nprefix='*.a.test'",
		"wildcard with a path":          "[[registry]]\nprefix='*.a.test/x'\nlocation='b.test'",
		"wildcard in the middle":        "[[registry]]\nprefix='a.*.test'\nlocation='b.test'",
		"mirror without a location":     "[[registry]]\nprefix='a.test'\n[[registry.mirror]]\ninsecure=true",
		"location with a scheme":        "[[registry]]\nprefix='a.test'\nlocation='http://b.test'",
		"location without a host":       "[[registry]]\nprefix='a.test'\nlocation='team/app'",
		"search registry with a path":   "unqualified-search-registries=['a.test/b']",
		"search registry of one word":   "unqualified-search-registries=['team']", // team/app is on Docker Hub
		"search registry of wrong type": "unqualified-search-registries=[{a=1}]",
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, err := ParseRules([]byte(text)); !errors.Is(err, ErrRules) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestUnknownRuleKeysAreReported(t *testing.T) {
	_, unknown, err := ParseRules([]byte("[[registry]]\nprefix='a.test'\nmirror-by-digest-only=true\n"))
	if err != nil || len(unknown) != 1 || unknown[0].Line != 3 {
		t.Errorf("%v, %v", unknown, err)
	}
}

func FuzzRules(f *testing.F) {
	f.Add([]byte("[[registry]]\nprefix='*.a.test'\nlocation='b.test/c'\n[[registry.mirror]]\nlocation='c.test'"), "x.a.test/y:1")
	f.Add([]byte("unqualified-search-registries=['q.io']"), "nginx")
	f.Fuzz(func(t *testing.T, text []byte, image string) {
		rules, _, err := ParseRules(text)
		if err != nil {
			return
		}
		ref, err := ParseReference(image)
		if err != nil {
			return
		}
		list, err := rules.Candidates(ref)
		if err == nil && len(list) == 0 {
			t.Error("no candidates and no error")
		}
		for _, c := range list {
			if c.Reference.Digest != ref.Digest {
				t.Errorf("digest of %s lost in %s", ref, c.Reference)
			}
		}
	})
}
