package secret

import (
	"bytes"
	"errors"
	"math/big"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/podvm"
)

func TestMalformedSecretsFetchNothing(t *testing.T) {
	w := newWorld(t)
	good := w.seal(t, vault)
	parts := strings.Split(good, ".")
	head, payload, signature := parts[1], parts[2], parts[3]
	join := func(h, p, s string) string { return "sealed." + h + "." + p + "." + s }
	withHeader := func(o object) string { return w.sealRaw(t, o.json(t), vault.json(t)) }
	rawHeader := func(s string) string { return w.sealRaw(t, []byte(s), vault.json(t)) }
	tests := map[string]struct {
		text, cause string
		class       error
	}{
		"nothing":                        {text: "", cause: "1 parts"},
		"only the prefix":                {text: "sealed.", cause: "1 parts"},
		"not sealed at all":              {text: "hunter2", cause: "1 parts"},
		"two parts":                      {text: "sealed." + head + "." + payload, cause: "2 parts"},
		"four parts":                     {text: good + "." + signature, cause: "4 parts"},
		"a dot at the end":               {text: good + ".", cause: "4 parts"},
		"the prefix in capitals":         {text: "SEALED" + good[6:], cause: "4 parts"},
		"space before it":                {text: " " + good, cause: "4 parts"},
		"a line end after it":            {text: good + "\n", cause: "line end"},
		"CR LF after it":                 {text: good + "\r\n", cause: "line end"},
		"a space after it":               {text: good + " ", cause: "signature: not base64url"},
		"a NUL after it":                 {text: good + "\x00", cause: "signature: not base64url"},
		"a line end in the header":       {text: join(head[:8]+"\n"+head[8:], payload, signature), cause: "header: base64url with a line end"},
		"a CR in the payload":            {text: join(head, payload[:8]+"\r"+payload[8:], signature), cause: "payload: base64url with a line end"},
		"a line end in the signature":    {text: join(head, payload, signature[:8]+"\n"+signature[8:]), cause: "signature: base64url with a line end"},
		"a padded header":                {text: join(head+"=", payload, signature), cause: "header: not base64url"},
		"a padded payload":               {text: join(head, payload+"=", signature), cause: "payload: not base64url"},
		"a padded signature":             {text: join(head, payload, signature+"=="), cause: "signature: not base64url"},
		"stray bits in the signature":    {text: join(head, payload, signature[:len(signature)-1]+strayed(signature)), cause: "signature: not base64url"},
		"the alphabet of plain base64":   {text: join(head, payload, strings.Repeat("+", 86)), cause: "signature: not base64url"},
		"not UTF-8":                      {text: good + "\xff", cause: "not UTF-8"},
		"a byte order mark":              {text: "\ufeff" + good, cause: "4 parts"},
		"too large":                      {text: strings.Repeat("a", maxSealed+1), cause: "too large"},
		"a header too large":             {text: rawHeader(`{"alg":"ES256","kid":"` + strings.Repeat("k", maxHeader) + `"}`), cause: "header: too large"},
		"a header that is a list":        {text: rawHeader(`[]`), cause: "header: not a JSON object"},
		"a header that is no JSON":       {text: rawHeader(`{"alg`), cause: "header: "},
		"a header with bytes after it":   {text: rawHeader(string(header.json(t)) + "{}"), cause: "header: data after"},
		"a header with kid twice":        {text: rawHeader(`{"alg":"ES256","kid":"a","kid":"` + keyURI + `"}`), cause: `header: member "kid" appears twice`},
		"a header with an escaped twin":  {text: rawHeader(`{"alg":"none","\u0061lg":"ES256","kid":"a"}`), cause: `header: member "alg" appears twice`},
		"no kid":                         {text: withHeader(header.without("kid")), cause: `"kid" is missing`},
		"kid null":                       {text: withHeader(header.with("kid", nil)), cause: `"kid": not a string`},
		"kid in capitals":                {text: withHeader(header.without("kid").with("KID", keyURI)), cause: `"kid" is missing`},
		"no alg":                         {text: withHeader(header.without("alg")), cause: `"alg" is missing`},
		"alg a number":                   {text: withHeader(header.with("alg", 256)), cause: `"alg": not a string`},
		"a payload that is not encoded":  {text: withHeader(header.with("b64", false)), cause: `"b64"`},
		"a critical extension":           {text: withHeader(header.with("crit", []string{"exp"})), cause: `"crit"`},
		"alg none":                       {text: withHeader(header.with("alg", "none")), class: ErrSigningKey, cause: `"none"`},
		"alg HS256, keyed by public key": {text: withHeader(header.with("alg", "HS256")), class: ErrSigningKey, cause: `"HS256"`},
		"alg in lower case":              {text: withHeader(header.with("alg", "es256")), class: ErrSigningKey, cause: `"es256"`},
		"alg ES384":                      {text: withHeader(header.with("alg", "ES384")), class: ErrSigningKey, cause: `"ES384"`},
		"a text only for skipping":       {text: fake(vault.json(t)), cause: "signature"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w.asked = nil
			if tt.class == nil {
				tt.class = ErrParse
			}
			got, err := w.unsealer(t.TempDir(), false).Unseal(t.Context(), []byte(tt.text))
			refused(t, got, err, tt.class, tt.cause)
			if len(w.asked) > 0 {
				t.Errorf("asked for %q", w.asked)
			}
		})
	}
}

