package keywrap

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/podvm"
)

// The KEK of the key broker samples upstream, and what we wrap with it.
const (
	kekBase64 = "2Zt3BbC6ehaClbOjNnJwsN2bNxv1FMqLm6fwozcR2uo="
	kekURI    = "kbs:///default/test-key/1"
	options   = `{"symkey":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","digest":"sha256:00","cipheroptions":{"nonce":"AAAAAAAAAAAAAAAAAAAAAA=="}}`
)

var errAbsent = errors.New("absent")

// keks serves resources from a map and remembers whether its bytes were wiped.
type keks struct {
	byURI map[string][]byte
	given []podvm.Secret
}

func (k *keks) Resource(_ context.Context, uri string) (podvm.Secret, error) {
	b, ok := k.byURI[uri]
	if !ok {
		return nil, podvm.Explain(errAbsent, "no such resource")
	}
	s := podvm.Secret(bytes.Clone(b))
	k.given = append(k.given, s)
	return s, nil
}

func samples() *keks {
	kek, err := base64.StdEncoding.DecodeString(kekBase64)
	if err != nil {
		panic(err)
	}
	return &keks{byURI: map[string][]byte{
		kekURI:                        kek,
		"kbs+vault://h/one?version=2": kek,
		"kbs:///default/short/1":      kek[:31],
		"kbs:///default/other/1":      bytes.Repeat([]byte{1}, 32),
	}}
}

// seal wraps plain with crypto/aes alone, as the owner's tools do.
func seal(t testing.TB, wrap string, iv []byte, plain string) string {
	t.Helper()
	block, err := aes.NewCipher(samples().byURI[kekURI])
	if err != nil {
		t.Fatal(err)
	}
	if wrap == "A256CTR" {
		out := make([]byte, len(plain))
		cipher.NewCTR(block, iv).XORKeyStream(out, []byte(plain))
		return base64.StdEncoding.EncodeToString(out)
	}
	gcm, err := cipher.NewGCMWithNonceSize(block, len(iv))
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(gcm.Seal(nil, iv, []byte(plain), nil))
}

// members is a packet before it is put in order.
type members map[string]any

func v1(t testing.TB, wrap string, iv []byte) members {
	return members{"kid": kekURI, "wrap_type": wrap, "iv": base64.StdEncoding.EncodeToString(iv), "wrapped_data": seal(t, wrap, iv, options)}
}

func (m members) with(name string, value any) members {
	out := members{name: value}
	for k, v := range m {
		if k != name {
			out[k] = v
		}
	}
	return out
}

func (m members) without(name string) members {
	out := m.with(name, nil)
	delete(out, name)
	return out
}

