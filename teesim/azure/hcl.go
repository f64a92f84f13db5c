package azure

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"
	"strings"
)

// Lengths and offsets of an HCL report in bytes. Integers are little-endian.
// Source: az-cvm-vtpm 0.8.1 src/hcl.
const (
	hclHeaderSize   = 32
	hclHardwareSize = 1184 // room for the longest report, SNP's
	hclRequestSize  = 20   // five integers before the variable data
	hclDataOffset   = hclHeaderSize + hclHardwareSize + hclRequestSize

	// userDataSize is how much of the guest's report data a report holds.
	userDataSize = 64
)

// varData is the variable data of a report: what the hardware vouches for.
type varData struct {
	Keys     []jwk          `json:"keys"`
	Config   map[string]any `json:"vm-configuration"`
	UserData string         `json:"user-data"`
}

type jwk struct {
	ID         string   `json:"kid"`
	Operations []string `json:"key_ops"`
	Type       string   `json:"kty"`
	Exponent   string   `json:"e"`
	Modulus    string   `json:"n"`
}

// attestationKeyID is the name of the attestation key in the variable data.
const attestationKeyID = "HCLAkPub"

func rsaJWK(id string, exponent uint32, modulus []byte) jwk {
	encode := base64.RawURLEncoding.EncodeToString
	return jwk{ID: id, Operations: []string{"sign"}, Type: "RSA",
		Exponent: encode(big.NewInt(int64(exponent)).Bytes()), Modulus: encode(modulus)}
}

// hclReport builds a report of at most size bytes and fills it up with zeros.
// userData longer than 64 bytes is cut.
func hclReport(h Hardware, key jwk, vmID string, userData []byte, size int) ([]byte, error) {
	var data [userDataSize]byte
	copy(data[:], userData)
	text, err := json.Marshal(varData{
		Keys: []jwk{key},
		Config: map[string]any{
			"console-enabled": true, "secure-boot": true, "tpm-enabled": true, "tpm-persisted": false, "vmUniqueId": vmID,
		},
		UserData: strings.ToUpper(hex.EncodeToString(data[:])),
	})
	if err != nil {
		return nil, fmt.Errorf("encoding the variable data: %w", err)
	}
	if hclDataOffset+len(text) > size {
		return nil, fmt.Errorf("variable data of %d bytes does not fit into a report of %d", len(text), size)
	}
	var reportData [64]byte
	digest := sha256.Sum256(text)
	copy(reportData[:], digest[:])
	hardware, err := h.Report(reportData)
	if err != nil {
		return nil, fmt.Errorf("getting the hardware's report: %w", err)
	}
	if len(hardware) > hclHardwareSize {
		return nil, fmt.Errorf("the hardware's report has %d bytes, more than %d", len(hardware), hclHardwareSize)
	}
	le := binary.LittleEndian
	dataSize := uint32(hclRequestSize + len(text))
	out := append(make([]byte, 0, size), "HCLA"...)
	for _, v := range []uint32{
		2, // version
		hclHeaderSize + hclHardwareSize + dataSize, // of the report
		2,          // request type
		0, 0, 0, 0, // status, reserved
	} {
		out = le.AppendUint32(out, v)
	}
	out = append(out, hardware...)
	out = out[:hclHeaderSize+hclHardwareSize]
	for _, v := range []uint32{dataSize, 1, h.Kind, 1 /* SHA-256 */, uint32(len(text))} {
		out = le.AppendUint32(out, v)
	}
	return append(out, text...)[:size], nil
}
