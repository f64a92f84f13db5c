package server

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	aa "github.com/sealpod/sealpod/api/attestationagent"
	"github.com/sealpod/sealpod/attester"
	"github.com/sealpod/sealpod/attester/internal/gate"
)

// slow is a TEE that makes evidence for one caller at a time, in the order they
// come, and takes its time.
type slow struct {
	gate gate.Gate
	time time.Duration
}

func (slow) TEE() string { return "slow" }

func (s slow) Evidence(ctx context.Context, _ []byte) (json.RawMessage, error) {
	if err := s.gate.Lock(ctx); err != nil {
		return nil, err
	}
	defer s.gate.Unlock()
	time.Sleep(s.time)
	return json.RawMessage(`{}`), nil
}

// However many ask for evidence, an attestation for a token and an event wait
// for a few of them only; and who waits in vain is told why.
func TestManyAskingForEvidenceHoldUpOnlyEachOther(t *testing.T) { synctest.Test(t, manyAsk) }

func manyAsk(t *testing.T) {
	tee := slow{gate.New(), 2 * time.Second}
	agent := New(Deps{TEEs: &attester.Set{Primary: tee}, Log: quiet})
	defer agent.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second)
	defer cancel()
	var all sync.WaitGroup
	var mu sync.Mutex
	var answered int
	for range 64 { // as many as api-server-rest lets through
		all.Go(func() {
			_, err := service{agent, ttrpcTexts}.GetEvidence(ctx, &aa.GetEvidenceRequest{})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				answered++
			} else if !strings.Contains(err.Error(), "busy with other calls") {
				t.Errorf("got %v", err)
			}
		})
	}
	synctest.Wait()
	start := time.Now()
	if _, err := agent.tees.Evidence(t.Context(), nil); err != nil { // as for a token
		t.Error(err)
	}
	if took := time.Since(start); took > 3*tee.time {
		t.Errorf("an attestation takes %s", took)
	}
	all.Wait()
	if answered < 20 {
		t.Errorf("%d are answered", answered)
	}
}