// strayed returns the last letter of text with a bit set that encodes nothing.
func strayed(text string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return string(alphabet[strings.IndexByte(alphabet, text[len(text)-1])|1])
}

func TestThePrefixIsOptionalAndMayRepeat(t *testing.T) {
	w := newWorld(t)
	for _, p := range []string{"", "sealed.", "sealed.sealed.sealed."} {
		text := p + strings.TrimPrefix(w.seal(t, vault), "sealed.")
		if got, err := w.unsealer(t.TempDir(), false).Unseal(t.Context(), []byte(text)); string(got) != "hunter2" || err != nil {
			t.Errorf("%q: %q, %v", p, []byte(got), err)
		}
	}
}

func TestSkippingLooksAtTheThirdOfFourParts(t *testing.T) {
	w := newWorld(t)
	u := w.unsealer(t.TempDir(), true)
	payload := b64(vault.json(t))
	for _, text := range []string{
		fake(vault.json(t)), fake(vault.json(t)) + "\n", fake(vault.json(t)) + "\r\n", "..." + "", w.seal(t, vault), "x.\x00." + payload + ".", ".." + payload + ".=",
	} {
		got, err := u.Unseal(t.Context(), []byte(text))
		if text == "..." {
			refused(t, got, err, ErrParse, "payload")
		} else if string(got) != "hunter2" || err != nil {
			t.Errorf("%q: %q, %v", text, []byte(got), err)
		}
	}
	for name, text := range map[string]string{
		"three parts":            "sealed.h." + payload,
		"five parts":             "sealed.sealed.h." + payload + ".s",
		"a padded payload":       "sealed.h." + payload + "=.s",
		"a line end in it":       "sealed.h." + payload + "\n.s",
		"a payload of two parts": "sealed.h." + payload + "." + payload + ".s",
		"not UTF-8":              "sealed.\xff." + payload + ".s",
		"too large":              "sealed." + strings.Repeat("h", maxSealed) + "." + payload + ".s",
	} {
		got, err := u.Unseal(t.Context(), []byte(text))
		if err == nil {
			t.Errorf("%s: %q", name, []byte(got))
			continue
		}
		refused(t, got, err, ErrParse, "malformed sealed secret")
	}
}

