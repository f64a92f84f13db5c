package kbs

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// Version is the only protocol version spoken: the KBS compares it exactly.
// Source: trustee kbs/src/attestation/backend.rs at 78962cd4.
const Version = "0.4.0"

// Request opens a handshake: POST /kbs/v0/auth. All three members are required.
type Request struct {
	Version     string          `json:"version"`
	TEE         string          `json:"tee"`          // wire name, as in "tdx"
	ExtraParams json.RawMessage `json:"extra-params"` // any JSON value
}

// UnmarshalJSON reads a request strictly; members not known are ignored.
func (r *Request) UnmarshalJSON(raw []byte) error {
	o, err := parseObject(raw)
	if err != nil {
		return fmt.Errorf("parsing the request: %w", err)
	}
	if err := o.texts(map[string]*string{"version": &r.Version, "tee": &r.TEE}); err != nil {
		return fmt.Errorf("parsing the request: %w", err)
	}
	if r.ExtraParams, err = o.raw("extra-params"); err != nil {
		return fmt.Errorf("parsing the request: %w", err)
	}
	return nil
}

// Challenge is the answer to a Request.
type Challenge struct {
	// Nonce is padded standard base64 of 32 random bytes; for the TEE "se" it
	// is a JSON document. Clients echo it and hash it as text.
	Nonce string `json:"nonce"`
	// ExtraParams is any JSON value; the KBS sends "" or an object with
	// "selected-hash-algorithm".
	ExtraParams json.RawMessage `json:"extra-params"`
}

// UnmarshalJSON reads a challenge strictly; members not known are ignored.
func (c *Challenge) UnmarshalJSON(raw []byte) error {
	o, err := parseObject(raw)
	if err != nil {
		return fmt.Errorf("parsing the challenge: %w", err)
	}
	if c.Nonce, err = o.text("nonce"); err != nil {
		return fmt.Errorf("parsing the challenge: %w", err)
	}
	c.ExtraParams = bytes.Clone(o["extra-params"])
	return nil
}

// Attestation answers a Challenge: POST /kbs/v0/attest.
type Attestation struct {
	InitData    *InitData   `json:"init-data"` // nil is sent as null
	RuntimeData RuntimeData `json:"runtime-data"`
	Evidence    TEEEvidence `json:"tee-evidence"`
}

// UnmarshalJSON reads an attestation strictly; members not known are ignored.
func (a *Attestation) UnmarshalJSON(raw []byte) error {
	o, err := parseObject(raw)
	if err != nil {
		return fmt.Errorf("parsing the attestation: %w", err)
	}
	a.InitData = nil
	if o.has("init-data") {
		a.InitData = new(InitData)
		if err := a.InitData.UnmarshalJSON(o["init-data"]); err != nil {
			return err
		}
	}
	if err := a.RuntimeData.UnmarshalJSON(o["runtime-data"]); err != nil {
		return err
	}
	return a.Evidence.UnmarshalJSON(o["tee-evidence"])
}

// InitData is the plaintext of the host-supplied configuration measured at
// launch, for the verifier to hash and parse.
type InitData struct {
	Format string `json:"format"` // "toml"
	Body   string `json:"body"`   // the document, byte for byte as measured
}

// UnmarshalJSON reads init data strictly.
func (i *InitData) UnmarshalJSON(raw []byte) error {
	o, err := parseObject(raw)
	if err == nil {
		err = o.texts(map[string]*string{"format": &i.Format, "body": &i.Body})
	}
	if err != nil {
		return fmt.Errorf("parsing init-data: %w", err)
	}
	return nil
}

// RuntimeData is what the report data of the evidence commits to.
type RuntimeData struct {
	Nonce     string    `json:"nonce"` // equal to the challenge's, byte for byte
	TEEPubKey PublicKey `json:"tee-pubkey"`
}

// UnmarshalJSON reads runtime data strictly; the key must have exactly the
// members of its type.
func (r *RuntimeData) UnmarshalJSON(raw []byte) error {
	o, err := parseObject(raw)
	if err == nil {
		r.Nonce, err = o.text("nonce")
	}
	if err == nil {
		err = r.TEEPubKey.UnmarshalJSON(o["tee-pubkey"])
	}
	if err != nil {
		return fmt.Errorf("parsing runtime-data: %w", err)
	}
	return nil
}

// TEEEvidence is the evidence of all TEEs of a guest.
type TEEEvidence struct {
	// Primary is the CPU TEE's evidence: any JSON, shaped by the TEE.
	Primary json.RawMessage `json:"primary_evidence"`
	// Additional is "" or the text of a JSON object {TEE name: evidence}. It is
	// hashed as it stands, never re-encoded.
	Additional string `json:"additional_evidence"`
}

// UnmarshalJSON reads evidence strictly: both members are required.
func (e *TEEEvidence) UnmarshalJSON(raw []byte) error {
	o, err := parseObject(raw)
	if err == nil {
		e.Primary, err = o.raw("primary_evidence")
	}
	if err == nil {
		e.Additional, err = o.text("additional_evidence")
	}
	if err != nil {
		return fmt.Errorf("parsing tee-evidence: %w", err)
	}
	return nil
}

// TokenResponse is the answer to an Attestation.
type TokenResponse struct {
	Token string `json:"token"` // a JWT
}

// UnmarshalJSON reads a token response strictly.
func (t *TokenResponse) UnmarshalJSON(raw []byte) error {
	o, err := parseObject(raw)
	if err == nil {
		t.Token, err = o.text("token")
	}
	if err != nil {
		return fmt.Errorf("parsing the token response: %w", err)
	}
	return nil
}

// ErrorInfo is the body of every answer of a KBS that is not 200.
type ErrorInfo struct {
	// Type is ErrorTypePrefix and the name of the error variant.
	Type   string `json:"type"`
	Detail string `json:"detail"`
}

// ErrorTypePrefix comes before the variant name in ErrorInfo.Type.
// Source: trustee kbs/src/error.rs at 78962cd4.
const ErrorTypePrefix = "https://github.com/confidential-containers/kbs/errors/"

// UnmarshalJSON reads an error body strictly.
func (e *ErrorInfo) UnmarshalJSON(raw []byte) error {
	o, err := parseObject(raw)
	if err == nil {
		err = o.texts(map[string]*string{"type": &e.Type, "detail": &e.Detail})
	}
	if err != nil {
		return fmt.Errorf("parsing the error body: %w", err)
	}
	return nil
}
