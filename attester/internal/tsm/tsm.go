// Package tsm gets attestation reports from the kernel's configfs-tsm
// interface, /sys/kernel/config/tsm/report.
//
// Data path: the attesters of TDX and SNP write report data into an entry of
// their own and read the signed report from it.
//
// Trust: the report passes through the host before the kernel has it; the
// verifier checks it. Here only its size is bounded. Which provider answers is
// checked before report data is written.
//
// It does not lock: the caller decides how many reports are made at a time.
package tsm

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/report"
)

// What Get tells apart.
var (
	// ErrUnavailable says that no entry can be made: the kernel has no
	// configfs-tsm, or no TEE driver registered with it.
	ErrUnavailable = errors.New("no configfs-tsm report entry can be made")
	// ErrProvider says that another TEE's driver makes the reports.
	ErrProvider = errors.New("configfs-tsm reports come from another provider")
	// ErrEmpty says that the kernel returned a report of no bytes.
	ErrEmpty = errors.New("the report is empty")
)

// ReportDataSize is the length in bytes of the report data of TDX and SNP.
const ReportDataSize = 64

// ErrReportData says that report data is longer than ReportDataSize.
var ErrReportData = errors.New("report data is longer than 64 bytes")

// PadReportData returns data followed by zeros up to ReportDataSize. Errors:
// ErrReportData.
func PadReportData(data []byte) ([ReportDataSize]byte, error) {
	var out [ReportDataSize]byte
	if len(data) > ReportDataSize {
		return out, fmt.Errorf("padding report data: %w: %d", ErrReportData, len(data))
	}
	copy(out[:], data)
	return out, nil
}

// attempts is how often a report is asked for when somebody else wrote to our
// entry meanwhile.
const attempts = 5

// Reporter gets reports of one provider. It is safe for concurrent use if its
// client is.
type Reporter struct {
	client   configfsi.Client
	provider string // without a line end
}

// New returns a Reporter that accepts reports of provider only, as in
// "tdx_guest".
func New(client configfsi.Client, provider string) *Reporter {
	return &Reporter{client: client, provider: provider}
}

// Report is what the kernel returned.
type Report struct {
	Out []byte // the report itself, never empty
	Aux []byte // what the host adds, as a certificate table; may be empty
}

// Get returns a report over data, and the auxiliary bytes if aux is set. The
// entry made for it is removed whatever happens. A race with another writer is
// tried again. ctx is looked at between tries; the kernel bounds each.
//
// Errors: ErrUnavailable, ErrProvider, ErrEmpty, *report.GenerationErr.
func (r *Reporter) Get(ctx context.Context, data [ReportDataSize]byte, aux bool) (Report, error) {
	var err error
	for range attempts {
		if err := ctx.Err(); err != nil {
			return Report{}, fmt.Errorf("getting a report: %w", err)
		}
		var out Report
		if out, err = r.get(data, aux); err == nil {
			return out, nil
		}
		var race *report.GenerationErr
		if !errors.As(err, &race) {
			break
		}
	}
	return Report{}, fmt.Errorf("getting a report of %s: %w", r.provider, err)
}

func (r *Reporter) get(data [ReportDataSize]byte, aux bool) (out Report, err error) {
	path, err := r.client.MkdirTemp(configfsi.TsmPrefix+"/report", "sealpod-")
	if err != nil {
		return Report{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	entry, err := report.UnsafeWrap(r.client, path) // removes the entry if it fails
	if err != nil {
		return Report{}, err
	}
	defer func() { err = errors.Join(err, entry.Destroy()) }()
	who, err := entry.ReadOption("provider")
	if err != nil {
		return Report{}, err
	}
	if got := strings.TrimSuffix(string(who), "\n"); got != r.provider {
		return Report{}, fmt.Errorf("%w: %q, want %q", ErrProvider, got, r.provider)
	}
	entry.InBlob, entry.GetAuxBlob = data[:], aux
	resp, err := entry.Get()
	if err != nil {
		return Report{}, err
	}
	if len(resp.OutBlob) == 0 {
		return Report{}, ErrEmpty
	}
	return Report{Out: resp.OutBlob, Aux: resp.AuxBlob}, nil
}
