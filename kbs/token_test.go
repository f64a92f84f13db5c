package kbs

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestTokenRoundTrip(t *testing.T) {
	for _, alg := range algorithms {
		tok, err := NewToken(testJWT(time.Unix(1000, 0), time.Unix(1300, 0), "id"), newKey(t, alg))
		if err != nil {
			t.Fatal(err)
		}
		if tok.Issued().Unix() != 1000 || tok.Expires().Unix() != 1300 {
			t.Errorf("from %v to %v", tok.Issued(), tok.Expires())
		}
		out, err := tok.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		// The shape upstream's data hub reads.
		var shape map[string]string
		if err := json.Unmarshal(out, &shape); err != nil {
			t.Fatal(err)
		}
		key, err := tok.Key.MarshalPEM()
		if err != nil {
			t.Fatal(err)
		}
		if len(shape) != 2 || shape["token"] != tok.JWT || shape["tee_keypair"] != string([]byte(key)) {
			t.Errorf("shape %v", shape)
		}
		again, err := ParseToken(out)
		if err != nil {
			t.Fatal(err)
		}
		if again.JWT != tok.JWT || again.Key.Public() != tok.Key.Public() || again.Expires() != tok.Expires() {
			t.Error("another token came back")
		}
	}
}

func TestNewTokenRefuses(t *testing.T) {
	key := newKey(t, ECDHP256)
	jwt := func(claims string) string {
		return "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln"
	}
	for name, text := range map[string]string{
		"nothing":            "",
		"two parts":          "a.b",
		"no signature":       "e30." + base64.RawURLEncoding.EncodeToString([]byte(`{"exp":1}`)) + ".",
		"four parts":         jwt(`{"exp":1}`) + ".x",
		"claims not base64":  "e30.!.c2ln",
		"claims not JSON":    jwt("x"),
		"no expiry":          jwt(`{"iat":1}`),
		"expiry not a date":  jwt(`{"exp":"soon"}`),
		"expiry negative":    jwt(`{"exp":-1}`),
		"expiry after 9999":  jwt(`{"exp":1e300}`),
		"issue not a date":   jwt(`{"iat":{},"exp":1}`),
		"header injection":   jwt(`{"exp":1}`) + "\r\nX: y",
		"quote in the token": jwt(`{"exp":1}`) + `"`,
	} {
		if _, err := NewToken(text, key); !errors.Is(err, ErrToken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewToken(jwt(`{"exp":1}`), nil); !errors.Is(err, ErrToken) {
		t.Errorf("no key: %v", err)
	}
}

func TestParseTokenRefusesWithoutQuoting(t *testing.T) {
	good, err := mustToken(t).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"nothing":       "",
		"array":         "[]",
		"no key":        `{"token":"a.b.c"}`,
		"key not PEM":   `{"token":"a.b.c","tee_keypair":"hunter2"}`,
		"member twice":  strings.Replace(string([]byte(good)), `{"token"`, `{"tee_keypair":"hunter2","token"`, 1),
		"cut":           string([]byte(good[:len(good)-1])),
		"broken syntax": `{"token":"a.b.c","tee_keypair":"hunter2"x}`,
	} {
		if _, err := ParseToken([]byte(text)); !errors.Is(err, ErrToken) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	good, err := mustToken(f).Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(good))
	f.Add([]byte(`{"token":"a.b.c","tee_keypair":"x"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		tok, err := ParseToken(raw)
		if err != nil {
			return
		}
		out, err := tok.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseToken(out)
		if err != nil || again.JWT != tok.JWT {
			t.Fatalf("%q: %v", raw, err)
		}
	})
}

func TestMarshalLeavesPlainJSON(t *testing.T) {
	out, err := mustToken(t).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if bytes.ContainsAny(out, "\n\r\t") || !json.Valid(out) {
		t.Error("not one line of JSON")
	}
}
