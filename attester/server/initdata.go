package server

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"

	"github.com/sealpod/sealpod/attester"
	"github.com/sealpod/sealpod/attester/initdata"
	"github.com/sealpod/sealpod/attester/internal/vtpm"
	"github.com/sealpod/sealpod/attester/snp"
	"github.com/sealpod/sealpod/attester/tdx"
	"github.com/sealpod/sealpod/podvm"
)

// PodInitData is where process-user-data leaves the init data of a pod VM, in
// the encoding of initdata.Decode.
// Source: cloud-api-adaptor src/cloud-api-adaptor/pkg/paths at fbdde756.
const PodInitData = "/run/peerpod/initdata"

// initDataEnv is the environment variable that, when "off", keeps the agent from
// looking at PodInitData. It is for images whose boot loader extends PCR 8; a
// configuration file cannot say it, since it comes the same way as init data.
const initDataEnv = "SEALPOD_INITDATA"

// InitData is what BindInitData bound; the zero value is nothing.
type InitData struct {
	// Document goes to the KBS with every attestation; nil if only a digest, or
	// nothing, was given.
	Document *initdata.Document
	// Recorded is the digest that is the first event of RTMR3, nil if the TEE
	// binds init data by itself.
	Recorded []byte
	// Digest is what the evidence vouches for, nil for nothing.
	Digest []byte
}

// BindInitData ties init data to the evidence at start: the document at
// tomlPath, or else the digest, which is padded standard base64; or, when both
// are "", PodInitData if it is there. A TEE that has nothing to bind to is logged
// and no error, as upstream.
//
// A TDX guest whose host set no MRCONFIGID has nothing to compare with. That is
// an error, as upstream, unless c.InitData.RTMR3: then the digest becomes the
// first event of RTMR3, whether c enables the event log or not, since evidence
// needs the entry to be replayed. It has to happen before anything in the pod
// can record events: a verifier believes the first one.
//
// Nobody may have launched the VM for the init data at PodInitData, which
// upstream's agent would not look at. When there is no place to bind it to, that
// is logged, and it is left out of what the KBS gets, which would compare it. A
// place that holds something else is an error here, too.
func BindInitData(ctx context.Context, c Config, tees *attester.Set, host podvm.Host, digest, tomlPath string, log *slog.Logger) (InitData, error) {
	doc, sum, err := readInitData(digest, tomlPath)
	found := digest == "" && tomlPath == ""
	if found {
		doc, sum, err = podInitData(host)
	}
	if err != nil || sum == nil {
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
	case found && unbindable(err):
		log.Warn("Init data is not bound: evidence does not vouch for the pod's configuration", "tee", tees.TEE(), "err", err)
		return InitData{}, nil
	case err != nil:
		return InitData{}, err
	default:
		out.Digest = sum
		log.Info("Init data is bound", "tee", tees.TEE(), "digest", fmt.Sprintf("%x", sum), "rtmr3", out.Recorded != nil)
	}
	return out, nil
}

// unbindable tells errors that say that there is no place for this init data
// from those that say that something else is there.
func unbindable(err error) bool {
	for _, e := range []error{tdx.ErrNoInitData, errNoRTMR3, snp.ErrNoInitData, vtpm.ErrDigestSize} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// podInitData returns the document at PodInitData and its digest, nil if there is
// none or it is not to be looked at.
func podInitData(host podvm.Host) (*initdata.Document, []byte, error) {
	if host.Getenv(initDataEnv) == "off" {
		return nil, nil, nil
	}
	raw, err := podvm.ReadFileMax(host.Path(PodInitData), initdata.MaxEncodedBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("reading init data: %w", err)
	}
	text, err := initdata.Decode(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("reading init data from %s: %w", PodInitData, err)
	}
	return parseInitData(text, PodInitData)
}

// readInitData returns the document, nil if there is only a digest, and the
// digest, nil if there is neither.
func readInitData(digest, tomlPath string) (*initdata.Document, []byte, error) {
	switch {
	case tomlPath != "":
		raw, err := podvm.ReadFileMax(tomlPath, initdata.MaxBytes)
		if err != nil {
			return nil, nil, fmt.Errorf("reading init data: %w", err)
		}
		return parseInitData(raw, tomlPath)
	case digest != "":
		sum, err := base64.StdEncoding.Strict().DecodeString(digest)
		if err != nil {
			return nil, nil, errors.New("reading the init data digest: not padded standard base64")
		}
		return nil, sum, nil
	}
	return nil, nil, nil
}

func parseInitData(text []byte, path string) (*initdata.Document, []byte, error) {
	doc, err := initdata.Parse(text)
	if err != nil {
		return nil, nil, fmt.Errorf("reading init data from %s: %w", path, err)
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
