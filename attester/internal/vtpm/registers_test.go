package vtpm

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealpod/sealpod/attester/eventlog"
	"github.com/sealpod/sealpod/attester/vtpmtest"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// A caller who gives up in the middle of an event, by closing a connection say,
// leaves no half of one behind, which another's extension of the same PCR would
// make impossible to complete.
func TestAnEventThatHasBegunIsFinished(t *testing.T) {
	ctx, giveUp := context.WithCancel(t.Context())
	defer giveUp()
	host := vtpmtest.Start(t, testenv.Tool(t, "swtpm")).Machine(t, func(cmd []byte) []byte {
		if vtpmtest.Command(cmd) == tpm2.TPMCCPCRRead {
			giveUp()
		}
		return nil
	})
	tpm := New(host)
	platform, _ := eventlog.PlatformOf("tpm")
	l, err := eventlog.Open(t.Context(), eventlog.Options{Host: host, Platform: platform, Registers: tpm.Registers(), DefaultPCR: 23})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Extend(ctx, "d", "o", "c", nil); err != nil || ctx.Err() == nil {
		t.Error(err)
	}
	if log, err := os.ReadFile(host.Path(eventlog.Path)); err != nil || !bytes.Contains(log, []byte("d o c")) {
		t.Errorf("log %q, %v", log, err)
	}
	if _, err := os.Stat(host.Path("/run/attestation-agent/.wal_event_entry")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an event is in progress: %v", err)
	}
}