func TestMalformedPayloadsFetchOnlyTheKey(t *testing.T) {
	gcm := envelope(t, "A256GCM")
	raw := func(s string) []byte { return []byte(s) }
	tests := map[string]struct {
		payload []byte
		cause   string
		class   error
	}{
		"nothing":                 {payload: nil, cause: "not a JSON object"},
		"null":                    {payload: raw("null"), cause: "not a JSON object"},
		"bytes after it":          {payload: append(vault.json(t), "{}"...), cause: "data after"},
		"a member twice":          {payload: append(raw(`{"name":"kbs:///x",`), vault.json(t)[1:]...), cause: `"name" appears twice`},
		"an unknown member twice": {payload: append(raw(`{"x":1,"x":1,`), vault.json(t)[1:]...), cause: `"x" appears twice`},
		"a setting twice":         {payload: raw(strings.Replace(string(gcm.json(t)), `"region":`, `"region":"x","region":`, 1)), cause: `"region" appears twice`},
		"not UTF-8":               {payload: raw("{\"version\":\"\xff\"}"), cause: "not UTF-8"},

		"no version":             {payload: vault.without("version").json(t), cause: `"version" is missing`},
		"version null":           {payload: vault.with("version", nil).json(t), cause: `"version": not a string`},
		"version a number":       {payload: vault.with("version", 0.1).json(t), cause: `"version": not a string`},
		"version 0.2.0":          {payload: vault.with("version", "0.2.0").json(t), class: ErrVersion, cause: `"0.2.0"`},
		"version 0.1":            {payload: vault.with("version", "0.1").json(t), class: ErrVersion, cause: "0.1.0"},
		"another one altogether": {payload: raw(`{"version":"9"}`), class: ErrVersion, cause: "0.1.0"},
		"no type":                {payload: vault.without("type").json(t), cause: `"type" is missing`},
		"type in capitals":       {payload: vault.with("type", "Vault").json(t), cause: `type "Vault"`},
		"Type":                   {payload: vault.without("type").with("Type", "vault").json(t), cause: `"type" is missing`},
		"no name":                {payload: vault.without("name").json(t), cause: `"name" is missing`},
		"name null":              {payload: vault.with("name", nil).json(t), cause: `"name": not a string`},
		"Name":                   {payload: vault.without("name").with("Name", "kbs:///x").json(t), cause: `"name" is missing`},
		"no provider":            {payload: vault.without("provider").json(t), cause: `"provider" is missing`},
		"no settings":            {payload: vault.without("provider_settings").json(t), cause: `"provider_settings" is missing`},
		"settings null":          {payload: vault.with("provider_settings", nil).json(t), cause: `"provider_settings": not an object`},
		"settings a string":      {payload: vault.with("provider_settings", "{}").json(t), cause: `"provider_settings": not an object`},
		"no annotations":         {payload: vault.without("annotations").json(t), cause: `"annotations" is missing`},
		"annotations a list":     {payload: vault.with("annotations", []int{}).json(t), cause: `"annotations": not an object`},
		"no key_id":              {payload: gcm.without("key_id").json(t), cause: `"key_id" is missing`},
		"no encrypted_key":       {payload: gcm.without("encrypted_key").json(t), cause: `"encrypted_key" is missing`},
		"encrypted_key null":     {payload: gcm.with("encrypted_key", nil).json(t), cause: `"encrypted_key": not a string`},
		"no encrypted_data":      {payload: gcm.without("encrypted_data").json(t), cause: `"encrypted_data" is missing`},
		"no iv":                  {payload: gcm.without("iv").json(t), cause: `"iv" is missing`},
		"no wrap_type":           {payload: gcm.without("wrap_type").json(t), cause: `"wrap_type" is missing`},
		"wrap_type lower case":   {payload: gcm.with("wrap_type", "a256gcm").json(t), cause: `wrap_type "a256gcm"`},
		"wrap_type of another":   {payload: gcm.with("wrap_type", "A128GCM").json(t), cause: `wrap_type "A128GCM"`},
		"a key not padded":       {payload: gcm.with("encrypted_key", "d3JhcHBlZA").json(t), cause: `"encrypted_key": not standard base64`},
		"a key in base64url":     {payload: gcm.with("encrypted_key", "-_8=").json(t), cause: `"encrypted_key": not standard base64`},
		"a line end in data":     {payload: gcm.with("encrypted_data", "AA\nAA").json(t), cause: `"encrypted_data": base64 with a line end`},
		"CR LF after the iv":     {payload: gcm.with("iv", gcm["iv"].(string)+"\r\n").json(t), cause: `"iv": base64 with a line end`},
		"stray bits in the iv":   {payload: gcm.with("iv", "AAAAAAAAAAAAAAAAAB==").json(t), cause: `"iv": not standard base64`},
		"an envelope as vault":   {payload: gcm.with("type", "vault").json(t), cause: `"name" is missing`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if tt.class == nil {
				tt.class = ErrParse
			}
			w := newWorld(t)
			got, err := w.unsealer(t.TempDir(), false).Unseal(t.Context(), []byte(w.sealRaw(t, header.json(t), tt.payload)))
			refused(t, got, err, tt.class, tt.cause)
			if strings.Join(w.asked, " ") != keyURI {
				t.Errorf("asked for %q", w.asked)
			}
			w.asked = nil
			got, err = w.unsealer(t.TempDir(), true).Unseal(t.Context(), []byte(fake(tt.payload)))
			refused(t, got, err, tt.class, tt.cause)
			if len(w.asked) > 0 {
				t.Errorf("skipping verification: asked for %q", w.asked)
			}
		})
	}
}