func (m members) json(t testing.TB) []byte {
	t.Helper()
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestUnwrap(t *testing.T) {
	gcm, ctr := v1(t, "A256GCM", make([]byte, 12)), v1(t, "A256CTR", bytes.Repeat([]byte{9}, 16))
	v2 := gcm.with("version", "0.1.0").with("provider", "kbs").
		with("provider_settings", members{}).with("annotations", members{"x": 1})
	damaged := gcm.with("wrapped_data", "AAAA"+gcm["wrapped_data"].(string)[4:])
	tests := map[string]struct {
		packet []byte
		is     error  // nil: options come out
		cause  string // part of it
	}{
		"version 1, GCM":               {packet: gcm.json(t)},
		"version 1, CTR":               {packet: ctr.json(t)},
		"version 2, GCM":               {packet: v2.json(t)},
		"version 2 without settings":   {packet: v2.without("provider_settings").without("annotations").json(t)},
		"a GCM iv of 16 bytes":         {packet: v1(t, "A256GCM", make([]byte, 16)).json(t)},
		"a GCM iv of 1 byte":           {packet: v1(t, "A256GCM", make([]byte, 1)).json(t)},
		"members nobody knows":         {packet: gcm.with("future", []int{1}).json(t)},
		"a kid of one segment, plugin": {packet: gcm.with("kid", "kbs+vault://h/one?version=2").json(t)},

		"another provider":            {packet: v2.with("provider", "aliyun").json(t), is: ErrPacket, cause: `"aliyun" is not available`},
		"provider in capitals":        {packet: v2.with("provider", "KBS").json(t), is: ErrPacket, cause: `"KBS" is not available`},
		"provider null":               {packet: v2.with("provider", nil).json(t), is: ErrPacket, cause: `"provider": not a string`},
		"another version":             {packet: v2.with("version", "0.2.0").json(t), is: ErrPacket, cause: "not of version 0.1.0"},
		"version null":                {packet: v2.with("version", nil).json(t), is: ErrPacket, cause: `"version"`},
		"settings null":               {packet: v2.with("provider_settings", nil).json(t), is: ErrPacket, cause: `"provider_settings": not an object`},
		"annotations a list":          {packet: v2.with("annotations", []int{}).json(t), is: ErrPacket, cause: `"annotations": not an object`},
		"no kid":                      {packet: gcm.without("kid").json(t), is: ErrPacket, cause: `"kid" is missing`},
		"kid null":                    {packet: gcm.with("kid", nil).json(t), is: ErrPacket, cause: `"kid": not a string`},
		"no iv":                       {packet: gcm.without("iv").json(t), is: ErrPacket, cause: `"iv" is missing`},
		"iv null":                     {packet: gcm.with("iv", nil).json(t), is: ErrPacket, cause: `"iv"`},
		"iv empty":                    {packet: gcm.with("iv", "").json(t), is: ErrUnwrap, cause: "does not open"},
		"no wrapped_data":             {packet: gcm.without("wrapped_data").json(t), is: ErrPacket, cause: `"wrapped_data" is missing`},
		"no wrap_type":                {packet: gcm.without("wrap_type").json(t), is: ErrPacket, cause: `"wrap_type" is missing`},
		"wrap_type in lower case":     {packet: gcm.with("wrap_type", "a256gcm").json(t), is: ErrPacket, cause: "neither A256GCM nor A256CTR"},
		"names in capitals":           {packet: gcm.without("kid").with("Kid", kekURI).json(t), is: ErrPacket, cause: `"kid" is missing`},
		"a member twice":              {packet: append([]byte(`{"kid":"x",`), gcm.json(t)[1:]...), is: ErrPacket},
		"data after it":               {packet: append(gcm.json(t), '{'), is: ErrPacket},
		"a line end in base64":        {packet: gcm.with("wrapped_data", gcm["wrapped_data"].(string)+"\n").json(t), is: ErrPacket, cause: `"wrapped_data"`},
		"base64 not padded":           {packet: gcm.with("iv", "AAAAAAAAAAAAAAAAA").json(t), is: ErrPacket, cause: `"iv"`},
		"base64 with stray bits":      {packet: gcm.with("iv", "AAAAAAAAAAAAAAAAAB==").json(t), is: ErrPacket, cause: `"iv"`},
		"not JSON":                    {packet: []byte("x"), is: ErrPacket, cause: "not a JSON object"},
		"nothing":                     {packet: nil, is: ErrPacket, cause: "not a JSON object"},
		"far too long":                {packet: bytes.Repeat([]byte(" "), maxPacket+1), is: podvm.ErrTooLarge, cause: "too large"},
		"a flipped bit":               {packet: damaged.json(t), is: ErrUnwrap, cause: "does not open with the key at " + kekURI},
		"another KEK":                 {packet: gcm.with("kid", "kbs:///default/other/1").json(t), is: ErrUnwrap, cause: "does not open"},
		"a KEK of 31 bytes":           {packet: gcm.with("kid", "kbs:///default/short/1").json(t), is: ErrUnwrap, cause: "not 32 raw bytes"},
		"a KEK that is not there":     {packet: gcm.with("kid", "kbs:///default/none/1").json(t), is: errAbsent, cause: "no such resource"},
		"shorter than the tag":        {packet: gcm.with("wrapped_data", "AAAA").json(t), is: ErrUnwrap, cause: "does not open"},
		"a CTR iv of 12 bytes":        {packet: ctr.with("iv", base64.StdEncoding.EncodeToString(make([]byte, 12))).json(t), is: ErrUnwrap, cause: "does not open"},
		"GCM data under the CTR type": {packet: gcm.with("wrap_type", "A256CTR").json(t), is: ErrUnwrap},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			k := samples()
			got, err := Unwrap(t.Context(), Keys{Resources: k}, tt.packet)
			if tt.is == nil {
				if err != nil || string(got) != options {
					t.Fatalf("got %q, %v", []byte(got), err)
				}
			} else if !errors.Is(err, tt.is) || got != nil {
				t.Fatalf("got %v, %v, want %v", got, err, tt.is)
			} else if cause := podvm.Cause(err); cause == "" || !strings.Contains(cause, tt.cause) {
				t.Errorf("cause %q, want %q", cause, tt.cause)
			}
			for _, s := range k.given {
				if !bytes.Equal(s, make([]byte, len(s))) {
					t.Error("the KEK was not wiped")
				}
			}
		})
	}
}

