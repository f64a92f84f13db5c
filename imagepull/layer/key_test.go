package layer

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/podvm"
)

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

const (
	goodPub     = `{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","cipheroptions":{}}`
	goodPrivate = `{"symkey":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","cipheroptions":{"nonce":"AgICAgICAgICAgICAgICAg=="}}`
)

func TestUnwrapKeyTriesEveryPacket(t *testing.T) {
	var seen []string
	u := unwrapper(func(packet []byte) (podvm.Secret, error) {
		seen = append(seen, string(packet))
		switch string(packet) {
		case "unusable":
			return podvm.Secret(`{"symkey":"AQ=="}`), nil
		case "good":
			return podvm.Secret(goodPrivate), nil
		}
		return nil, errors.New("no such key")
	})
	spec := Spec{MediaType: oci + "+gzip+encrypted", Annotations: map[string]string{
		pubOptsAnnotation:               b64(goodPub),
		providerPrefix + "b":            b64("unusable") + "," + b64("good") + "," + b64("never"),
		providerPrefix + "a":            b64("bad1") + "," + b64("bad2"),
		keysPrefix + "jwe":              "not even base64",
		"org.example.unrelated":         "x",
		"org.opencontainers.image.enc.": "x",
	}}
	key, err := UnwrapKey(t.Context(), spec, Unwrappers{Provider: u})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(seen, " "); got != "bad1 bad2 unusable good" {
		t.Errorf("offered %q", got)
	}
	if len(key.symKey) != 32 || key.symKey[0] != 1 || len(key.nonce) != 16 || key.nonce[15] != 2 || len(key.hmac) != 32 {
		t.Error("wrong key")
	}
}

func TestUnwrapKeyOfPlainLayer(t *testing.T) {
	key, err := UnwrapKey(t.Context(), Spec{MediaType: oci, Annotations: map[string]string{providerPrefix + "a": "x"}}, Unwrappers{})
	if key != nil || err != nil {
		t.Error(key, err)
	}
	if _, err := UnwrapKey(t.Context(), Spec{MediaType: "text/plain"}, Unwrappers{}); !errors.Is(err, ErrMediaType) {
		t.Error(err)
	}
	key.Wipe() // nil is fine
}

func TestUnwrapKeyRefuses(t *testing.T) {
	noKey := unwrapper(func([]byte) (podvm.Secret, error) {
		return nil, podvm.Explain(errors.New("GET 10.0.0.1: 404"), "resource not found")
	})
	many := strings.Repeat(b64("p")+",", maxPackets) + b64("p")
	tests := map[string]struct {
		pub, private string
		annotations  map[string]string
		u            Unwrapper
		cause        string // after kata's text
	}{
		"no public options":    {cause: ": its public options are unusable"},
		"public not base64":    {pub: "{}", cause: ": its public options are unusable"},
		"public too long":      {pub: strings.Repeat("A", 100<<10), cause: ": its public options are unusable"},
		"other cipher":         {pub: b64(strings.Replace(goodPub, "256_CTR", "128_CTR", 1)), cause: ": its public options are unusable"},
		"no hmac":              {pub: b64(`{"cipher":"AES_256_CTR_HMAC_SHA256","cipheroptions":{}}`), cause: ": its public options are unusable"},
		"short hmac":           {pub: b64(`{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"AAAA"}`), cause: ": its public options are unusable"},
		"unknown public field": {pub: b64(`{"x":1,` + goodPub[1:]), cause: ": its public options are unusable"},
		"data after public":    {pub: b64(goodPub + "{}"), cause: ": its public options are unusable"},
		"private not JSON":     {pub: b64(goodPub), private: "secret!"},
		"short key":            {pub: b64(goodPub), private: strings.Replace(goodPrivate, "AQEB", "", 1)},
		"no nonce":             {pub: b64(goodPub), private: strings.Replace(goodPrivate, "nonce", "nance", 1)},
		"short nonce":          {pub: b64(goodPub), private: strings.Replace(goodPrivate, "AgIC", "", 1)},
		"nonce in public part only": {pub: b64(strings.Replace(goodPub, `{}`, `{"nonce":"AgICAgICAgICAgICAgICAg=="}`, 1)),
			private: strings.Replace(goodPrivate, "nonce", "nance", 1)},
		"malformed PLBCO digest": {pub: b64(goodPub), private: strings.Replace(goodPrivate, "sha256:", "sha256:zz", 1)},
		"private too long":       {pub: b64(goodPub), private: goodPrivate + strings.Repeat(" ", maxOptions)},
		"no key at the KBS":      {pub: b64(goodPub), u: noKey, cause: ": resource not found"},
		"packet not base64": {pub: b64(goodPub), annotations: map[string]string{providerPrefix + "a": "%%"},
			cause: ": a wrapped key is malformed"},
		"empty packet": {pub: b64(goodPub), annotations: map[string]string{providerPrefix + "a": b64("x") + ","},
			cause: ": a wrapped key is malformed"},
		"too many packets": {pub: b64(goodPub), annotations: map[string]string{providerPrefix + "a": many}},
		"no keys": {pub: b64(goodPub), annotations: map[string]string{},
			cause: ": only keys wrapped by provider.<name> (key provider protocol), and by jwe where decryption_keys is set, are supported, none is attached"},
		"jwe only": {pub: b64(goodPub), annotations: map[string]string{keysPrefix + "jwe": b64("x"), keysPrefix + "pgp": b64("x")},
			cause: ": only keys wrapped by provider.<name> (key provider protocol), and by jwe where decryption_keys is set, are supported, the layer has jwe, pgp"},
	}
	for n, tt := range tests {
		t.Run(n, func(t *testing.T) {
			spec := Spec{MediaType: oci + "+encrypted", Annotations: tt.annotations}
			if spec.Annotations == nil {
				spec.Annotations = map[string]string{providerPrefix + "a": b64("packet")}
			}
			if tt.pub != "" {
				spec.Annotations[pubOptsAnnotation] = tt.pub
			}
			if tt.u == nil {
				tt.u = unwrapper(func([]byte) (podvm.Secret, error) { return podvm.Secret(tt.private), nil })
			}
			key, err := UnwrapKey(t.Context(), spec, Unwrappers{Provider: tt.u})
			if !errors.Is(err, ErrDecrypt) || key != nil {
				t.Fatalf("got %v", err)
			}
			if got := podvm.Cause(err); got != decryptText+tt.cause {
				t.Errorf("public cause %q", got)
			}
			if strings.Contains(err.Error(), "secret!") || strings.Contains(err.Error(), "AQEB") {
				t.Errorf("quotes the key: %v", err)
			}
		})
	}
}

func TestUnwrapKeyEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("why")
	spec := Spec{MediaType: oci + "+encrypted", Annotations: map[string]string{
		pubOptsAnnotation: b64(goodPub), providerPrefix + "a": b64("1") + "," + b64("2")}}
	calls := 0
	_, err := UnwrapKey(ctx, spec, Unwrappers{Provider: unwrapper(func([]byte) (podvm.Secret, error) {
		calls++
		cancel(why)
		return nil, errors.New("x")
	})})
	if !errors.Is(err, why) || errors.Is(err, ErrDecrypt) || calls != 1 {
		t.Errorf("%v after %d calls", err, calls)
	}
}

func TestKeyIsRedactedAndWiped(t *testing.T) {
	private := podvm.Secret(goodPrivate)
	key, err := open(t.Context(), packet{nil, unwrapper(func([]byte) (podvm.Secret, error) { return private, nil })})
	must(t, err)
	if strings.Trim(string([]byte(private)), "\x00") != "" {
		t.Error("the private options were not wiped")
	}
	var b strings.Builder
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "key", key)
	fmt.Fprintf(&b, "%v %+v %#v %s %x", key, key, key, key, key)
	j, err := json.Marshal(key)
	must(t, err)
	b.Write(j)
	for _, leak := range []string{"AQEB", "0101", "1 1 1", "0x1"} {
		if strings.Contains(b.String(), leak) {
			t.Errorf("%q in %s", leak, b.String())
		}
	}
	key.Wipe()
	for _, c := range append(key.symKey, key.nonce...) {
		if c != 0 {
			t.Fatal("not wiped")
		}
	}
}

func FuzzParsePublic(f *testing.F) {
	f.Add(goodPub)
	f.Add(`{"cipher":"","hmac":null}`)
	f.Fuzz(func(t *testing.T, text string) {
		if hmac, err := parsePublic(b64(text)); (err == nil) != (len(hmac) == hmacLen) {
			t.Errorf("%d bytes, %v", len(hmac), err)
		}
	})
}

func FuzzParsePrivate(f *testing.F) {
	f.Add([]byte(goodPrivate))
	f.Add([]byte(`{"symkey":[1]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		key, err := parsePrivate(raw)
		if err == nil && (len(key.symKey) != symKeyLen || len(key.nonce) != nonceLen) {
			t.Error("unusable key accepted")
		}
	})
}

func FuzzFormatOf(f *testing.F) {
	f.Add(oci + "+gzip+encrypted")
	f.Fuzz(func(t *testing.T, mediaType string) {
		if got, err := formatOf(mediaType); err == nil && got.encrypted != strings.HasSuffix(mediaType, "+encrypted") {
			t.Error("encryption misread")
		}
	})
}