func TestForgedSignatures(t *testing.T) {
	w := newWorld(t)
	good := w.seal(t, vault)
	parts := strings.Split(good, ".")
	signed := parts[1] + "." + parts[2]
	r, s := new(big.Int).SetBytes(w.signature(t, signed)[:32]), big.NewInt(0)
	n := w.key.Curve.Params().N
	bytesOf := func(r, s *big.Int) []byte {
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	}
	zero, one := big.NewInt(0), big.NewInt(1)
	other := newWorld(t)
	tests := map[string]string{
		"the payload changed":        "sealed." + parts[1] + "." + b64(vault.with("name", "kbs:///other").json(t)) + "." + parts[3],
		"the header changed":         "sealed." + b64(header.with("x", 1).json(t)) + "." + parts[2] + "." + parts[3],
		"by another key":             other.seal(t, vault),
		"no signature":               "sealed." + signed + ".",
		"r and s zero":               "sealed." + signed + "." + b64(make([]byte, 64)),
		"s zero":                     "sealed." + signed + "." + b64(bytesOf(r, s)),
		"r and s the group order":    "sealed." + signed + "." + b64(bytesOf(n, n)),
		"r one, s one":               "sealed." + signed + "." + b64(bytesOf(one, one)),
		"r zero, s one":              "sealed." + signed + "." + b64(bytesOf(zero, one)),
		"63 bytes":                   "sealed." + signed + "." + b64(w.signature(t, signed)[:63]),
		"65 bytes":                   "sealed." + signed + "." + b64(append(w.signature(t, signed), 0)),
		"DER, as other tools write":  "sealed." + signed + "." + b64(append([]byte{0x30, 0x44, 2, 32}, w.signature(t, signed)...)),
		"a signature of the payload": "sealed." + signed + "." + b64(w.signature(t, parts[2])),
		"a signature of the whole":   "sealed." + signed + "." + b64(w.signature(t, "sealed."+signed)),
	}
	for name, text := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := w.unsealer(t.TempDir(), false).Unseal(t.Context(), []byte(text))
			refused(t, got, err, ErrSignature, "not signed by the key at "+keyURI)
			w.wiped(t)
		})
	}
}

func TestBothFormsOfASignatureHold(t *testing.T) {
	w := newWorld(t)
	signed := b64(header.json(t)) + "." + b64(vault.json(t))
	sig := w.signature(t, signed)
	s := new(big.Int).SetBytes(sig[32:])
	negative := append(bytes.Clone(sig[:32]), s.Sub(w.key.Curve.Params().N, s).FillBytes(make([]byte, 32))...)
	for _, sig := range [][]byte{sig, negative} {
		text := "sealed." + signed + "." + b64(sig)
		if got, err := w.unsealer(t.TempDir(), false).Unseal(t.Context(), []byte(text)); string(got) != "hunter2" || err != nil {
			t.Errorf("%q, %v", []byte(got), err)
		}
	}
}

func FuzzMessage(f *testing.F) {
	w := newWorld(f)
	f.Add([]byte(w.seal(f, vault)))
	f.Add([]byte(fake(vault.json(f))))
	f.Add([]byte("sealed.sealed.e30.e30.e30"))
	f.Add([]byte("sealed...\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := parseMessage(text)
		if err != nil {
			if !errors.Is(err, ErrParse) || podvm.Cause(err) == "" {
				t.Fatal(err)
			}
		} else if again := m.signed + "." + b64(m.signature); !bytes.HasSuffix(text, []byte(again)) || !strings.HasSuffix(m.signed, "."+b64(m.payload)) {
			t.Fatalf("%q reads as %q", text, again) // one text, one reading
		}
		if p, err := unverifiedPayload(text); err == nil && !bytes.Contains(text, []byte(b64(p))) {
			t.Fatalf("%q has the payload %q", text, p)
		}
	})
}

func FuzzPayload(f *testing.F) {
	f.Add(vault.json(f))
	f.Add(envelope(f, "A256GCM").json(f))
	f.Add(envelope(f, "A256CTR").with("provider", "kbs").json(f))
	w := newWorld(f)
	f.Fuzz(func(t *testing.T, payload []byte) {
		w.asked, w.given = nil, nil
		got, err := w.unsealer("/nonexistent", true).Unseal(t.Context(), []byte(fake(payload)))
		if err != nil && (got != nil || podvm.Cause(err) == "") {
			t.Fatalf("%v beside %v", got, err)
		}
	})
}
