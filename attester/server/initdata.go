package server

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"

	"github.com/sealpod/sealpod/attester"
	"github.com/sealpod/sealpod/attester/initdata"
	"github.com/sealpod/sealpod/attester/tdx"
	"github.com/sealpod/sealpod/podvm"
)

// InitData is what BindInitData bound; the zero value is nothing.
type InitData struct {
	// Document goes to the KBS with every attestation; nil if only a digest, or
	// nothing, was given.
	Document *initdata.Document
	// Recorded is the digest that is the first event of RTMR3, nil if the TEE
	// binds init data by itself.
	Recorded []byte
}

// BindInitData ties init data to the evidence at start: the document at
// tomlPath, or else the digest, which is padded standard base64; both may be
// "". A TEE that has nothing to bind to is logged and no error, as upstream.
//
// A TDX guest whose host set no MRCONFIGID has nothing to compare with. That is
// an error, as upstream, unless c.InitData.RTMR3: then the digest becomes the
// first event of RTMR3, whether c enables the event log or not, since evidence
// needs the entry to be replayed. It has to happen before anything in the pod
// can record events: a verifier believes the first one.
func BindInitData(ctx context.Context, c Config, tees *attester.Set, host podvm.Host, digest, tomlPath string, log *slog.Logger) (InitData, error) {
	if digest == "" && tomlPath == "" {
		return InitData{}, nil
	}
	doc, sum, err := readInitData(digest, tomlPath)
	if err != nil {
		return InitData{}, err
	}
	out := InitData{Document: doc}
	err = tees.BindInitData(ctx, sum)
	switch none := errors.Is(err, tdx.ErrNoInitData); {
	case none && c.InitData.RTMR3:
		err, out.Recorded = recordInitData(ctx, c, tees, host, sum, log), sum
	case none:
		err = fmt.Errorf("%w; rtmr3 = true in [initdata] would bind it to RTMR3", err)
	}
	switch {
	case errors.Is(err, attester.ErrUnsupported):
		log.Warn("Init data is not part of the evidence of this TEE", "tee", tees.TEE())
	case err != nil:
		return InitData{}, err
	default:
		log.Info("Init data is bound", "tee", tees.TEE(), "digest", fmt.Sprintf("%x", sum), "rtmr3", out.Recorded != nil)
	}
	return out, nil
}

// readInitData returns the document, nil if there is only a digest, and the
// digest.
func readInitData(digest, tomlPath string) (*initdata.Document, []byte, error) {
	if tomlPath == "" {
		sum, err := base64.StdEncoding.Strict().DecodeString(digest)
		if err != nil {
			return nil, nil, errors.New("reading the init data digest: not padded standard base64")
		}
		return nil, sum, nil
	}
	raw, err := podvm.ReadFileMax(tomlPath, initdata.MaxBytes)
	if err != nil {
		return nil, nil, fmt.Errorf("reading init data: %w", err)
	}
	doc, err := initdata.Parse(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("reading init data from %s: %w", tomlPath, err)
	}
	return doc, doc.Digest(), nil
}

// errNoRTMR3 says that this kernel cannot extend RTMR3.
var errNoRTMR3 = errors.New("init data cannot be bound to RTMR3: this kernel cannot extend it, which takes Linux 6.16 and its TDX guest driver")

func recordInitData(ctx context.Context, c Config, tees *attester.Set, host podvm.Host, digest []byte, log *slog.Logger) error {
	l, err := openEventLog(ctx, c, tees, host, log)
	if err != nil {
		return err
	}
	if l == nil {
		return podvm.Explain(errNoRTMR3, errNoRTMR3.Error())
	}
	return l.BindInitData(ctx, digest)
}
