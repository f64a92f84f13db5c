package azvtpm

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"

	wire "github.com/sealpod/sealpod/attester/azvtpm"
	"github.com/sealpod/sealpod/relyingparty/verifier"
	"github.com/sealpod/sealpod/relyingparty/verifier/ccel"
	"github.com/sealpod/sealpod/relyingparty/verifier/internal/tpmquote"
	"github.com/sealpod/sealpod/relyingparty/verifier/snp"
	"github.com/sealpod/sealpod/relyingparty/verifier/tdx"
)

// Verifier verifies the evidence of the TEE "az-snp-vtpm" or "az-tdx-vtpm".
type Verifier struct {
	kind wire.Kind
	// hardware verifies the hardware's part and returns its report data, 64
	// bytes, and its claims.
	hardware func(context.Context, *evidence) (reportData []byte, claims map[string]any, err error)
}

var _ verifier.Verifier = (*Verifier)(nil)

// NewSNP returns a verifier for "az-snp-vtpm" with that verifier's roots and
// revocation lists. Keys are not looked up: such evidence has the VCEK.
func NewSNP(v *snp.Verifier) *Verifier {
	return &Verifier{wire.SNP, func(ctx context.Context, e *evidence) ([]byte, map[string]any, error) {
		r, err := v.VerifyReport(ctx, e.hcl.Report, []snp.Certificate{{Type: "VCEK", DER: e.hardware}})
		if err != nil {
			return nil, nil, err
		}
		return r.ReportData, snpClaims(r), nil
	}}
}

// NewTDX returns a verifier for "az-tdx-vtpm" with that verifier's roots and
// collateral.
func NewTDX(v *tdx.Verifier) *Verifier {
	return &Verifier{wire.TDX, func(ctx context.Context, e *evidence) ([]byte, map[string]any, error) {
		q, claims, err := v.VerifyQuote(ctx, e.hardware)
		if err != nil {
			return nil, nil, err
		}
		return q.ReportData(), claims, nil
	}}
}

// TEE implements verifier.Verifier.
func (v *Verifier) TEE() string { return v.kind.TEE() }

// Verify implements verifier.Verifier. The hardware's part comes last because
// it may ask sources. Their errors are those of packages snp and tdx.
func (v *Verifier) Verify(ctx context.Context, raw json.RawMessage, want verifier.Expected) ([]verifier.Claims, error) {
	bad := func(what string, err error) ([]verifier.Claims, error) {
		return nil, fmt.Errorf("%w: %s: %w", verifier.ErrEvidence, what, err)
	}
	e, err := parseEvidence(raw, v.kind)
	if err != nil {
		return bad("reading "+v.TEE()+" evidence", err)
	}
	key, err := attestationKey(e.hcl.Claims)
	if err != nil {
		return bad("claims of the HCL report", err)
	}
	q, err := tpmquote.Verify(e.quote, key)
	if err != nil {
		return nil, err
	}
	if err := q.CheckNonce(want.ReportData); err != nil {
		return nil, err
	}
	if e.version >= userDataVersion {
		if err := e.checkUserData(want.ReportData); err != nil {
			return bad("HCL report", err)
		}
	}
	if err := q.CheckInitData(want.InitData); err != nil {
		return nil, err
	}
	reportData, claims, err := v.hardware(ctx, e)
	if err != nil {
		return nil, err
	}
	if err := e.checkClaims(reportData); err != nil {
		return bad("HCL report", err)
	}
	claims["tpm"] = q.Claims()
	maps.Copy(claims, q.Bound())
	if len(e.eventLog) > 0 {
		events, err := eventLog(e.eventLog, q)
		if err != nil {
			return bad("cc_eventlog", err)
		}
		claims["uefi_event_logs"] = events
	}
	return []verifier.Claims{{Class: verifier.CPU, Values: claims}}, nil
}

// snpClaims are the claims of a report as trustee has them for this TEE: text
// where those of "snp" are numbers and bools, and the measurement in base64.
func snpClaims(r snp.Report) map[string]any {
	claims := r.Claims()
	for name, value := range claims {
		claims[name] = fmt.Sprint(value)
	}
	claims["measurement"] = base64.StdEncoding.EncodeToString(r.Measurement)
	return claims
}

// eventLog replays a log over the PCRs that it names and returns its claims.
func eventLog(raw []byte, q *tpmquote.Quote) ([]any, error) {
	log, err := ccel.Parse(raw)
	if err != nil {
		return nil, err
	}
	registers := ccel.Registers{}
	for _, e := range log.Events {
		if e.Register >= tpmquote.Registers {
			return nil, fmt.Errorf("%w: event of PCR %d, a TPM has %d", ccel.ErrLog, e.Register, tpmquote.Registers)
		}
		registers[e.Register] = q.PCRs[e.Register][:]
	}
	if err := log.Match(ccel.SHA256, registers); err != nil {
		return nil, err
	}
	return log.Claims(ccel.SHA256, registers), nil
}
