package tdx

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
)

// Lengths in bytes.
const (
	// DigestSize is that of a measurement register, SHA-384.
	DigestSize = 48
	// ReportDataSize is that of REPORTDATA.
	ReportDataSize = 64
	// ReportSize is that of a TDREPORT (ABI, TDREPORT_STRUCT).
	ReportSize = 1024

	headerSize  = 48  // DCAP A.3.1
	bodySize10  = 584 // DCAP A.3.2, TDX 1.0
	bodySize15  = 648 // DCAP A.3.3, TDX 1.5
	enclaveSize = 384 // Intel SDM, SGX REPORT structure without key id and MAC
)

// Header is that of a quote. Source: DCAP A.3.1.
type Header struct {
	Version            uint16
	AttestationKeyType uint16
	TEEType            uint32
	Reserved           [4]byte
	QEVendorID         [16]byte
	UserData           [20]byte
}

// Body is the part of a quote that tells about the TD. Source: DCAP A.3.2; the
// last two fields are only in the body of TDX 1.5.
type Body struct {
	TEETCBSVN      [16]byte
	MRSEAM         [DigestSize]byte
	MRSignerSEAM   [DigestSize]byte
	SEAMAttributes [8]byte
	TDAttributes   [8]byte
	XFAM           [8]byte
	MRTD           [DigestSize]byte
	MRConfigID     [DigestSize]byte
	MROwner        [DigestSize]byte
	MROwnerConfig  [DigestSize]byte
	RTMR           [4][DigestSize]byte
	ReportData     [ReportDataSize]byte
	TEETCBSVN2     [16]byte
	MRServiceTD    [DigestSize]byte
}

// EnclaveReport is the SGX REPORT of the quoting enclave, 384 bytes.
type EnclaveReport struct {
	CPUSVN     [16]byte
	MISCSELECT uint32
	_          [28]byte
	Attributes [16]byte
	MREnclave  [32]byte
	_          [32]byte
	MRSigner   [32]byte
	_          [96]byte
	ISVProdID  uint16
	ISVSVN     uint16
	_          [60]byte
	ReportData [ReportDataSize]byte
}

// tdReport is a TDREPORT_STRUCT. Source: ABI.
type tdReport struct {
	// REPORTMACSTRUCT, 256 bytes.
	ReportType     [4]byte // type, subtype, version, reserved
	_              [12]byte
	CPUSVN         [16]byte
	TEETCBInfoHash [DigestSize]byte // over TEE_TCB_INFO
	TEEInfoHash    [DigestSize]byte // over TDINFO_STRUCT
	ReportData     [ReportDataSize]byte
	_              [32]byte
	MAC            [sha256.Size]byte // over all before
	// TEE_TCB_INFO, 239 bytes.
	Valid          [8]byte
	TEETCBSVN      [16]byte
	MRSEAM         [DigestSize]byte
	MRSignerSEAM   [DigestSize]byte
	SEAMAttributes [8]byte
	TEETCBSVN2     [16]byte
	_              [95]byte
	_              [17]byte // between the two
	// TDINFO_STRUCT, 512 bytes.
	TDAttributes  [8]byte
	XFAM          [8]byte
	MRTD          [DigestSize]byte
	MRConfigID    [DigestSize]byte
	MROwner       [DigestSize]byte
	MROwnerConfig [DigestSize]byte
	RTMR          [4][DigestSize]byte
	ServTDHash    [DigestSize]byte
	_             [64]byte
}

// Offsets in a TDREPORT.
const (
	macOffset     = 224
	tcbInfoOffset = 256
	tcbInfoSize   = 239
	tdInfoOffset  = 512
)

// Values of the fields of structures.
const (
	teeTDX        = 0x81 // both TEE type and report type
	keyECDSAP256  = 2
	certQEReport  = 6
	certPCKChain  = 5
	bodyTypeTDX10 = 2
	bodyTypeTDX15 = 3
)

// intelQE is the vendor id of Intel's quoting enclaves. Source: DCAP A.3.1.
var intelQE = [16]byte{0x93, 0x9A, 0x72, 0x33, 0xF7, 0x9C, 0x4C, 0xA9, 0x94, 0x0A, 0x0D, 0xB3, 0x95, 0x7F, 0x06, 0x07}

// encode returns the bytes of a structure of fixed size, little-endian.
func encode(v any) []byte {
	out, err := binary.Append(nil, binary.LittleEndian, v)
	if err != nil {
		panic(err) // a type without a fixed size
	}
	return out
}

// body returns what a quote says of the TD in a report.
func (r *tdReport) body() Body {
	return Body{
		TEETCBSVN: r.TEETCBSVN, MRSEAM: r.MRSEAM, MRSignerSEAM: r.MRSignerSEAM, SEAMAttributes: r.SEAMAttributes,
		TDAttributes: r.TDAttributes, XFAM: r.XFAM, MRTD: r.MRTD, MRConfigID: r.MRConfigID, MROwner: r.MROwner, MROwnerConfig: r.MROwnerConfig,
		RTMR: r.RTMR, ReportData: r.ReportData, TEETCBSVN2: r.TEETCBSVN2, MRServiceTD: r.ServTDHash,
	}
}

// seal returns the report with its hashes and the MAC of the CPU with that key.
func (r tdReport) seal(key []byte) [ReportSize]byte {
	raw := encode(r)
	r.TEETCBInfoHash = sha512.Sum384(raw[tcbInfoOffset:][:tcbInfoSize])
	r.TEEInfoHash = sha512.Sum384(raw[tdInfoOffset:])
	copy(r.MAC[:], mac(key, encode(r)))
	return [ReportSize]byte(encode(r))
}

func mac(key, report []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(report[:macOffset])
	return h.Sum(nil)
}

// ErrReport says that bytes are not a TDREPORT of this platform.
var ErrReport = errors.New("not a TDREPORT of this platform")

// openReport reads a TDREPORT made with that key.
func openReport(key, raw []byte) (*tdReport, error) {
	if len(raw) != ReportSize {
		return nil, fmt.Errorf("%w: %d bytes, must be %d", ErrReport, len(raw), ReportSize)
	}
	var r tdReport
	if _, err := binary.Decode(raw, binary.LittleEndian, &r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrReport, err)
	}
	switch {
	case r.ReportType[0] != teeTDX:
		return nil, fmt.Errorf("%w: report type %#x", ErrReport, r.ReportType[0])
	case !hmac.Equal(mac(key, raw), r.MAC[:]):
		return nil, fmt.Errorf("%w: its MAC is of another CPU", ErrReport)
	case sha512.Sum384(raw[tcbInfoOffset:][:tcbInfoSize]) != r.TEETCBInfoHash, sha512.Sum384(raw[tdInfoOffset:]) != r.TEEInfoHash:
		return nil, fmt.Errorf("%w: its parts are not those the CPU vouched for", ErrReport)
	}
	return &r, nil
}
