package keywrap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/cdh/kms"
	"github.com/sealpod/sealpod/podvm"
)

// services is a KMS that knows aws, whose key alias/kek reverses bytes, and
// writes down what it was asked.
type services struct {
	asked []string
}

func (s *services) Open(_ context.Context, provider string, settings kms.Object) (kms.Provider, error) {
	s.asked = append(s.asked, fmt.Sprintf("open %s %s", provider, settings["region"]))
	if !strings.EqualFold(provider, "aws") {
		return nil, podvm.Explain(kms.ErrUnknownProvider, "unknown KMS provider")
	}
	return s, nil
}

func (s *services) Decrypt(_ context.Context, keyID string, ciphertext []byte, annotations kms.Object) (podvm.Secret, error) {
	s.asked = append(s.asked, fmt.Sprintf("decrypt %s %s", keyID, annotations["encryption_context"]))
	if keyID != "alias/kek" {
		return nil, podvm.Explain(kms.ErrService, "the service refused")
	}
	out := podvm.Secret(bytes.Clone(ciphertext))
	for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
		out[i], out[j] = out[j], out[i]
	}
	return out, nil
}

func (s *services) Secret(context.Context, string, kms.Object) (podvm.Secret, error) {
	return nil, errors.New("not for secrets")
}

func TestUnwrapByAKMS(t *testing.T) {
	whole := members{
		"provider": "aws", "kid": "alias/kek", "wrapped_data": "Y2Jh", // abc, reversed
		"provider_settings": members{"region": "eu-1"}, "annotations": members{"encryption_context": members{"pod": "a"}},
	}
	tests := map[string]struct {
		packet []byte
		is     error
		cause  string
		asked  string // "" = nothing
	}{
		"as it should be": {
			packet: whole.json(t), asked: `open aws "eu-1", decrypt alias/kek {"pod":"a"}`,
		},
		"no settings, no annotations": {
			packet: whole.without("provider_settings").without("annotations").json(t), asked: "open aws , decrypt alias/kek ",
		},
		"a name in capitals":         {packet: whole.with("provider", "AWS").json(t), asked: `open AWS "eu-1", decrypt alias/kek {"pod":"a"}`},
		"any version":                {packet: whole.with("version", "7").json(t), asked: `open aws "eu-1", decrypt alias/kek {"pod":"a"}`},
		"iv and wrap_type of no use": {packet: whole.with("iv", "x").with("wrap_type", "x").json(t), asked: `open aws "eu-1", decrypt alias/kek {"pod":"a"}`},

		"a service nobody knows": {packet: whole.with("provider", "ehsm").json(t), is: kms.ErrUnknownProvider, cause: "unknown KMS provider", asked: `open ehsm "eu-1"`},
		"kbs in capitals":        {packet: whole.with("provider", "KBS").json(t), is: kms.ErrUnknownProvider, cause: "unknown KMS provider", asked: `open KBS "eu-1"`},
		"a key that is refused":  {packet: whole.with("kid", "alias/x").json(t), is: kms.ErrService, cause: "refused", asked: `open aws "eu-1", decrypt alias/x {"pod":"a"}`},

		"settings null":              {packet: whole.with("provider_settings", nil).json(t), is: ErrPacket, cause: `"provider_settings": not an object`},
		"annotations a list":         {packet: whole.with("annotations", []int{}).json(t), is: ErrPacket, cause: `"annotations": not an object`},
		"a setting twice":            {packet: []byte(`{"provider":"aws","kid":"alias/kek","wrapped_data":"","provider_settings":{"region":"a","region":"b"}}`), is: ErrPacket, cause: "appears twice"},
		"no kid":                     {packet: whole.without("kid").json(t), is: ErrPacket, cause: `"kid" is missing`},
		"no wrapped_data":            {packet: whole.without("wrapped_data").json(t), is: ErrPacket, cause: `"wrapped_data" is missing`},
		"a line end in wrapped_data": {packet: whole.with("wrapped_data", "Y2\nJh").json(t), is: ErrPacket, cause: `"wrapped_data"`},
		"version null":               {packet: whole.with("version", nil).json(t), is: ErrPacket, cause: `"version"`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := &services{}
			got, err := Unwrap(t.Context(), Keys{KMS: s}, tt.packet)
			if tt.is == nil {
				if err != nil || string(got) != "abc" {
					t.Fatalf("got %q, %v", []byte(got), err)
				}
			} else if !errors.Is(err, tt.is) || got != nil {
				t.Fatalf("got %v, %v, want %v", got, err, tt.is)
			} else if cause := podvm.Cause(err); !strings.Contains(cause, tt.cause) {
				t.Errorf("cause %q, want %q", cause, tt.cause)
			}
			if asked := strings.Join(s.asked, ", "); asked != tt.asked {
				t.Errorf("asked %q, want %q", asked, tt.asked)
			}
		})
	}
}
