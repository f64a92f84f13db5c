package azvtpm

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"os"
	"testing"

	"github.com/sealpod/sealpod/attester/eventlog"
)

// replay returns what PCR 23 holds after the events of a log. An entry is
// register, type, count, algorithm, digest of 32 bytes, length, event.
func replay(t *testing.T, log []byte) (pcr []byte, events int) {
	t.Helper()
	pcr = make([]byte, 32)
	for le := binary.LittleEndian; len(log) > 0; events++ {
		if le.Uint32(log) != 23 || le.Uint16(log[12:]) != 0x0b {
			t.Fatalf("entry %x", log[:14])
		}
		sum := sha256.Sum256(append(pcr, log[14:46]...))
		pcr = sum[:]
		log = log[50+le.Uint32(log[46:]):]
	}
	return pcr, events
}

// An agent that is started again goes on with the log of the one before, and
// the log explains the PCR in the quote.
func TestEventLogOverPCR23AcrossARestart(t *testing.T) {
	for _, kind := range []Kind{SNP, TDX} {
		t.Run(kind.TEE(), func(t *testing.T) {
			m := newMachine(t, kind)
			platform, ok := eventlog.PlatformOf(kind.TEE())
			if !ok {
				t.Fatal("no platform")
			}
			for range 2 {
				l, err := eventlog.Open(t.Context(), eventlog.Options{
					Host: m.host, Platform: platform, Registers: m.attester().Registers(), DefaultPCR: 23,
				})
				if err != nil {
					t.Fatal(err)
				}
				if err := l.Extend(t.Context(), "example.org", "PullImage", `{"image": "a"}`, nil); err != nil {
					t.Fatal(err)
				}
				if index := uint64(264); l.Extend(t.Context(), "d", "o", "c", &index) == nil {
					t.Error("register 264 is taken for 8")
				}
				if index := uint64(17); l.Extend(t.Context(), "d", "o", "c", &index) == nil {
					t.Error("PCR 17 is extended")
				}
			}
			out, err := m.attester().Evidence(t.Context(), []byte("data"))
			if err != nil {
				t.Fatal(err)
			}
			log, err := os.ReadFile(m.host.Path(eventlog.Path))
			if err != nil {
				t.Fatal(err)
			}
			want, events := replay(t, log)
			if pcrs := check(t, m, m.key(t), out, []byte("data")); !bytes.Equal(pcrs[23], want) || events != 2 {
				t.Errorf("PCR 23 is %x, the log's %d events give %x", pcrs[23], events, want)
			}
		})
	}
}
