package server

import (
	"bytes"
	"crypto/sha512"
	"errors"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	aa "github.com/sealpod/sealpod/api/attestationagent"
	"github.com/sealpod/sealpod/attester"
	"github.com/sealpod/sealpod/attester/eventlog"
	"github.com/sealpod/sealpod/attester/sample"
	"github.com/sealpod/sealpod/attester/tdx"
	"github.com/sealpod/sealpod/podvm"
)

// rtmr3 is where kernels from 6.16 on extend the register of PCR 17.
const rtmr3 = tdxMeasurements + "rtmr3:sha384"

// tdxHost is a guest whose kernel has, or has not, the files of registers.
func tdxHost(t *testing.T, registers bool) podvm.Host {
	t.Helper()
	host := podvm.Host{Root: t.TempDir()}
	if registers {
		path := host.Path(rtmr3)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, make([]byte, 48), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return host
}

// Whatever the platform, an agent with the event log enabled starts and
// answers; upstream ends at start on most of them.
func TestEventLogByPlatform(t *testing.T) {
	on, off := true, false
	for name, tt := range map[string]struct {
		enable bool
		host   podvm.Host
		tee    func(podvm.Host) attester.Attester
		want   aa.RuntimeMeasurementResult
	}{
		"sample, off":       {off, tdxHost(t, false), func(podvm.Host) attester.Attester { return sample.New() }, aa.RuntimeMeasurementResult_NOT_ENABLED},
		"sample":            {on, tdxHost(t, false), func(podvm.Host) attester.Attester { return sample.New() }, aa.RuntimeMeasurementResult_NOT_SUPPORTED},
		"tdx, off":          {off, tdxHost(t, true), func(h podvm.Host) attester.Attester { return tdx.New(h) }, aa.RuntimeMeasurementResult_NOT_ENABLED},
		"tdx, older kernel": {on, tdxHost(t, false), func(h podvm.Host) attester.Attester { return tdx.New(h) }, aa.RuntimeMeasurementResult_NOT_SUPPORTED},
		"tdx, kernel 6.16":  {on, tdxHost(t, true), func(h podvm.Host) attester.Attester { return tdx.New(h) }, aa.RuntimeMeasurementResult_OK},
	} {
		t.Run(name, func(t *testing.T) {
			c := defaults(func(c *Config) { c.EventLog.Enable = tt.enable })
			tees := &attester.Set{Primary: tt.tee(tt.host)}
			events, err := OpenEventLog(t.Context(), c, tees, tt.host, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			out, err := start(t, Deps{Config: c, TEEs: tees, EventLog: events}).ExtendRuntimeMeasurement(t.Context(),
				&aa.ExtendRuntimeMeasurementRequest{Domain: "d", Operation: "o", Content: "c"})
			if err != nil || out.GetResult() != tt.want {
				t.Errorf("%v, %v", out.GetResult(), err)
			}
			log, err := os.ReadFile(tt.host.Path(eventlog.Path))
			if tt.want != aa.RuntimeMeasurementResult_OK {
				if !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("a log that is not in use: %x, %v", log, err)
				}
				return
			}
			// The digest in the log is what was written to the register.
			digest, rerr := os.ReadFile(tt.host.Path(rtmr3))
			if err := errors.Join(err, rerr); err != nil || !bytes.Equal(log[14:14+48], digest) {
				t.Fatalf("log %x, register %x, %v", log, digest, err)
			}
			if sum := sha512.Sum384(log[14+48+4:]); !bytes.Equal(sum[:], digest) {
				t.Errorf("digest %x", digest)
			}
		})
	}
}

// The same for every TEE by name, with registers that are some's and with the
// platform's own.
func TestEventLogByName(t *testing.T) {
	const ok, unsupported = aa.RuntimeMeasurementResult_OK, aa.RuntimeMeasurementResult_NOT_SUPPORTED
	for tee, want := range map[string]aa.RuntimeMeasurementResult{
		"az-tdx-vtpm": ok, "az-snp-vtpm": ok, "tpm": ok,
		"snp": unsupported, "sgx": unsupported, "csv": unsupported, "cca": unsupported, "se": unsupported,
		"sample": unsupported, "": unsupported, "unheard-of": unsupported,
	} {
		t.Run(tee, func(t *testing.T) {
			t.Parallel()
			for _, tt := range []struct {
				configured *uint64
				pcr        uint32
				cause      string
			}{
				{nil, 23, ""},
				{new(uint64(17)), 17, "PCR 17 cannot be extended from inside a guest: name another, or set init_pcr = 23"},
				{new(uint64(23)), 23, ""},
				{new(uint64(8)), 8, ""},
			} {
				pcr, cause := tt.pcr, tt.cause
				c := defaults(func(c *Config) { c.EventLog = EventLogConfig{InitPCR: tt.configured, Enable: true} })
				host := podvm.Host{Root: t.TempDir()}
				for _, registers := range []eventlog.Registers{newPCRs(), nil} {
					tees := &attester.Set{Primary: named{tee, registers}}
					events, err := OpenEventLog(t.Context(), c, tees, host, slog.New(slog.DiscardHandler))
					if err != nil {
						t.Fatalf("PCR %d: %v", pcr, err)
					}
					out, err := start(t, Deps{Config: c, TEEs: tees, EventLog: events}).ExtendRuntimeMeasurement(t.Context(),
						&aa.ExtendRuntimeMeasurementRequest{Domain: "d", Operation: "o", Content: "c"})
					switch {
					case registers == nil || want == unsupported:
						if err != nil || out.GetResult() != unsupported {
							t.Errorf("PCR %d: %v, %v", pcr, out.GetResult(), err)
						}
					case cause != "":
						if s := status.Convert(err); s.Code() != codes.Internal || !strings.HasPrefix(s.Message(), ttrpcTexts.extend+": "+cause) {
							t.Errorf("PCR %d: %v", pcr, err)
						}
					case err != nil || out.GetResult() != ok || len(registers.(pcrs).values[pcr]) != 32:
						t.Errorf("PCR %d: %v, %v", pcr, out.GetResult(), err)
					}
				}
			}
		})
	}
}

// A PCR number that is too large is refused as it is, not cut to 8 bits.
func TestRegisterIndexIsCheckedAsItIs(t *testing.T) {
	c := defaults(func(c *Config) { c.EventLog = EventLogConfig{InitPCR: new(uint64(23)), Enable: true} })
	registers := newPCRs()
	tees := &attester.Set{Primary: named{"az-tdx-vtpm", registers}}
	events, err := OpenEventLog(t.Context(), c, tees, podvm.Host{Root: t.TempDir()}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	client := start(t, Deps{Config: c, TEEs: tees, EventLog: events})
	for _, index := range []uint64{24, 256 + 8, 1<<32 + 8, math.MaxUint64} {
		_, err := client.ExtendRuntimeMeasurement(t.Context(),
			&aa.ExtendRuntimeMeasurementRequest{Domain: "d", Operation: "o", Content: "c", RegisterIndex: &index})
		if s := status.Convert(err); s.Code() != codes.Internal || !strings.HasPrefix(s.Message(), ttrpcTexts.extend+": a TPM has PCRs 0 to 23") {
			t.Errorf("%d: %v", index, err)
		}
	}
	if len(registers.values) != 0 {
		t.Errorf("extended %v", registers.values)
	}
}

// Whoever fills the log is told so, what is in it stays, and the agent goes on.
func TestFullEventLogOverTheSocket(t *testing.T) {
	g := newTDXGuest(t, nil, true)
	c := defaults(func(c *Config) { c.EventLog.Enable = true })
	events, err := OpenEventLog(t.Context(), c, g.set(), g.host, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	client := start(t, Deps{Config: c, TEEs: g.set(), EventLog: events})
	extend := func(content string) error {
		_, err := client.ExtendRuntimeMeasurement(t.Context(), &aa.ExtendRuntimeMeasurementRequest{Domain: "d", Operation: "o", Content: content})
		return err
	}
	n := 0
	for err = nil; err == nil && n < 1000; n++ {
		err = extend(strings.Repeat("x", 60<<10))
	}
	if s := status.Convert(err); s.Code() != codes.Internal || !strings.HasPrefix(s.Message(), ttrpcTexts.extend+": the event log is full (request ") {
		t.Fatalf("after %d: %v", n, err)
	}
	value := g.rtmr3(t)
	if got := logged(t, g.host); len(got) != n-1 {
		t.Errorf("%d of %d events", len(got), n-1)
	}
	if err := extend(strings.Repeat("x", 60<<10)); err == nil || !bytes.Equal(g.rtmr3(t), value) {
		t.Errorf("an event that does not fit is measured: %v", err)
	}
	if err := extend("small"); err != nil { // there is room for that
		t.Error(err)
	}
	if _, err := OpenEventLog(t.Context(), c, g.set(), g.host, slog.New(slog.DiscardHandler)); err != nil {
		t.Errorf("after a restart: %v", err)
	}
}

func TestInterruptedEventThatDoesNotFitRefusesToStart(t *testing.T) {
	host := tdxHost(t, true)
	path := host.Path(filepath.Dir(eventlog.Path) + "/.wal_event_entry")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := defaults(func(c *Config) { c.EventLog.Enable = true })
	events, err := OpenEventLog(t.Context(), c, &attester.Set{Primary: tdx.New(host)}, host, slog.New(slog.DiscardHandler))
	if !errors.Is(err, eventlog.ErrWAL) || events != nil || podvm.Cause(err) == "" {
		t.Errorf("%v, %v", events, err)
	}
}
