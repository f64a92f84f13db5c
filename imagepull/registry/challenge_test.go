package registry

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseChallenges(t *testing.T) {
	type params = map[string]string
	tests := map[string]struct {
		headers []string
		want    []challenge
	}{
		"none":  {nil, nil},
		"basic": {[]string{`Basic realm="x"`}, []challenge{{"basic", params{"realm": "x"}}}},
		"bearer, as Docker Hub sends it": {[]string{`Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="a:b:pull"`},
			[]challenge{{"bearer", params{"realm": "https://auth.docker.io/token", "service": "registry.docker.io", "scope": "a:b:pull"}}}},
		"two headers":                {[]string{"Negotiate", `BASIC Realm=x`}, []challenge{{"negotiate", params{}}, {"basic", params{"realm": "x"}}}},
		"two in one header":          {[]string{`Basic realm="a, b=c", Bearer realm="r" , service=s`}, []challenge{{"basic", params{"realm": "a, b=c"}}, {"bearer", params{"realm": "r", "service": "s"}}}},
		"escaped quotes":             {[]string{`Basic realm="a\"b\\"`}, []challenge{{"basic", params{"realm": `a"b\`}}}},
		"spaces around":              {[]string{` , Bearer  realm = "r" ,, service= s`}, []challenge{{"bearer", params{"realm": "r", "service": "s"}}}},
		"first of a parameter":       {[]string{`Bearer realm=a,realm=b`}, []challenge{{"bearer", params{"realm": "a"}}}},
		"unfinished quotes":          {[]string{`Bearer service=s,realm="r`}, []challenge{{"bearer", params{"service": "s"}}}},
		"unfinished escape":          {[]string{`Bearer realm="r\`}, []challenge{{"bearer", params{}}}},
		"only nonsense":              {[]string{"", "=", `"Basic"`, "\x00"}, nil},
		"nonsense after a challenge": {[]string{`Basic realm=x;y`}, []challenge{{"basic", params{"realm": "x"}}}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := parseChallenges(tt.headers)
			if d := cmp.Diff(tt.want, got, cmp.AllowUnexported(challenge{})); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestBearerIsAnsweredBeforeBasic(t *testing.T) {
	for header, want := range map[string]string{
		`Basic realm=x, Bearer realm="https://a.test"`: "bearer",
		`Bearer service=s, Basic realm=x`:              "basic", // a bearer without a realm names nobody to ask
		`Digest realm=x, Basic`:                        "basic",
		`Negotiate`:                                    "",
	} {
		if c, _ := usable(parseChallenges([]string{header})); c.scheme != want {
			t.Errorf("%s: %q, want %q", header, c.scheme, want)
		}
	}
}

func FuzzChallenges(f *testing.F) {
	f.Add(`Bearer realm="https://auth.test/token",service="s"`, `Basic realm="a\"b", Negotiate abc==`)
	f.Add("", "a=b=c")
	f.Fuzz(func(t *testing.T, a, b string) {
		list := parseChallenges([]string{a, b})
		if len(list) > maxChallenges {
			t.Fatal("too many challenges")
		}
		for _, c := range list {
			if c.scheme == "" || len(c.params) > maxChallenges || strings.ContainsAny(c.scheme, " ,=\"") {
				t.Errorf("%+v", c)
			}
		}
	})
}

func TestParseContentRange(t *testing.T) {
	tests := map[string]struct {
		first, last, total int64
		ok                 bool
	}{
		"bytes 0-0/1":                          {0, 0, 1, true},
		"bytes 5-9/10":                         {5, 9, 10, true},
		"bytes 5-9/*":                          {5, 9, -1, true},
		"bytes 0-9223372036854775806/*":        {0, 1<<63 - 2, -1, true},
		"":                                     {},
		"bytes */10":                           {},
		"bytes 9-5/10":                         {},
		"bytes 5-10/10":                        {},
		"bytes -1-5/10":                        {},
		"bytes +1-5/10":                        {},
		"bytes 1-5":                            {},
		"bytes 1/5":                            {},
		"bytes 1-5/10 ":                        {},
		"bytes  1-5/10":                        {},
		"Bytes 1-5/10":                         {},
		"items 1-5/10":                         {},
		"bytes 1-5/":                           {},
		"bytes 0-9223372036854775808/*":        {},
		"bytes 0-99999999999999999999999999/*": {},
		"bytes 0x1-5/10":                       {},
	}
	for text, want := range tests {
		first, last, total, err := parseContentRange(text)
		if (err == nil) != want.ok || want.ok && (first != want.first || last != want.last || total != want.total) {
			t.Errorf("%q: %d-%d/%d, %v", text, first, last, total, err)
		}
	}
}

func FuzzContentRange(f *testing.F) {
	f.Add("bytes 5-9/10")
	f.Add("bytes 5-9/*")
	f.Fuzz(func(t *testing.T, s string) {
		first, last, total, err := parseContentRange(s)
		if err == nil && (first < 0 || last < first || total != -1 && total <= last) {
			t.Errorf("%q: %d-%d/%d", s, first, last, total)
		}
	})
}
