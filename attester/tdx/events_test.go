package tdx

import (
	"crypto/sha512"
	"encoding/binary"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"sync"
	"testing"

	"github.com/google/go-eventlog/register"
	"github.com/google/go-eventlog/tcg"

	"github.com/sealpod/sealpod/attester/eventlog"
	"github.com/sealpod/sealpod/attester/internal/tsm"
	"github.com/sealpod/sealpod/podvm"
)

// kernel is the registers as a kernel has them: what is written to a file is
// hashed into its value.
type kernel struct {
	eventlog.Registers
	a *Attester
}

func (k kernel) Extend(index uint32, digest []byte) error {
	value, err := k.Read(index)
	if err != nil {
		return err
	}
	if err := k.Registers.Extend(index, digest); err != nil {
		return err
	}
	sum := sha512.Sum384(append(value, digest...))
	return os.WriteFile(k.a.host.Path(rtmrPath(index)), sum[:], 0o600)
}

// Every piece of evidence explains its own quote, however many events are
// recorded meanwhile: here a quote is the four registers at the moment the
// platform makes it.
func TestQuoteAndLogAgree(t *testing.T) {
	files := map[string]string{}
	for i := range uint32(4) {
		files[rtmrPath(i+1)] = string(make([]byte, 48))
	}
	driver := quotes(nil)
	a, _ := guest(t, driver, files)
	driver.Out = func([]byte) ([]byte, error) {
		var all []byte
		var errs error
		for i := range uint32(4) {
			v, err := a.readRTMR(i + 1)
			all, errs = append(all, v...), errors.Join(errs, err)
		}
		return all, errs
	}
	platform, _ := eventlog.PlatformOf(TEE)
	l, err := eventlog.Open(t.Context(), eventlog.Options{
		Host: a.host, Platform: platform, Registers: kernel{a.Registers(), a}, DefaultPCR: 17, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range uint64(60) {
			if err := l.Extend(t.Context(), "d", "o", "c", &i); err != nil {
				t.Error(err)
				return
			}
		}
	})
	events := 0
	for range 30 {
		n := replayed(t, a)
		if n < events {
			t.Fatalf("%d events, before %d", n, events)
		}
		events = n
	}
	wg.Wait()
	if n := replayed(t, a); n != 60 {
		t.Errorf("%d events in the end", n)
	}
}

// replayed makes evidence, fails unless its log leads to the registers in its
// quote, and returns how many events there are.
func replayed(t *testing.T, a *Attester) int {
	t.Helper()
	out, err := a.Evidence(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var e Evidence
	if err := json.Unmarshal(out, &e); err != nil {
		t.Fatal(err)
	}
	bank := register.RTMRBank{}
	for i := range 4 {
		bank.RTMRs = append(bank.RTMRs, register.RTMR{Index: i, Digest: e.Quote[48*i : 48*i+48]})
	}
	// go-eventlog does not take the header of a guest without a firmware log,
	// which has no signature; one from UEFI goes in its place.
	log := append(uefiHeader(), e.CCEventLog[69:]...)
	got, err := tcg.ParseAndReplay(log, bank.MRs(), tcg.ParseOpts{AllowPadding: true})
	if err != nil {
		t.Fatal(err)
	}
	return len(got)
}

// uefiHeader is the first record of a log whose digests are SHA-384.
func uefiHeader() []byte {
	event := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0c, 0, 48, 0, 0)
	head := append([]byte{0, 0, 0, 0, 3, 0, 0, 0}, make([]byte, 20)...)
	return append(append(head, byte(len(event)), 0, 0, 0), event...)
}

// Evidence fits the frame it travels in, whatever the host gives for a quote
// and a firmware log, and however many events there are: an answer that does
// not would break its connection, with all other calls on it.
func TestTheLongestEvidenceFitsItsFrame(t *testing.T) {
	const ccel, events = 2 << 20, 512 << 10
	header := uefiHeader()
	record := append([]byte{1, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0}, 0, 0, 0, 0)
	binary.LittleEndian.PutUint32(record[12:], uint32(ccel-len(header)-len(record)))
	a, _ := guest(t, quotes(make([]byte, tsm.MaxAttribute)), map[string]string{
		eventlog.CCELPath: string(append(append(header, record...), make([]byte, ccel-len(header)-len(record))...)),
		eventlog.Path:     string(make([]byte, events)),
	})
	out, err := a.Evidence(t.Context(), nil)
	if err != nil || len(out) < 4*(ccel+events)/3 || len(out) > 4<<20-1024 {
		t.Errorf("%d bytes, %v", len(out), err)
	}
	for path, size := range map[string]int{eventlog.CCELPath: ccel, eventlog.Path: events} {
		if err := os.Truncate(a.host.Path(path), int64(size+1)); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Evidence(t.Context(), nil); !errors.Is(err, podvm.ErrTooLarge) || podvm.Cause(err) == "" {
			t.Errorf("%s is longer: %v", path, err)
		}
		if err := os.Truncate(a.host.Path(path), int64(size)); err != nil {
			t.Fatal(err)
		}
	}
}