// TestGCMPacketsDoNotOpenAsCTR takes the tag off a packet and calls it A256CTR.
// If it opened, whoever can have images pulled could flip bits of the layer key
// and learn it from which of them make an image fail early.
func TestGCMPacketsDoNotOpenAsCTR(t *testing.T) {
	nonce := []byte("unique nonce")
	gcm, err := base64.StdEncoding.DecodeString(seal(t, "A256GCM", nonce, options))
	if err != nil {
		t.Fatal(err)
	}
	blocks := gcm[:len(gcm)-16]
	before := bytes.Clone(nonce) // the counters that carry into those of this nonce
	before[11]--
	tests := map[string]struct{ iv, data []byte }{
		"from its first block":      {append(bytes.Clone(nonce), 0, 0, 0, 2), blocks},
		"from its third block":      {append(bytes.Clone(nonce), 0, 0, 0, 4), blocks[32:]},
		"with the block of the tag": {append(bytes.Clone(nonce), 0, 0, 0, 1), append(make([]byte, 16), blocks...)},
		"with a block before":       {append(bytes.Clone(nonce), 0, 0, 0, 0), append(make([]byte, 32), blocks...)},
		"with a carry":              {append(before, 0xff, 0xff, 0xff, 0xff), append(make([]byte, 48), blocks...)},
		"a part of a block":         {append(bytes.Clone(nonce), 0, 0, 0, 2), blocks[:1]},
		"the end of the largest":    {append(bytes.Clone(nonce), 0, 0, 0x40, 1), make([]byte, 16)},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			k := samples()
			p := members{
				"kid": kekURI, "wrap_type": "A256CTR", "iv": base64.StdEncoding.EncodeToString(tt.iv),
				"wrapped_data": base64.StdEncoding.EncodeToString(tt.data),
			}
			got, err := Unwrap(t.Context(), Keys{Resources: k}, p.json(t))
			if !errors.Is(err, ErrPacket) || !strings.Contains(podvm.Cause(err), "without its tag") || len(k.given) > 0 {
				t.Fatalf("%q, %v", []byte(got), err)
			}
		})
	}
	for name, iv := range map[string][]byte{
		"beyond GCM's counters": {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x40, 2},
		"short of them":         {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xf0},
	} {
		if got, err := Unwrap(t.Context(), Keys{Resources: samples()}, v1(t, "A256CTR", iv).json(t)); string(got) != options || err != nil {
			t.Errorf("%s: %q, %v", name, []byte(got), err)
		}
	}
}

func TestCTRIsBigEndianAcrossTheWholeBlock(t *testing.T) {
	iv := bytes.Repeat([]byte{0xff}, 16) // the counter wraps to zero after one block
	p := v1(t, "A256CTR", iv)
	block, err := aes.NewCipher(samples().byURI[kekURI])
	if err != nil {
		t.Fatal(err)
	}
	stream := make([]byte, 32)
	block.Encrypt(stream[:16], iv)
	block.Encrypt(stream[16:], make([]byte, 16))
	plain := []byte(options)[:32]
	for i := range plain {
		stream[i] ^= plain[i]
	}
	got, err := Unwrap(t.Context(), Keys{Resources: samples()}, p.with("wrapped_data", base64.StdEncoding.EncodeToString(stream)).json(t))
	if err != nil || string(got) != options[:32] {
		t.Fatalf("%q, %v", []byte(got), err)
	}
}

func request(annotation string) string {
	return fmt.Sprintf(`{"op":"keyunwrap","keywrapparams":{"ec":null,"optsdata":null},"keyunwrapparams":{"dc":{"Parameters":{"attestation-agent":["eA=="]}},"annotation":"%s"}}`, annotation)
}

