package eventlog

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-eventlog/register"
	"github.com/google/go-eventlog/tcg"
	"github.com/google/go-tdx-guest/abi"
	"github.com/google/go-tdx-guest/proto/tdx"

	"github.com/sealpod/sealpod/podvm"
)

var ff8 = bytes.Repeat([]byte{0xff}, 8)

// specRecord is a first record that names SHA-384 and SHA-256.
func specRecord() []byte {
	le := binary.LittleEndian
	event := append([]byte(specSignature), 0, 0, 0, 0, 0, 2, 0, 2)
	event = le.AppendUint32(event, 2)
	for _, v := range []uint16{0x0c, 48, 0x0b, 32} {
		event = le.AppendUint16(event, v)
	}
	event = append(event, 0)
	out := append(le.AppendUint32(le.AppendUint32(nil, 0), 3), make([]byte, 20)...)
	return append(le.AppendUint32(out, uint32(len(event))), event...)
}

// record is one of register 1, type 7, with digests of alg.
func record(alg uint16, digests int, size int, data []byte) []byte {
	le := binary.LittleEndian
	out := le.AppendUint32(nil, 1)
	out = le.AppendUint32(out, 7)
	out = le.AppendUint32(out, uint32(digests))
	for range digests {
		out = append(le.AppendUint16(out, alg), bytes.Repeat([]byte{0xaa}, size)...)
	}
	return append(le.AppendUint32(out, uint32(len(data))), data...)
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func TestCutCCEL(t *testing.T) {
	zeros := make([]byte, 64)
	spec := specRecord()
	plain := record(0x0c, 1, 48, []byte("data"))
	hollow := record(0x0c, 1, 48, make([]byte, 40)) // event data that looks like an end
	full := record(0x0b, 1, 32, bytes.Repeat([]byte{0xff}, 24))
	tests := map[string]struct {
		in   []byte
		want []byte // nil: refused
	}{
		"padded with zeros":              {join(spec, plain, zeros), join(spec, plain)},
		"padded with ff":                 {join(spec, plain, ff8, []byte("rest")), join(spec, plain)},
		"not padded":                     {join(spec, plain), join(spec, plain)},
		"short padding":                  {join(spec, plain, zeros[:3]), join(spec, plain)},
		"header only":                    {join(spec, zeros), spec},
		"zeros in event data":            {join(spec, hollow, plain, zeros), join(spec, hollow, plain)},
		"ff in event data":               {join(spec, full, plain, zeros), join(spec, full, plain)},
		"two digests":                    {join(spec, record(0x0c, 2, 48, nil), zeros), join(spec, record(0x0c, 2, 48, nil))},
		"no digest":                      {join(spec, record(0x0c, 0, 0, []byte("x")), zeros), join(spec, record(0x0c, 0, 0, []byte("x")))},
		"the header of a missing log":    {join(header(), plain[:0], zeros), header()},
		"empty":                          {[]byte{}, nil},
		"all zero":                       {zeros, nil},
		"all ff":                         {bytes.Repeat(ff8, 20), nil},
		"no specification header":        {join(bytes.Replace(spec, []byte("Spec"), []byte("spec"), 1), plain), nil},
		"specification header cut short": {spec[:len(spec)-6], nil},
		"algorithms past the header":     {join(spec[:56], []byte{9, 0, 0, 0}, spec[60:]), nil},
		"17 algorithms":                  {join(spec[:56], []byte{17, 0, 0, 0}, spec[60:]), nil},
		"record cut short":               {join(spec, plain[:len(plain)-1]), nil},
		"digest cut short":               {join(spec, plain[:20]), nil},
		"unknown digest":                 {join(spec, record(0x12, 1, 32, nil), zeros), nil},
		"4 G digests":                    {join(spec, plain[:8], []byte{255, 255, 255, 255}), nil},
		"4 GiB event":                    {join(spec, plain[:len(plain)-8], []byte{255, 255, 255, 255}, zeros), nil},
		"junk after a record":            {join(spec, plain, []byte{1, 2, 3}), nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := cutCCEL(tt.in)
			if tt.want == nil {
				if !errors.Is(err, ErrCCEL) || got != nil {
					t.Errorf("got %d bytes, %v", len(got), err)
				}
			} else if err != nil || !bytes.Equal(got, tt.want) {
				t.Errorf("got %d bytes of %d, want %d: %v", len(got), len(tt.in), len(tt.want), err)
			}
		})
	}
}

// testFile returns a file of a module's test data that it does not export.
func testFile(t testing.TB, module, name string) []byte {
	t.Helper()
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The log of a real TDX machine, found in 256 KiB of padding, still explains
// the four RTMRs of a quote of that machine.
func TestCutCCELOfARealMachine(t *testing.T) {
	const module, dir = "github.com/google/go-tdx-guest", "testing/testdata/ccel/"
	padded := testFile(t, module, dir+"ccel_data.dat")
	got, err := cutCCEL(padded)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) < 4096 || len(got) > 64<<10 || len(padded) != 256<<10 {
		t.Errorf("%d of %d bytes", len(got), len(padded))
	}
	quote, err := abi.QuoteToProto(testFile(t, module, dir+"cos-113-tdx-quote.dat"))
	if err != nil {
		t.Fatal(err)
	}
	replay(t, got, quote.(*tdx.QuoteV4).GetTdQuoteBody().GetRtmrs())
}

