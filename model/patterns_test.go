package model

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os/exec"
	"reflect"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/podvm/testenv"
)

func TestMatch(t *testing.T) {
	for _, tt := range []struct {
		pattern, name string
		want          bool
	}{
		{"*.bin", "a.bin", true}, {"*.bin", "a/b.bin", true}, {"*.bin", "a.bin.txt", false}, {"a/*", "a/b/c", true},
		{"?", "é", true}, {"?", "ab", false}, {"[abc]x", "bx", true}, {"[!abc]x", "bx", false}, {"[a-c]", "b", true}, {"[a-c]", "d", false},
		{"[]]", "]", true}, {"[!]]", "]", false}, {"[", "[", true}, {"[a", "[a", true}, {"a[", "ab", false}, {"*", "", true}, {"", "", true}, {"", "a", false},
		{"**a**", "bab", true}, {"a\\*", "a\\b", true}, {"[a-]", "-", true}, {"A", "a", false},
	} {
		if got := match(tt.pattern, tt.name); got != tt.want {
			t.Errorf("%q of %q: %v", tt.pattern, tt.name, got)
		}
	}
}

// TestMatchIsPythons compares with the module that KServe uses.
func TestMatchIsPythons(t *testing.T) {
	python := testenv.Tool(t, "python3")
	const letters = "ab/*?[]!-é"
	word := func(n int) string {
		var b strings.Builder
		for range rand.IntN(n) {
			b.WriteRune([]rune(letters)[rand.IntN(len([]rune(letters)))])
		}
		return b.String()
	}
	var cases [][2]string
	for range 20_000 {
		cases = append(cases, [2]string{word(8), word(6)})
	}
	in, err := json.Marshal(cases)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), python, "-W", "ignore", "-c", "import fnmatch,json,sys; print(json.dumps([fnmatch.fnmatch(n,p) for p,n in json.load(sys.stdin)]))")
	cmd.Stdin = strings.NewReader(string(in))
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var want []bool
	if err := json.Unmarshal(out, &want); err != nil {
		t.Fatal(err)
	}
	wrong := 0
	for i, c := range cases {
		if match(c[0], c[1]) != want[i] {
			if wrong++; wrong < 10 {
				t.Errorf("%q of %q: want %v", c[0], c[1], want[i])
			}
		}
	}
}

func TestParsePatterns(t *testing.T) {
	for text, want := range map[string]Patterns{
		"": nil, "*.bin": {"*.bin"}, " a , b,,": {"a", "b"}, `["a,b","c"]`: {"a,b", "c"}, "[ab]*,c": {"[ab]*", "c"}, "[]": nil,
	} {
		if got, err := ParsePatterns(text); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	for _, text := range []string{strings.Repeat("a,", maxPatterns+1), strings.Repeat("a", maxPatternLen+1)} {
		if _, err := ParsePatterns(text); !errors.Is(err, source.ErrUsage) {
			t.Error(err)
		}
	}
}

// FuzzMatch: no pattern takes long, and a star takes everything.
func FuzzMatch(f *testing.F) {
	f.Add("*a*b*c*[!x", "aaaaaaaaaaaaaaaaaaaa")
	f.Add("[z-a]\xff", "\xff")
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if len(pattern) > maxPatternLen || len(name) > source.MaxName {
			return
		}
		if match(pattern, name) && !match("*"+pattern+"*", "x"+name+"y") {
			t.Errorf("%q of %q", pattern, name)
		}
		if !strings.ContainsAny(pattern, "*?[") && strings.ToValidUTF8(pattern, "") == pattern && !match(pattern, pattern) {
			t.Errorf("%q is not itself", pattern)
		}
	})
}

// FuzzRequest reads hostile settings.
func FuzzRequest(f *testing.F) {
	f.Add("s3://b/p", `{"type":"s3","anonymous":true}`, "kbs:///a/b/c", "true", "*,[a]", "tar.gz")
	f.Add("/mnt/models", "{", "", "TRUE", "[", "../x")
	f.Fuzz(func(t *testing.T, address, secret, id, on, patterns, format string) {
		w := newEnv(map[string]string{
			"STORAGE_CONFIG": secret, "CONFIDENTIAL_RESOURCE_ID": id, "CONFIDENTIAL_ENABLED": on, "MODEL_ENCRYPTED": on, "MODEL_FORMAT": format,
			"MODEL_DECRYPTION_KEY": id, "STORAGE_ALLOW_PATTERNS": patterns, "S3_MAX_FILE_CONCURRENCY": format,
		})
		r, err := readRequest([]string{address, "/dest"}, Config{Host: w})
		if err != nil {
			if code, line := Outcome(err); code != ExitUsage || strings.ContainsAny(line, "\n\r") {
				t.Errorf("%d %q", code, line)
			}
			return
		}
		if r.demo != "" && sealed.CheckPath(r.demo) != nil || r.workers < 1 {
			t.Errorf("%+v", r)
		}
	})
}
