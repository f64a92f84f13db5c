package azvtpm

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
)

// ErrHCL says that bytes are no HCL report this program knows.
var ErrHCL = errors.New("invalid HCL report")

// Kind is the kind of hardware report in an HCL report.
// Source: openvmm openhcl/openhcl_attestation_protocol at 1488a37b, IgvmAttestReportType.
type Kind uint32

// The kinds there is evidence of.
const (
	SNP Kind = 2
	TDX Kind = 4
)

// TEE returns the wire name, "" for an unknown kind.
func (k Kind) TEE() string {
	switch k {
	case SNP:
		return "az-snp-vtpm"
	case TDX:
		return "az-tdx-vtpm"
	}
	return ""
}

// Layout of an HCL report; numbers are little-endian u32.
//
//	   0  "HCLA", version, size of all up to the end of the claims,
//	      request type, status, 3 reserved
//	  32  hardware report, 1184 bytes; a TD report is followed by zeros
//	1216  size of this part and the claims, version 1, kind,
//	      hash type (1 is SHA-256), length of the claims
//	1236  claims, JSON; whatever follows has no meaning
//
// Source: openvmm openhcl/openhcl_attestation_protocol at 1488a37b,
// IgvmAttestRequestBase; az-cvm-vtpm 0.8.1 src/hcl.
const (
	hclMagic     = "HCLA"
	sizeOffset   = 8
	reportOffset = 32
	dataOffset   = 1216
	dataSize     = 20
	claimsOffset = dataOffset + dataSize
	hashSHA256   = 1
)

// Lengths in bytes of the hardware reports, and of the report data in the
// claims at most.
const (
	SNPReportSize  = 1184
	TDReportSize   = 1024
	ReportDataSize = 64
)

// HCL is a parsed HCL report. Its slices are parts of the bytes it was parsed
// from, but for UserData.
type HCL struct {
	Kind Kind
	// Report is the hardware report: an SNP attestation report of 1184 bytes
	// or a TDREPORT of 1024 bytes.
	Report []byte
	// Claims is the JSON text whose SHA-256 the hardware report has in the
	// first 32 bytes of its report data. It names the attestation key.
	Claims []byte
	// UserData is the report data the claims repeat, at most 64 bytes with the
	// zeros the paravisor pads it with; nil when the claims have none.
	UserData []byte
}

// ParseHCL parses the content of the NV index of an HCL report, which may be
// longer than the report. It believes no length and checks no signature or
// hash. Errors: ErrHCL.
func ParseHCL(b []byte) (HCL, error) {
	if len(b) < claimsOffset || string(b[:4]) != hclMagic {
		return HCL{}, fmt.Errorf("%w: %d bytes, or another magic number", ErrHCL, len(b))
	}
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }
	h := HCL{Kind: Kind(u32(dataOffset + 8))}
	switch h.Kind {
	case SNP:
		h.Report = b[reportOffset : reportOffset+SNPReportSize]
	case TDX:
		h.Report = b[reportOffset : reportOffset+TDReportSize]
	default:
		return HCL{}, fmt.Errorf("%w: report type %d", ErrHCL, h.Kind)
	}
	if version, hash := u32(dataOffset+4), u32(dataOffset+12); version != 1 || hash != hashSHA256 {
		return HCL{}, fmt.Errorf("%w: version %d, hash type %d", ErrHCL, version, hash)
	}
	claims := uint64(u32(dataOffset + 16))
	if claims > uint64(len(b)-claimsOffset) ||
		uint64(u32(dataOffset)) != dataSize+claims || uint64(u32(sizeOffset)) != claimsOffset+claims {
		return HCL{}, fmt.Errorf("%w: lengths %d, %d and %d in %d bytes", ErrHCL, u32(sizeOffset), u32(dataOffset), claims, len(b))
	}
	h.Claims = b[claimsOffset : claimsOffset+claims]
	var err error
	if h.UserData, err = userData(h.Claims); err != nil {
		return HCL{}, err
	}
	return h, nil
}

// userData returns the report data in the claims, which are hexadecimal digits
// of either case.
func userData(claims []byte) ([]byte, error) {
	var c struct {
		UserData *string `json:"user-data"`
	}
	if err := json.Unmarshal(claims, &c); err != nil {
		return nil, fmt.Errorf("%w: claims of %d bytes are not the expected JSON", ErrHCL, len(claims))
	}
	if c.UserData == nil {
		return nil, nil
	}
	out, err := hex.DecodeString(*c.UserData)
	if err != nil || len(out) > ReportDataSize {
		return nil, fmt.Errorf("%w: user-data is not up to 64 bytes in hexadecimal", ErrHCL)
	}
	return out, nil
}