// replay fails unless the log in go-eventlog's reading leads to the RTMRs.
func replay(t *testing.T, log []byte, rtmrs [][]byte) {
	t.Helper()
	bank := register.RTMRBank{}
	for i, v := range rtmrs {
		bank.RTMRs = append(bank.RTMRs, register.RTMR{Index: i, Digest: v})
	}
	if _, err := tcg.ParseAndReplay(log, bank.MRs(), tcg.ParseOpts{AllowPadding: true}); err != nil {
		t.Error(err)
	}
	bank.RTMRs[2].Digest = make([]byte, 48)
	if _, err := tcg.ParseAndReplay(log, bank.MRs(), tcg.ParseOpts{AllowPadding: true}); err == nil {
		t.Error("a wrong RTMR goes unnoticed: this test proves nothing")
	}
}

// Logs of other machines, of TPMs too, whose records have several digests.
func TestCutRealLogs(t *testing.T) {
	const module = "github.com/google/go-eventlog"
	for name, padded := range map[string]bool{
		"ccel/CCEL_unpadded.data.bin":                        false,
		"ccel/cos-113-intel-tdx.bin":                         true,
		"ccel/cos-113-intel-tdx-dupe-separator-unpadded.bin": false,
		"ccel/event_log.bin":                                 true,
		"tpm/ubuntu-2404-amd-sevsnp.bin":                     false,
		"tpm/cos-101-amd-sev.bin":                            false,
	} {
		t.Run(name, func(t *testing.T) {
			in := testFile(t, module, "testdata/eventlogs/"+name)
			out, err := cutCCEL(in)
			if err != nil || (len(out) < len(in)) != padded || len(out) < 500 {
				t.Errorf("%d of %d bytes, %v", len(out), len(in), err)
			}
		})
	}
}

func FuzzCutCCEL(f *testing.F) {
	f.Add(specRecord())
	f.Add(join(specRecord(), record(0x0c, 1, 48, []byte("data")), ff8))
	f.Add(join(header(), make([]byte, 8)))
	f.Fuzz(func(t *testing.T, in []byte) {
		out, err := cutCCEL(in)
		if err != nil {
			return
		}
		if !bytes.HasPrefix(in, out) {
			t.Fatal("not a prefix")
		}
		rest := in[len(out):]
		if head := rest[:min(8, len(rest))]; !isAll(head, 0) && !isAll(head, 0xff) {
			t.Fatalf("cut before %x", head)
		}
		again, err := cutCCEL(out)
		if err != nil || !bytes.Equal(again, out) {
			t.Fatalf("cutting again gives %d bytes of %d, %v", len(again), len(out), err)
		}
	})
}

func TestCombined(t *testing.T) {
	spec, event := specRecord(), record(0x0c, 1, 48, []byte("boot"))
	ccel := string(join(spec, event, make([]byte, 100)))
	if got := hex.EncodeToString(header()); got != strings.Join([]string{
		"00000000", "03000000", strings.Repeat("00", 20), "25000000",
		strings.Repeat("00", 24), "02000000", "0c003000", "12002000", "00"}, "") || len(header()) != 69 {
		t.Errorf("header %s", got)
	}
	tests := map[string]struct {
		files map[string]string
		env   string
		want  []byte
		err   error
	}{
		"neither":               {},
		"both":                  {files: map[string]string{CCELPath: ccel, Path: "events"}, want: join(spec, event, []byte("events"), ff8)},
		"firmware only":         {files: map[string]string{CCELPath: ccel}, want: join(spec, event, ff8)},
		"events only":           {files: map[string]string{Path: "events"}, want: join(header(), []byte("events"), ff8)},
		"no event yet":          {files: map[string]string{Path: ""}, want: join(header(), ff8)},
		"AAEL_PATH":             {files: map[string]string{Path: "events", "/other": "others"}, env: "/other", want: join(header(), []byte("others"), ff8)},
		"AAEL_PATH names none":  {files: map[string]string{Path: "events"}, env: "/other"},
		"firmware log is junk":  {files: map[string]string{CCELPath: "junk", Path: "events"}, err: ErrCCEL},
		"firmware log is empty": {files: map[string]string{CCELPath: ""}, err: ErrCCEL},
		"firmware log too long": {files: map[string]string{CCELPath: strings.Repeat("x", maxCCEL+1)}, err: podvm.ErrTooLarge},
		"event log too long":    {files: map[string]string{Path: strings.Repeat("x", maxLog+1)}, err: podvm.ErrTooLarge},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := Combined(machine(t, tt.env, tt.files))
			if !errors.Is(err, tt.err) || !bytes.Equal(got, tt.want) || (got == nil) != (tt.want == nil) {
				t.Errorf("got %x, %v", got, err)
			}
		})
	}
}

// machine is a file tree in place of a machine's.
func machine(t testing.TB, aael string, tree map[string]string) podvm.Host {
	t.Helper()
	host := podvm.Host{Root: t.TempDir(), LookupEnv: func(k string) (string, bool) { return aael, k == "AAEL_PATH" && aael != "" }}
	for name, content := range tree {
		path := host.Path(name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return host
}

func BenchmarkCutCCEL(b *testing.B) {
	in := join(specRecord(), bytes.Repeat(record(0x0c, 1, 48, make([]byte, 100)), 200), make([]byte, 64<<10))
	b.ReportAllocs()
	b.SetBytes(int64(len(in)))
	for b.Loop() {
		if _, err := cutCCEL(in); err != nil {
			b.Fatal(err)
		}
	}
}
