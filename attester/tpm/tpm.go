// Package tpm makes evidence of a machine with a TPM 2.0 and no TEE: a quote
// over its PCRs, by an attestation key somebody put there.
//
// Such evidence says what was booted, if the verifier knows the key to be a
// TPM's. It says nothing of memory: whoever runs the machine sees all of it.
//
// Data path: attester.Detect chooses it last of all, when there is a usable
// key; the attestation agent hands its evidence to callers and to the KBS. The
// registers it offers, the PCRs, are what package eventlog extends.
//
// Trust: the TPM is the host's. Its answers are bounded and parsed strictly,
// and passed on.
//
// It makes no key and verifies no signature.
//
// Source: guest-components attestation-agent/attester/src/tpm at 8246e5e0.
package tpm

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/sealpod/sealpod/attester/eventlog"
	"github.com/sealpod/sealpod/attester/internal/vtpm"
	"github.com/sealpod/sealpod/podvm"
)

// TEE is the wire name.
const TEE = "tpm"

// ReportDataSize is the length in bytes that report data is cut or padded with
// zeros to.
const ReportDataSize = 32

// The attestation key is at the persistent handle that the variable names, in
// hexadecimal with or without 0x, or at this one.
const (
	handleEnv     = "AA_TPM_AK_HANDLE"
	defaultHandle = 0x81010002
)

// ErrHandle says that AA_TPM_AK_HANDLE is not the handle of a persistent key.
var ErrHandle = errors.New("AA_TPM_AK_HANDLE is not the handle of a persistent key")

// What BindInitData tells apart.
var (
	// ErrNoTPM says that the machine has no TPM.
	ErrNoTPM = vtpm.ErrNoTPM
	// ErrInitData says that PCR 8 holds something else, or cannot hold a digest
	// of that length.
	ErrInitData = vtpm.ErrInitData
)

// Evidence is the wire form of evidence.
type Evidence struct {
	TPMQuote Quote `json:"tpm_quote"`
	// AKPublic is the attestation key, an RSA key as DER SubjectPublicKeyInfo;
	// padded standard base64.
	AKPublic []byte `json:"ak_public"`
}

// Quote is a quote over all PCRs.
type Quote struct {
	// Signature is a TPMT_SIGNATURE, RSASSA with SHA-256, over Message; padded
	// standard base64.
	Signature []byte `json:"signature"`
	// Message is a TPMS_ATTEST whose extraData is the report data, 32 bytes;
	// padded standard base64.
	Message []byte `json:"message"`
	// PCRs are the 24 values of the SHA-256 bank, in lower-case hexadecimal.
	PCRs []string `json:"pcrs"`
}

// Attester makes TPM evidence. It is safe for concurrent use. Make it with New.
type Attester struct {
	host podvm.Host
	tpm  *vtpm.TPM
}

// New returns an attester of the machine below host.
func New(host podvm.Host) *Attester { return &Attester{host: host, tpm: vtpm.New(host)} }

// Detect tells whether the machine below host has a TPM with an attestation key
// that can be used. Many machines have a TPM, and few a key; one that is not
// there is no error unless AA_TPM_AK_HANDLE names it.
//
// Errors: ErrHandle and those of package vtpm.
func Detect(ctx context.Context, host podvm.Host) (bool, error) {
	a := New(host)
	handle, err := a.handle()
	if err == nil {
		err = a.tpm.Do(ctx, func(c *vtpm.Conn) error { _, err := c.AttestationKey(handle); return err })
	}
	if _, named := host.Env(handleEnv); errors.Is(err, vtpm.ErrNoTPM) || errors.Is(err, vtpm.ErrKey) && !named {
		return false, nil
	}
	return err == nil, err
}

// handle returns where the attestation key is.
func (a *Attester) handle() (uint32, error) {
	text, ok := a.host.Env(handleEnv)
	if !ok {
		return defaultHandle, nil
	}
	n, err := strconv.ParseUint(strings.TrimPrefix(text, "0x"), 16, 32)
	if err != nil || n>>24 != 0x81 { // TPM 2.0 library part 2, TPM_HT_PERSISTENT
		return 0, fmt.Errorf("%w: %q", ErrHandle, podvm.Printable(text, 32))
	}
	return uint32(n), nil
}

// TEE returns the wire name.
func (a *Attester) TEE() string { return TEE }

// Evidence returns a quote over reportData, cut or padded with zeros to 32
// bytes. No event is recorded in between. ctx ends the wait for other callers
// and the time between the TPM's commands.
//
// Errors: ErrHandle and those of package vtpm.
func (a *Attester) Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error) {
	data := make([]byte, ReportDataSize)
	copy(data, reportData)
	e, err := a.evidence(ctx, data)
	if err != nil {
		return nil, vtpm.Explain(err, "the TPM gave no evidence")
	}
	out, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encoding evidence: %w", err)
	}
	return out, nil
}

func (a *Attester) evidence(ctx context.Context, data []byte) (e Evidence, err error) {
	handle, err := a.handle()
	if err != nil {
		return e, err
	}
	var q vtpm.Quote
	err = a.tpm.Do(ctx, func(c *vtpm.Conn) (err error) {
		q, err = c.Quote(handle, data)
		return err
	})
	if err != nil {
		return e, err
	}
	if e.AKPublic, err = x509.MarshalPKIXPublicKey(q.Key); err != nil {
		return e, fmt.Errorf("encoding the attestation key: %w", err)
	}
	e.TPMQuote = Quote{Signature: q.FullSignature, Message: q.Message}
	for _, pcr := range q.PCRs {
		e.TPMQuote.PCRs = append(e.TPMQuote.PCRs, hex.EncodeToString(pcr))
	}
	return e, nil
}

// BindInitData ties digest, which must be of 32 bytes, to PCR 8. Doing it again
// changes nothing until the next boot. It takes no attestation key. Errors:
// ErrNoTPM, ErrInitData and those of package vtpm.
func (a *Attester) BindInitData(ctx context.Context, digest []byte) error {
	return a.tpm.BindInitData(ctx, digest)
}

// Registers returns the PCRs. A machine's locality may keep some from being
// extended.
func (a *Attester) Registers() eventlog.Registers { return a.tpm.Registers() }
