package attester

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/sealpod/sealpod/attester/azvtpm"
	"github.com/sealpod/sealpod/attester/sample"
	"github.com/sealpod/sealpod/attester/snp"
	"github.com/sealpod/sealpod/attester/tdx"
	"github.com/sealpod/sealpod/attester/tpm"
	"github.com/sealpod/sealpod/podvm"
)

// What Detect tells apart.
var (
	// ErrNoAttester says that a TEE was found that this program cannot make
	// evidence of.
	ErrNoAttester = errors.New("no attester for this TEE")
	// ErrNoTEE says that no TEE was found and sample is not allowed.
	ErrNoTEE = errors.New("no TEE found")
	// ErrAllowList says that the allow-list names something unknown.
	ErrAllowList = errors.New("invalid list of attesters")
)

// Options says where to look and what may be used.
type Options struct {
	Host podvm.Host
	// Allow lists the TEEs, primary and device, that may be used; empty means
	// all. A TEE that is found but not listed is passed over with a warning,
	// so an image can be made to attest as one TEE only.
	Allow []string
	// Log takes the outcome; nil means slog.Default().
	Log *slog.Logger
}

// Detect probes for the TEEs of this machine in upstream's order and returns
// attesters for the first primary one and for every device. It never falls
// back silently: sample is announced at WARN, and so is a probe that was kept
// from looking. A list without sample makes that an error.
//
// Errors: ErrNoAttester, ErrNoTEE, ErrAllowList.
// Source: guest-components attestation-agent/attester/src/lib.rs at 8246e5e0.
func Detect(ctx context.Context, o Options) (*Set, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if err := CheckAllow(o.Allow); err != nil {
		return nil, err
	}
	primary, err := o.primary(ctx)
	if err != nil {
		return nil, err
	}
	devices, err := o.devices()
	if err != nil {
		return nil, err
	}
	return &Set{Primary: primary, Devices: devices}, nil
}

func (o Options) primary(ctx context.Context) (Attester, error) {
	for _, probe := range probes() {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("detecting the TEE: %w", err)
		}
		tee := probe(ctx, o).TEE
		if tee == "" {
			continue
		}
		if !o.allows(tee) {
			o.Log.Warn("A TEE is passed over because the list of attesters leaves it out", "tee", tee)
			continue
		}
		if tee == tpm.TEE {
			o.Log.Warn("The evidence is of a TPM that no TEE vouches for: it does not tell whether memory is protected", "tee", tee)
		}
		if a := makeAttester(tee, o.Host); a != nil {
			return a, nil
		}
		return nil, podvm.Explain(fmt.Errorf("detecting the TEE: %w: %s", ErrNoAttester, tee),
			fmt.Sprintf("this machine is a TEE of type %s, which this build cannot attest", tee))
	}
	if !o.allows(sample.TEE) {
		return nil, podvm.Explain(fmt.Errorf("detecting the TEE: %w, allowed are %s", ErrNoTEE, strings.Join(o.Allow, ", ")),
			"no allowed TEE was found on this machine")
	}
	o.Log.Warn("No TEE is used: evidence of type sample proves nothing", "tee", sample.TEE)
	return sample.New(), nil
}

// makeAttester returns the attester of a hardware TEE, nil if this program has
// none.
func makeAttester(tee string, host podvm.Host) Attester {
	switch tee {
	case tdx.TEE:
		return tdx.New(host)
	case snp.TEE:
		return snp.New(host)
	case azvtpm.TDX.TEE():
		return azvtpm.New(host, azvtpm.TDX)
	case azvtpm.SNP.TEE():
		return azvtpm.New(host, azvtpm.SNP)
	case tpm.TEE:
		return tpm.New(host)
	}
	return nil
}

// nvidiaTEE is the wire name of NVIDIA GPUs, which this build cannot attest:
// see the package comment.
const nvidiaTEE = "nvidia"

// devices returns attesters of the devices. Errors: ErrNoAttester for a GPU
// that the list says must be attested.
func (o Options) devices() ([]Attester, error) {
	if n := o.nvidiaGPUs(); n > 0 {
		if slices.Contains(o.Allow, nvidiaTEE) {
			return nil, podvm.Explain(fmt.Errorf("detecting devices: %w: %s", ErrNoAttester, nvidiaTEE),
				"this machine has an NVIDIA GPU, which this build cannot attest, and the list of attesters names it")
		}
		o.Log.Warn("NVIDIA GPUs are not part of the evidence: this build cannot attest them", "gpus", n)
	}
	var out []Attester
	if _, on := o.Host.Env("ENABLE_SAMPLE_DEVICE"); on && o.allows(sample.DeviceTEE) {
		o.Log.Warn("A sample device is used: its evidence proves nothing", "tee", sample.DeviceTEE)
		out = append(out, sample.NewDevice())
	}
	return out, nil
}

func (o Options) allows(tee string) bool {
	return len(o.Allow) == 0 || slices.Contains(o.Allow, tee)
}

// names is every TEE an allow-list may name.
// Source: kbs-types 0.18, enum Tee.
func names() []string {
	return []string{
		"tdx", "sgx", "az-tdx-vtpm", "az-snp-vtpm", "snp", "csv", "cca", "se", "tpm", sample.TEE,
		nvidiaTEE, "hygondcu", sample.DeviceTEE,
	}
}

// CheckAllow returns ErrAllowList when allow names a TEE nobody knows.
func CheckAllow(allow []string) error {
	for _, tee := range allow {
		if !slices.Contains(names(), tee) {
			return fmt.Errorf("%w: %q: want some of %s", ErrAllowList, podvm.Printable(tee, 64), strings.Join(names(), ", "))
		}
	}
	return nil
}

// Supported returns the wire names of the TEEs that evidence can be made of.
func Supported() []string {
	return []string{
		tdx.TEE, azvtpm.TDX.TEE(), azvtpm.SNP.TEE(), snp.TEE, tpm.TEE, sample.TEE, sample.DeviceTEE,
	}
}
