package strict

import (
	"bytes"
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestParse(t *testing.T) {
	tests := map[string]struct{ in, err string }{
		"an object":                {in: `{"a":"x","b":null}`},
		"space around it":          {in: " {\"a\":\"x\"}\n"},
		"empty input":              {in: "", err: "not a JSON object"},
		"null":                     {in: "null", err: "not a JSON object"},
		"an array":                 {in: "[]", err: "not a JSON object"},
		"a string":                 {in: `"a"`, err: "not a JSON object"},
		"the same name twice":      {in: `{"a":1,"a":1}`, err: `"a" appears twice`},
		"twice through an escape":  {in: `{"a":1,"\u0061":1}`, err: "appears twice"},
		"names differ in case":     {in: `{"a":1,"A":1}`},
		"another object after it":  {in: `{}{}`, err: "data after"},
		"a NUL after it":           {in: "{}\x00", err: "data after"},
		"cut short in a name":      {in: `{"a`, err: "not JSON"},
		"cut short in a value":     {in: `{"a":"x`, err: "not JSON"},
		"cut short before the end": {in: `{"a":1`, err: "end of the object"},
		"a trailing comma":         {in: `{"a":1,}`, err: "not JSON"},
		"not UTF-8":                {in: "{\"a\":\"\xff\"}", err: "not UTF-8"},
		"a byte order mark":        {in: "\ufeff{}", err: "not a JSON object"},
		"nested beyond reason":     {in: `{"a":` + strings.Repeat("[", 20000), err: "not JSON"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(tt.in))
			if tt.err == "" {
				if err != nil {
					t.Fatal(err)
				}
			} else if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("error %v, want one with %q", err, tt.err)
			}
		})
	}
}

func TestErrorsDoNotQuoteValues(t *testing.T) {
	for _, in := range []string{`{"a":"topsecret`, `{"a":topsecret}`, `{"a":"ok" topsecret`, `{"a":"\qtopsecret"}`} {
		_, err := Parse([]byte(in))
		if err == nil || strings.Contains(err.Error(), "topsecret") {
			t.Errorf("%s: %v", in, err)
		}
	}
}

func TestMembersOfAnObject(t *testing.T) {
	o, err := Parse([]byte(`{"s":"x\u0041","n":null,"i":1,"b":"AAE=","e":""}`))
	if err != nil {
		t.Fatal(err)
	}
	if s, err := o.Text("s"); s != "xA" || err != nil {
		t.Errorf("Text: %q, %v", s, err)
	}
	for _, name := range []string{"n", "i", "absent"} {
		if s, err := o.Text(name); err == nil {
			t.Errorf("Text(%s) = %q, want an error", name, s)
		}
	}
	if s, err := o.TextOr("absent", "d"); s != "d" || err != nil {
		t.Errorf("TextOr: %q, %v", s, err)
	}
	if _, err := o.TextOr("n", "d"); err == nil {
		t.Error("TextOr took null for absent")
	}
	if b, err := o.Bytes("b"); !bytes.Equal(b, []byte{0, 1}) || err != nil {
		t.Errorf("Bytes: %v, %v", b, err)
	}
	if b, err := o.Bytes("e"); len(b) != 0 || err != nil {
		t.Errorf("Bytes of nothing: %v, %v", b, err)
	}
	o, err = Parse([]byte(`{"o":{"a":1},"d":{"a":1,"a":2},"n":null,"l":[],"i":1}`))
	if err != nil {
		t.Fatal(err)
	}
	if inner, err := o.Object("o"); len(inner) != 1 || err != nil {
		t.Errorf("Object: %v, %v", inner, err)
	}
	for _, name := range []string{"d", "n", "l", "absent"} {
		if inner, err := o.Object(name); err == nil {
			t.Errorf("Object(%s) = %v, want an error", name, inner)
		}
	}
	if o.Has("n") || o.Has("absent") || !o.Has("i") {
		t.Error("Has")
	}
}

func TestTextsOfAnObject(t *testing.T) {
	o, err := Parse([]byte(`{"m":{"a":"x","B":""},"n":null,"i":{"a":1},"d":{"a":"x","a":"x"},"s":"x","e":{}}`))
	if err != nil {
		t.Fatal(err)
	}
	if m, err := o.Texts("m"); err != nil || len(m) != 2 || m["a"] != "x" {
		t.Errorf("Texts: %v, %v", m, err)
	}
	for _, name := range []string{"absent", "e"} {
		if m, err := o.Texts(name); len(m) != 0 || err != nil {
			t.Errorf("Texts(%s): %v, %v", name, m, err)
		}
	}
	for _, name := range []string{"n", "i", "d", "s"} {
		if m, err := o.Texts(name); err == nil {
			t.Errorf("Texts(%s) = %v, want an error", name, m)
		}
	}
}

