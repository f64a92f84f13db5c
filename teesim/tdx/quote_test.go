package tdx

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-tdx-guest/abi"
	pb "github.com/google/go-tdx-guest/proto/tdx"
	"github.com/google/go-tdx-guest/testing/testdata"
)

// Sizes are those of Intel's documents.
func TestSizes(t *testing.T) {
	for name, c := range map[string][2]int{
		"header": {binary.Size(Header{}), headerSize}, "body": {binary.Size(Body{}), bodySize15},
		"enclave report": {binary.Size(EnclaveReport{}), enclaveSize}, "TDREPORT": {binary.Size(tdReport{}), ReportSize},
	} {
		if c[0] != c[1] {
			t.Errorf("%s: %d bytes, must be %d", name, c[0], c[1])
		}
	}
}

// TestRealReport reads a TDREPORT of real hardware, whose first 48 bytes are not
// in the file: the hashes over its parts hold, so the parts are where this
// package puts them.
func TestRealReport(t *testing.T) {
	raw := append(make([]byte, 48), testdata.RawReport[:ReportSize-48]...)
	raw[0] = teeTDX
	var r tdReport
	if _, err := binary.Decode(raw, binary.LittleEndian, &r); err != nil {
		t.Fatal(err)
	}
	info := sha512.Sum384(raw[tcbInfoOffset:][:tcbInfoSize])
	if !bytes.Equal(info[16:], r.TEETCBInfoHash[16:]) || sha512.Sum384(raw[tdInfoOffset:]) != r.TEEInfoHash {
		t.Error("the hashes do not hold")
	}
	if r.Valid != [8]byte{0xFF, 0x01} || r.XFAM != [8]byte{0xE7} || r.TEETCBSVN != [16]byte{3, 0, 5} {
		t.Errorf("%x, %x, %x", r.Valid, r.XFAM, r.TEETCBSVN)
	}
	if _, err := open(t, Options{}).QuoteOfReport(raw); !errors.Is(err, ErrReport) || !strings.Contains(err.Error(), "another CPU") {
		t.Errorf("quoted for another CPU: %v", err)
	}
}

// TestQuotes reads quotes with the library of Google and finds the TD in them.
func TestQuotes(t *testing.T) {
	for _, version := range []uint16{4, 5} {
		p := open(t, Options{QuoteVersion: version})
		td := p.NewTD(Launch{Kernel: []byte("k"), InitData: bytes.Repeat([]byte{7}, 32), Debug: true})
		raw, err := p.Quote(td, [64]byte{1, 2, 3})
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := abi.QuoteToProto(raw)
		if err != nil {
			t.Fatal(version, err)
		}
		var mrtd, config, data, attributes, xfam, svn []byte
		var rtmrs [][]byte
		switch q := parsed.(type) {
		case *pb.QuoteV4:
			b := q.GetTdQuoteBody()
			mrtd, config, data, attributes, xfam, svn, rtmrs = b.GetMrTd(), b.GetMrConfigId(), b.GetReportData(), b.GetTdAttributes(), b.GetXfam(), b.GetTeeTcbSvn(), b.GetRtmrs()
		case *pb.QuoteV5:
			b := q.GetTdQuoteBodyDescriptor().GetTdQuoteBodyV5()
			mrtd, config, data, attributes, xfam, svn, rtmrs = b.GetMrTd(), b.GetMrConfigId(), b.GetReportData(), b.GetTdAttributes(), b.GetXfam(), b.GetTeeTcbSvn(), b.GetRtmrs()
			if !bytes.Equal(b.GetTeeTcbSvn2(), svn) {
				t.Errorf("TEE_TCB_SVN_2 %x", b.GetTeeTcbSvn2())
			}
		default:
			t.Fatalf("%T", parsed)
		}
		want := td.MRTD()
		if !bytes.Equal(mrtd, want[:]) || !bytes.Equal(svn, []byte{5, 1, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5}) || !bytes.Equal(config, append(bytes.Repeat([]byte{7}, 32), make([]byte, 16)...)) ||
			!bytes.Equal(data[:3], []byte{1, 2, 3}) || !bytes.Equal(attributes, []byte{1, 0, 0, 0x10, 0, 0, 0, 0}) || !bytes.Equal(xfam, features[:]) {
			t.Errorf("version %d: %v", version, parsed)
		}
		for i, r := range rtmrs {
			if w := td.RTMR(i); !bytes.Equal(r, w[:]) {
				t.Errorf("version %d: RTMR%d is %x", version, i, r)
			}
		}
	}
}

func TestQuoteOfReportRefuses(t *testing.T) {
	p := open(t, Options{})
	td := p.NewTD(Launch{})
	report := td.Report([64]byte{})
	good := report[:]
	if _, err := p.QuoteOfReport(good); err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string][]byte{"empty": nil, "short": good[:ReportSize-1], "long": append(slices.Clone(good), 0)} {
		if _, err := p.QuoteOfReport(raw); !errors.Is(err, ErrReport) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for at := range good {
		if at >= tcbInfoOffset+tcbInfoSize && at < tdInfoOffset {
			continue // nothing vouches for what is between the two
		}
		changed := slices.Clone(good)
		changed[at] ^= 1
		if _, err := p.QuoteOfReport(changed); !errors.Is(err, ErrReport) {
			t.Errorf("byte %d: %v", at, err)
		}
	}
	if _, err := open(t, Options{}).QuoteOfReport(good); !errors.Is(err, ErrReport) {
		t.Errorf("report of another platform: %v", err)
	}
}

func FuzzQuoteOfReport(f *testing.F) {
	p := open(f, Options{})
	report := p.NewTD(Launch{}).Report([64]byte{})
	f.Add(report[:])
	f.Add(testdata.RawReport)
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, err := p.QuoteOfReport(raw)
		if err != nil && !errors.Is(err, ErrReport) || err == nil && !bytes.Equal(raw[:tcbInfoOffset], report[:tcbInfoOffset]) {
			t.Errorf("%v", err)
		}
	})
}

func TestReportsOfTheDriver(t *testing.T) {
	td := open(t, Options{}).NewTD(Launch{})
	r := td.Reports()
	if r.Name() != "tdx_guest" {
		t.Error(r.Name())
	}
	for _, n := range []int{0, 48, 63, 65} {
		if _, _, err := r.Report(t.Context(), make([]byte, n), 0); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	out, aux, err := r.Report(t.Context(), make([]byte, 64), 0)
	if err != nil || len(aux) != 0 {
		t.Fatal(err)
	}
	if _, err := abi.QuoteToProto(out); err != nil {
		t.Error(err)
	}
}

func BenchmarkQuote(b *testing.B) {
	p := open(b, Options{})
	td := p.NewTD(Launch{})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Quote(td, [64]byte{}); err != nil {
			b.Fatal(err)
		}
	}
}
