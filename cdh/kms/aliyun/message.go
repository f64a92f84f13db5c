package aliyun

import (
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/sealpod/sealpod/podvm"
)

// Field numbers of the messages of package dkms_api. Only what is sent or read
// is here; the rest of an answer is skipped.
// Source: guest-components protos/protos/confidential-data-hub/aliyun.proto at
// 8246e5e.
const (
	encryptKeyID, encryptPlaintext, encryptAlgorithm   = 1, 2, 3
	encryptedCiphertext, encryptedIV                   = 2, 3
	decryptCiphertext, decryptKeyID, decryptAlgorithm  = 1, 2, 3
	decryptIV                                          = 5
	decryptedPlaintext                                 = 2
	secretName, secretStage, secretVersion, secretFull = 1, 2, 3, 4
	secretData                                         = 3
	errorCode, errorMessage                            = 2, 3
)

// algorithm is the only one upstream uses: AES-GCM, no additional data.
const algorithm = "AES_GCM"

// message is a protobuf message being written. As proto3 wants it, fields with
// empty values are left out.
type message []byte

func (m *message) bytes(field protowire.Number, value []byte) {
	if len(value) == 0 {
		return
	}
	*m = protowire.AppendBytes(protowire.AppendTag(*m, field, protowire.BytesType), value)
}

func (m *message) text(field protowire.Number, value string) { m.bytes(field, []byte(value)) }

func (m *message) set(field protowire.Number) {
	*m = protowire.AppendVarint(protowire.AppendTag(*m, field, protowire.VarintType), 1)
}

func decryptRequest(keyID string, ciphertext, iv []byte) message {
	var m message
	m.bytes(decryptCiphertext, ciphertext)
	m.text(decryptKeyID, keyID)
	m.text(decryptAlgorithm, algorithm)
	m.bytes(decryptIV, iv)
	return m
}

func encryptRequest(keyID string, plaintext []byte) message {
	var m message
	m.text(encryptKeyID, keyID)
	m.bytes(encryptPlaintext, plaintext)
	m.text(encryptAlgorithm, algorithm)
	return m
}

func secretRequest(name, stage, version string) message {
	var m message
	m.text(secretName, name)
	m.text(secretStage, stage)
	m.text(secretVersion, version)
	m.set(secretFull) // fetch the extended configuration too, as upstream does
	return m
}

// fields reads the fields numbered want, which hold text or bytes. What comes
// back points into raw, is nil for a field that is not there, and in the order
// of want. Of a field that comes twice the last one counts, as in every
// protobuf reader; other fields are skipped.
func fields(raw []byte, want ...protowire.Number) ([][]byte, error) {
	out := make([][]byte, len(want))
	for len(raw) > 0 {
		field, kind, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return nil, fmt.Errorf("reading a field: %w", protowire.ParseError(n))
		}
		raw = raw[n:]
		i := slices.Index(want, field)
		if i < 0 {
			if n = protowire.ConsumeFieldValue(field, kind, raw); n < 0 {
				return nil, fmt.Errorf("skipping field %d: %w", field, protowire.ParseError(n))
			}
			raw = raw[n:]
			continue
		}
		if kind != protowire.BytesType {
			return nil, fmt.Errorf("field %d is of wire type %d", field, kind)
		}
		value, n := protowire.ConsumeBytes(raw)
		if n < 0 {
			return nil, fmt.Errorf("reading field %d: %w", field, protowire.ParseError(n))
		}
		out[i], raw = value, raw[n:]
	}
	return out, nil
}

var errNothing = errors.New("the answer holds no secret")

// plaintext returns a copy of the plaintext in a DecryptResponse.
func plaintext(raw []byte) (podvm.Secret, error) { return secretField(raw, decryptedPlaintext) }

// secretText returns a copy of the text in a GetSecretValueResponse.
func secretText(raw []byte) (podvm.Secret, error) {
	s, err := secretField(raw, secretData)
	if err == nil && !utf8.Valid(s) {
		s.Wipe()
		return nil, errors.New("the secret is not UTF-8")
	}
	return s, err
}

// secretField copies one field, since the caller wipes raw.
func secretField(raw []byte, field protowire.Number) (podvm.Secret, error) {
	f, err := fields(raw, field)
	if err != nil {
		return nil, err
	}
	if len(f[0]) == 0 {
		return nil, errNothing
	}
	return podvm.Secret(slices.Clone(f[0])), nil
}

// serviceError returns the code and the message of an Error, "" if there is
// none. They are text of the network.
func serviceError(raw []byte) (code, text string) {
	f, err := fields(raw, errorCode, errorMessage)
	if err != nil {
		return "", ""
	}
	return string(f[0]), string(f[1])
}