func TestUnwrapRequest(t *testing.T) {
	annotation := base64.StdEncoding.EncodeToString(v1(t, "A256GCM", make([]byte, 12)).json(t))
	whole := request(annotation)
	edit := func(old, with string) string {
		if !strings.Contains(whole, old) {
			t.Fatalf("%q is not in the request", old)
		}
		return strings.Replace(whole, old, with, 1)
	}
	tests := map[string]struct {
		in    string
		is    error
		cause string
	}{
		"as the Rust peer sends it":      {in: whole},
		"as Go's ocicrypt sends it":      {in: `{"op":"keyunwrap","keywrapparams":{},"keyunwrapparams":{"dc":{"Parameters":{}},"annotation":"` + annotation + `"}}`},
		"dc null":                        {in: edit(`{"Parameters":{"attestation-agent":["eA=="]}}`, "null")},
		"the operation is not looked at": {in: edit("keyunwrap\"", "anything\"")},
		"no op":                          {in: edit(`"op":"keyunwrap",`, ""), is: ErrRequest, cause: `"op" is missing`},
		"op null":                        {in: edit(`"keyunwrap"`, "null"), is: ErrRequest, cause: `"op"`},
		"no keywrapparams":               {in: edit(`"keywrapparams":{"ec":null,"optsdata":null},`, ""), is: ErrRequest, cause: `"keywrapparams"`},
		"keyunwrapparams null":           {in: `{"op":"x","keywrapparams":{},"keyunwrapparams":null}`, is: ErrRequest, cause: `"keyunwrapparams"`},
		"dc a list":                      {in: edit(`{"Parameters":{"attestation-agent":["eA=="]}}`, "[]"), is: ErrRequest, cause: `"dc"`},
		"no annotation":                  {in: `{"op":"x","keywrapparams":{},"keyunwrapparams":{}}`, is: ErrRequest, cause: `"annotation" is missing`},
		"annotation null":                {in: `{"op":"x","keywrapparams":{},"keyunwrapparams":{"annotation":null}}`, is: ErrRequest, cause: `"annotation"`},
		"annotation not base64":          {in: request("%%%"), is: ErrRequest, cause: `"annotation"`},
		"annotation with a line end":     {in: request(annotation[:8] + `\n` + annotation[8:]), is: ErrRequest, cause: "line end"},
		"not JSON":                       {in: "keyunwrap", is: ErrRequest, cause: "not a JSON object"},
		"nothing":                        {in: "", is: ErrRequest, cause: "not a JSON object"},
		"a member twice":                 {in: edit(`"op":"keyunwrap",`, `"op":"a","op":"b",`), is: ErrRequest, cause: "appears twice"},
		"data after it":                  {in: whole + "x", is: ErrRequest, cause: "data after"},
		"a packet that is none":          {in: request(base64.StdEncoding.EncodeToString([]byte("[]"))), is: ErrPacket, cause: "not a JSON object"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			k := samples()
			out, err := UnwrapRequest(t.Context(), Keys{Resources: k}, []byte(tt.in))
			if tt.is != nil {
				if !errors.Is(err, tt.is) || out != nil || !strings.Contains(podvm.Cause(err), tt.cause) {
					t.Fatalf("%v, cause %q, want %v, %q", err, podvm.Cause(err), tt.is, tt.cause)
				}
				if errors.Is(err, ErrRequest) && len(k.given) > 0 {
					t.Error("a key was fetched for a malformed request")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(string(out), `{"keyunwrapresults":{"optsdata":[123,34,115,`) {
				t.Fatalf("not an array of integers: %.60q", []byte(out))
			}
			var reply struct {
				Results struct {
					Opts []uint16 `json:"optsdata"` // not bytes: Go would read base64
				} `json:"keyunwrapresults"`
			}
			if err := json.Unmarshal(out, &reply); err != nil {
				t.Fatal(err)
			}
			var got []byte
			for _, b := range reply.Results.Opts {
				got = append(got, byte(b))
			}
			if string(got) != options {
				t.Fatalf("got %q", got)
			}
		})
	}
}

func FuzzPacket(f *testing.F) {
	f.Add(v1(f, "A256GCM", make([]byte, 12)).json(f))
	f.Add(v1(f, "A256CTR", bytes.Repeat([]byte{9}, 16)).with("version", "0.1.0").json(f))
	f.Add([]byte(`{"kid":"kbs:///default/test-key/1","wrapped_data":"","iv":"","wrap_type":"A256GCM"}`))
	f.Add([]byte(`{"provider":"aws","kid":"alias/kek","wrapped_data":"AAAA","provider_settings":{},"annotations":{"a":{"b":1}}}`))
	k := samples()
	f.Fuzz(func(t *testing.T, raw []byte) {
		k.given = nil
		if got, err := Unwrap(t.Context(), Keys{Resources: k, KMS: &services{}}, raw); err != nil && (got != nil || podvm.Cause(err) == "") {
			t.Fatalf("%v beside %v", got, err)
		}
	})
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte(request("e30=")))
	f.Add([]byte(`{"op":"x","keywrapparams":{},"keyunwrapparams":{"dc":null,"annotation":""}}`))
	k := samples()
	f.Fuzz(func(t *testing.T, raw []byte) {
		k.given = nil
		if got, err := UnwrapRequest(t.Context(), Keys{Resources: k}, raw); err != nil && (got != nil || podvm.Cause(err) == "") {
			t.Fatalf("%v beside %v", got, err)
		}
	})
}

func BenchmarkUnwrap(b *testing.B) {
	packet, k := v1(b, "A256GCM", make([]byte, 12)).json(b), samples()
	b.ReportAllocs()
	for b.Loop() {
		k.given = k.given[:0]
		s, err := Unwrap(context.Background(), Keys{Resources: k}, packet)
		if err != nil {
			b.Fatal(err)
		}
		s.Wipe()
	}
}
