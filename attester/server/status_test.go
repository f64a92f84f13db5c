package server

import (
	"log/slog"
	"strings"
	"testing"

	aa "github.com/sealpod/sealpod/api/attestationagent"
	"github.com/sealpod/sealpod/attester"
	"github.com/sealpod/sealpod/attester/sample"
)

// One attestation serves several requests, and the difference is seen.
func TestRequestsAndAttestationsAreCounted(t *testing.T) {
	k := newFakeKBS(t)
	config := withKBS(k.URL)
	config.EventLog.Enable = true
	agent := New(Deps{Config: config, TEEs: &attester.Set{Primary: sample.New()}, Log: slog.New(slog.DiscardHandler)})
	defer agent.Close()
	s := service{agent, ttrpcTexts}
	for range 3 {
		if _, err := s.GetToken(t.Context(), &aa.GetTokenRequest{TokenType: "kbs"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.GetToken(t.Context(), &aa.GetTokenRequest{TokenType: "a stranger's"}); err == nil {
		t.Fatal("a token of no type")
	}
	if _, err := s.ExtendRuntimeMeasurement(t.Context(), &aa.ExtendRuntimeMeasurementRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.GetEvidence(t.Context(), &aa.GetEvidenceRequest{RuntimeData: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	text := agent.Metrics().Text()
	for _, line := range []string{
		`sealpod_aa_requests_total{method="GetToken",result="ok"} 3`, `sealpod_aa_requests_total{method="GetToken",result="failed"} 1`,
		`sealpod_aa_requests_total{method="GetEvidence",result="ok"} 1`, `sealpod_aa_requests_total{method="ExtendRuntimeMeasurement",result="ok"} 1`,
		`sealpod_aa_attestations_total{result="ok"} 1`, `sealpod_aa_attestations_total{result="failed"} 0`,
	} {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("no %q in\n%s", line, text)
		}
	}
	if strings.Contains(text, "stranger") {
		t.Error("a caller's word is in the metrics")
	}
	if st := agent.Status(); st.TEE != "sample" || st.EventLog || st.Devices == nil || st.Version == "" {
		t.Errorf("%+v", st) // this machine has nothing to record events in
	}
}