func TestSecretTextReadsWhatTextReads(t *testing.T) {
	for _, v := range []string{`""`, `"x y"`, `"x\"y"`, `"\u00e9"`, `"\ud83d\ude00"`, `"é"`, `1`, `null`, `{}`, ``} {
		want, wantErr := Text(json.RawMessage(v))
		got, err := SecretText(json.RawMessage(v))
		if string(got) != want || (err == nil) != (wantErr == nil) {
			t.Errorf("%s: %q, %v, want %q, %v", v, []byte(got), err, want, wantErr)
		}
	}
	v := json.RawMessage(`"hunter2"`)
	s, err := SecretText(v)
	if err != nil {
		t.Fatal(err)
	}
	if s.Wipe(); string(v) == `"hunter2"` {
		t.Error("the text stays behind")
	}
}

func TestBase64(t *testing.T) {
	for _, bad := range []string{"AA", "AA=", "AAE", "AAF=", "AAE=\n", "AA\nE=", "AA\r\nE=", " AAE=", "-_8=", "AAE==", "AAE=AAE="} {
		if b, err := Base64(bad); err == nil {
			t.Errorf("Base64(%q) = %v, want an error", bad, b)
		}
	}
}

func TestBase64URL(t *testing.T) {
	for in, want := range map[string]string{"": "", "AAE": "\x00\x01", "-_8": "\xfb\xff", "YWJj": "abc"} {
		if got, err := Base64URL(in); string(got) != want || err != nil {
			t.Errorf("Base64URL(%q) = %q, %v", in, got, err)
		}
	}
	for _, bad := range []string{"A", "AAE=", "AAF", "AAE\n", "AA\nE", "AA\r\nE", " AAE", "AAE ", "+/8", "YWJjA"} {
		if b, err := Base64URL(bad); err == nil {
			t.Errorf("Base64URL(%q) = %v, want an error", bad, b)
		}
	}
}

// FuzzMembers holds Members against encoding/json: it takes the same objects,
// as long as they are UTF-8, with the same values.
func FuzzMembers(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"a":1}`, `{"a":{"a":[1,"x"]}} `, `{"a":1,"a":2}`, "{\"a\":\"\\ud800\"}", `[`, `{ "a\"" : "\\" , "b":"]}" }`,
		`{"a":1:2}`, `{"a":1,}`, `{,}`, `{"a"}`, `{"a":}`, `{"a":1]`, `{"a":{]}`, `{"a"x:1}`, `{"a":1 2}`, "{\"a\":\v1}", `{"a":"\"}`, `{}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		got := map[string]string{}
		err := Members(in, func(name string, value json.RawMessage) error {
			got[name] = string(value)
			return nil
		})
		var std map[string]json.RawMessage
		good := json.Unmarshal(in, &std) == nil && std != nil && utf8.Valid(in)
		if good != (err == nil) {
			t.Fatalf("%v, encoding/json takes it: %v", err, good)
		}
		if err != nil {
			return
		}
		for name, v := range std {
			if got[name] != string(v) {
				t.Fatalf("member %q is %q, encoding/json: %q", name, got[name], v)
			}
		}
		if len(got) != len(std) {
			t.Fatalf("%d members, encoding/json: %d", len(got), len(std))
		}
	})
}

func TestMembersLeavesNoCopies(t *testing.T) {
	raw := []byte(`{"key":"` + strings.Repeat("A", 1<<20) + `"}`)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := Parse(raw); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20+1<<17 {
		t.Errorf("%d bytes were allocated for a value of 1 MiB", n)
	}
}

func TestMembersAreCapped(t *testing.T) {
	object := func(n int) []byte {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `,"%x":0`, i)
		}
		return []byte("{" + b.String()[1:] + "}")
	}
	if o, err := Parse(object(maxMembers)); err != nil || len(o) != maxMembers {
		t.Errorf("%d members, %v", len(o), err)
	}
	if _, err := Parse(object(maxMembers + 1)); err == nil || !strings.Contains(err.Error(), "more than 4096 members") {
		t.Error(err)
	}
}

func TestSecretReadsWhatTextAndBase64Read(t *testing.T) {
	for _, v := range []string{
		`""`, `"YWI="`, `"YWJj"`, `"+/+/"`, `"+\/+\/"`, `"\u0059WJj"`, `"YWI"`, `"YWI=="`, `"YW J"`, `"YW\nI="`, `"YWK="`, `"YWJ="`, `1`, `null`, `{}`,
	} {
		var want []byte
		text, wantErr := Text(json.RawMessage(v))
		if wantErr == nil {
			want, wantErr = Base64(text)
		}
		got, err := Secret(json.RawMessage(v))
		if !bytes.Equal(got, want) || (err == nil) != (wantErr == nil) {
			t.Errorf("%s: %x, %v, want %x, %v", v, []byte(got), err, want, wantErr)
		}
	}
	v := json.RawMessage(`"YWJj"`)
	if n := testing.AllocsPerRun(100, func() { _, _ = Secret(v) }); n > 1 {
		t.Errorf("%v allocations, want 1: the text stays behind", n)
	}
}
