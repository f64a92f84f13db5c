package kbs

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseObject(t *testing.T) {
	for text, want := range map[string]object{
		`{}`:                                    {},
		" { }\n":                                {},
		`{"a":1}`:                               {"a": []byte("1")},
		`{"a":1,"b":2}`:                         {"a": []byte("1"), "b": []byte("2")},
		"{ \"a\" :\ttrue ,\n\"b\": -1.5e3 }":    {"a": []byte("true"), "b": []byte("-1.5e3")},
		`{"a":{"b":[1,{"c":"}"}]},"d":"]\\\""}`: {"a": []byte(`{"b":[1,{"c":"}"}]}`), "d": []byte(`"]\\\""`)},
		`{"\u0061":null,"":[]}`:                 {"a": []byte("null"), "": []byte("[]")},
	} {
		got, err := parseObject([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", text, d)
		}
	}
	for _, text := range []string{
		``, ` `, `{`, `}`, `[]`, `1`, `"a"`, `null`, `{"a"}`, `{"a":}`, `{"a":1,}`, `{,}`, `{"a":1}x`, `{"a":1}{}`,
		`{"a":1,"a":1}`, `{"a":1,"\u0061":2}`, `{a:1}`, `{"a":01}`, "{\"a\":\"\x01\"}",
	} {
		if o, err := parseObject([]byte(text)); err == nil {
			t.Errorf("%s: read as %v", text, o)
		}
	}
}

// FuzzParseObject compares with encoding/json: the same members, except that
// duplicates are refused.
func FuzzParseObject(f *testing.F) {
	f.Add([]byte(`{"a":{"b":[1,{"c":"}"}]},"d":"]\\\"","e" : -1.0 , "\u0061b":null}`))
	f.Add([]byte(`{"a":1,"a":2}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := parseObject(raw)
		if err != nil {
			return
		}
		var want map[string]json.RawMessage
		if err := json.Unmarshal(raw, &want); err != nil {
			t.Fatalf("%q: encoding/json says %v", raw, err)
		}
		if d := cmp.Diff(want, map[string]json.RawMessage(got)); d != "" {
			t.Fatalf("%q: %s", raw, d)
		}
	})
}

func TestSecretMemberReadsAsText(t *testing.T) {
	for _, v := range []string{
		`""`, `"abc"`, `"-----BEGIN\nAB+/\/=\r\n"`, `"\"\\"`, `"\u0041\t"`, `"\ud83d\ude00"`, `1`, `null`, `{}`,
	} {
		o, err := parseObject([]byte(`{"k":` + v + `}`))
		if err != nil {
			t.Fatal(err)
		}
		text, textErr := o.text("k")
		secret, err := o.secret("k")
		if string([]byte(secret)) != text || (err == nil) != (textErr == nil) {
			t.Errorf("%s: %q, %v, want %q, %v", v, []byte(secret), err, text, textErr)
		}
	}
	if _, err := (object{}).secret("k"); err == nil {
		t.Error("a member that is missing has text")
	}
}

// Text that is a string stays in memory until it is overwritten by chance.
func TestSecretMemberIsCopiedOnce(t *testing.T) {
	o, err := parseObject([]byte(`{"k":"-----BEGIN\nAB+/\n"}`))
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = o.secret("k") }); n > 1 {
		t.Errorf("%v allocations, want 1", n)
	}
}
