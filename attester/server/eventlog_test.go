package server

import (
	"bytes"
	"crypto/sha512"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	aa "github.com/sealpod/sealpod/api/attestationagent"
	"github.com/sealpod/sealpod/attester"
	"github.com/sealpod/sealpod/attester/eventlog"
	"github.com/sealpod/sealpod/attester/sample"
	"github.com/sealpod/sealpod/attester/tdx"
	"github.com/sealpod/sealpod/podvm"
)

// rtmr3 is where kernels from 6.16 on extend the register of PCR 17.
const rtmr3 = "/sys/devices/virtual/misc/tdx_guest/measurements/rtmr3:sha384"

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
