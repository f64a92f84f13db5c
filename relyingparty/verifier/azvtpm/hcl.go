package azvtpm

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
)

// keyID is the id of the attestation key among the keys of the claims.
const keyID = "HCLAkPub"

// attestationKey returns the key in the claims of an HCL report. There must be
// one of that id.
func attestationKey(claims []byte) (*rsa.PublicKey, error) {
	var in struct {
		Keys []struct {
			ID       string `json:"kid"`
			Type     string `json:"kty"`
			Modulus  string `json:"n"`
			Exponent string `json:"e"`
		} `json:"keys"`
	}
	if err := decode(claims, &in); err != nil {
		return nil, err
	}
	var key *rsa.PublicKey
	for _, k := range in.Keys {
		if k.ID != keyID {
			continue
		}
		if key != nil {
			return nil, fmt.Errorf("two keys %s", keyID)
		}
		if k.Type != "RSA" {
			return nil, fmt.Errorf("%s is not an RSA key", keyID)
		}
		n, err := base64.RawURLEncoding.Strict().DecodeString(k.Modulus)
		if err != nil {
			return nil, fmt.Errorf("modulus of %s: %w", keyID, err)
		}
		e, err := base64.RawURLEncoding.Strict().DecodeString(k.Exponent)
		if err != nil || len(e) > 3 {
			return nil, fmt.Errorf("exponent of %s is not a number of up to 3 bytes", keyID)
		}
		key = &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(new(big.Int).SetBytes(e).Int64())}
	}
	if key == nil {
		return nil, fmt.Errorf("no key %s", keyID)
	}
	return key, nil
}

// checkUserData compares what the paravisor repeats of the report data, which
// zeros may follow.
func (e *evidence) checkUserData(reportData []byte) error {
	if !bytes.HasPrefix(e.hcl.UserData, reportData) {
		return errors.New("user-data is not the report data of this handshake: the guest's report was not refreshed for it")
	}
	return nil
}

// checkClaims compares the report data of a verified hardware report, 64 bytes,
// with the claims it must stand for: their SHA-256 and then zeros.
func (e *evidence) checkClaims(reportData []byte) error {
	var want [64]byte
	sum := sha256.Sum256(e.hcl.Claims)
	copy(want[:], sum[:])
	if !bytes.Equal(reportData, want[:]) {
		return errors.New("its claims are not those the hardware report was made for: they were changed, or the report is of another VM")
	}
	return nil
}
