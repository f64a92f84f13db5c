package kbs

import (
	"bytes"
	"crypto"
	_ "crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// vectorKey is the key of the report data vectors; it is no point on a curve.
var vectorKey = PublicKey{KTY: "EC", CRV: "P-256", ALG: "ECDH-ES+A256KW", X: "eA", Y: "eQ"}

// The digests were computed outside this code base with sha384sum over the
// canonical texts
//
//	{"additional-evidence":"","nonce":"bm9uY2U=","tee-pubkey":{"alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC","x":"eA","y":"eQ"}}
//
// and the same without its first member.
func TestReportDataVector(t *testing.T) {
	rd := RuntimeData{Nonce: "bm9uY2U=", TEEPubKey: vectorKey}
	primary, err := ReportDataWithDevices(crypto.SHA384, rd, "")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := hex.EncodeToString(primary), "412a2cd46689a873a3606a62cc5dadd837d33a7dfe3706531ba537d4c21eb3dfb6a4639a2302472555aa3430cee0bc4e"; got != want {
		t.Errorf("primary %s", got)
	}
	devices, err := ReportData(crypto.SHA384, rd)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := hex.EncodeToString(devices), "faab561a3549a92e4038563d990c9789578db00d3cad9bcec50772f84f2bc3b81671fefdfb345fd77dea92f27d7466d4"; got != want {
		t.Errorf("devices %s", got)
	}
}

// Characters that encoding/json escapes and canonical JSON does not must be
// hashed as they are: additional evidence is arbitrary text.
func TestReportDataHashesTextUnescaped(t *testing.T) {
	text := `{"a":"<&>` + "\u2028\u2029é\U0001F600\x01" + `"}`
	got, err := ReportDataWithDevices(crypto.SHA256, RuntimeData{Nonce: "n", TEEPubKey: vectorKey}, text)
	if err != nil {
		t.Fatal(err)
	}
	canonical := `{"additional-evidence":"{\"a\":\"<&>` + "\u2028\u2029é\U0001F600" + `\u0001\"}","nonce":"n",` +
		`"tee-pubkey":{"alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC","x":"eA","y":"eQ"}}`
	h := crypto.SHA256.New()
	h.Write([]byte(canonical))
	if want := h.Sum(nil); !bytes.Equal(got, want) {
		t.Errorf("got %x want %x", got, want)
	}
}

func TestReportDataNeedsAKnownHash(t *testing.T) {
	if _, err := ReportData(crypto.Hash(99), RuntimeData{}); err == nil {
		t.Error("hash 99 accepted")
	}
}

func TestWireTypesRoundTrip(t *testing.T) {
	key := `{"kty":"EC","crv":"P-256","alg":"ECDH-ES+A256KW","x":"eA","y":"eQ"}`
	tests := map[string]struct {
		text string
		into any
	}{
		"request":       {`{"version":"0.4.0","tee":"tdx","extra-params":{"a":[1]}}`, new(Request)},
		"challenge":     {`{"nonce":"bm9uY2U=","extra-params":""}`, new(Challenge)},
		"EC key":        {key, new(PublicKey)},
		"RSA key":       {`{"kty":"RSA","alg":"RSA-OAEP-256","n":"AQAB","e":"AQAB"}`, new(PublicKey)},
		"init data":     {`{"format":"toml","body":"version = \"0.1.0\"\n"}`, new(InitData)},
		"no init data":  {`{"init-data":null,"runtime-data":{"nonce":"n","tee-pubkey":` + key + `},"tee-evidence":{"primary_evidence":{"svn":"1"},"additional_evidence":""}}`, new(Attestation)},
		"all init data": {`{"init-data":{"format":"toml","body":""},"runtime-data":{"nonce":"n","tee-pubkey":` + key + `},"tee-evidence":{"primary_evidence":null,"additional_evidence":"{}"}}`, new(Attestation)},
		"token":         {`{"token":"a.b.c"}`, new(TokenResponse)},
		"error":         {`{"type":"https://x/errors/PolicyDeny","detail":"Access denied by policy"}`, new(ErrorInfo)},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if err := json.Unmarshal([]byte(tt.text), tt.into); err != nil {
				t.Fatal(err)
			}
			got, err := json.Marshal(tt.into)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.text, string(got)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestWireTypesRefuse(t *testing.T) {
	tests := map[string]struct {
		text string
		into json.Unmarshaler
	}{
		"request without extra-params":    {`{"version":"0.4.0","tee":"tdx"}`, new(Request)},
		"request with a numeric version":  {`{"version":4,"tee":"tdx","extra-params":""}`, new(Request)},
		"request with a null tee":         {`{"version":"0.4.0","tee":null,"extra-params":""}`, new(Request)},
		"name in capitals":                {`{"Nonce":"x","extra-params":""}`, new(Challenge)},
		"name twice":                      {`{"nonce":"x","nonce":"y"}`, new(Challenge)},
		"data after the object":           {`{"nonce":"x"} {}`, new(Challenge)},
		"an array":                        {`["nonce"]`, new(Challenge)},
		"nothing":                         {``, new(Challenge)},
		"attestation without key":         {`{"runtime-data":{"nonce":"n"},"tee-evidence":{"primary_evidence":1,"additional_evidence":""}}`, new(Attestation)},
		"attestation without evidence":    {`{"runtime-data":{"nonce":"n","tee-pubkey":{"kty":"EC","crv":"P-256","alg":"ECDH-ES+A256KW","x":"eA","y":"eQ"}}}`, new(Attestation)},
		"additional evidence as object":   {`{"primary_evidence":1,"additional_evidence":{}}`, new(TEEEvidence)},
		"init data without format":        {`{"body":""}`, new(InitData)},
		"key with an extra member":        {`{"kty":"EC","crv":"P-256","alg":"ECDH-ES+A256KW","x":"eA","y":"eQ","kid":"1"}`, new(PublicKey)},
		"key without alg":                 {`{"kty":"EC","crv":"P-256","x":"eA","y":"eQ"}`, new(PublicKey)},
		"key on P-384":                    {`{"kty":"EC","crv":"P-384","alg":"ECDH-ES+A256KW","x":"eA","y":"eQ"}`, new(PublicKey)},
		"key of the RSA1_5 kind":          {`{"kty":"RSA","alg":"RSA1_5","n":"AQAB","e":"AQAB"}`, new(PublicKey)},
		"key of the AKP kind":             {`{"kty":"AKP","alg":"ML-KEM-768+A192KW","pub":"AA"}`, new(PublicKey)},
		"key with members of both types":  {`{"kty":"RSA","alg":"RSA-OAEP-256","n":"AQAB","e":"AQAB","x":"eA"}`, new(PublicKey)},
		"EC key with the RSA algorithm":   {`{"kty":"EC","crv":"P-256","alg":"RSA-OAEP-256","x":"eA","y":"eQ"}`, new(PublicKey)},
		"error body that is a page":       {`<html>`, new(ErrorInfo)},
		"token response with two members": {`{"token":"a","token":"b"}`, new(TokenResponse)},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if err := tt.into.UnmarshalJSON([]byte(tt.text)); err == nil {
				t.Errorf("accepted as %+v", tt.into)
			}
		})
	}
}

func FuzzWireTypes(f *testing.F) {
	f.Add([]byte(`{"version":"0.4.0","tee":"tdx","extra-params":{}}`))
	f.Add([]byte(`{"nonce":"n","extra-params":""}`))
	f.Add([]byte(`{"init-data":null,"runtime-data":{"nonce":"n","tee-pubkey":{"kty":"EC","crv":"P-256","alg":"ECDH-ES+A256KW","x":"eA","y":"eQ"}},"tee-evidence":{"primary_evidence":{},"additional_evidence":""}}`))
	f.Add([]byte(`{"type":"t","detail":"d"}`))
	f.Add([]byte(`{"token":"t"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, v := range []json.Unmarshaler{new(Request), new(Challenge), new(Attestation), new(TokenResponse), new(ErrorInfo)} {
			if v.UnmarshalJSON(raw) != nil {
				continue
			}
			if _, err := json.Marshal(v); err != nil {
				t.Fatalf("%T read from %q does not encode: %v", v, raw, err)
			}
		}
	})
}

func TestErrorsQuoteNoControlCharacters(t *testing.T) {
	err := new(PublicKey).UnmarshalJSON([]byte(`{"kty":"EC\u001b[31m\n"}`))
	if err == nil || strings.ContainsAny(err.Error(), "\x1b\n") {
		t.Errorf("got %q", err)
	}
}
