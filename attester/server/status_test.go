package server

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	aa "github.com/sealpod/sealpod/api/attestationagent"
	"github.com/sealpod/sealpod/attester"
	"github.com/sealpod/sealpod/attester/sample"
	"github.com/sealpod/sealpod/kbs"
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

// What the last attestation took, and how old its token is.
func TestStatusOfTokenAndAttestation(t *testing.T) {
	k := newFakeKBS(t)
	agent := New(Deps{
		Config: withKBS(k.URL), TEEs: &attester.Set{Primary: sample.New()}, Log: slog.New(slog.DiscardHandler),
		InitData: InitData{Digest: []byte{0xab, 0xcd}},
	})
	defer agent.Close()
	if s := agent.Status(); s.Token != nil || s.Attestation != nil || s.KBS != k.URL || s.InitData != "abcd" {
		t.Errorf("before: %+v", s)
	}
	ask := func() error {
		_, err := service{agent, ttrpcTexts}.GetToken(t.Context(), &aa.GetTokenRequest{TokenType: "kbs"})
		return err
	}
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	s := agent.Status()
	if s.Token == nil || s.Token.Since.IsZero() || !s.Token.Renewed.After(s.Token.Since) || s.Token.Expires.Before(s.Token.Renewed.Add(-time.Second)) {
		t.Errorf("%+v", s.Token)
	}
	if a := s.Attestation; a == nil || a.Result != "ok" || a.Cause != "" || a.Elapsed <= 0 || len(a.Seconds) != 3 || a.Seconds[kbs.StepEvidence] <= 0 {
		t.Errorf("%+v", a)
	}
	if text := agent.Metrics().Text(); strings.Contains(text, `attestation_step_seconds_total{step="evidence"} 0`+"\n") || !strings.Contains(text, `{step="challenge"}`) {
		t.Error(text)
	}
	agent.measured()
	k.mu.Lock()
	k.refuse = true
	k.mu.Unlock()
	if err := ask(); err == nil {
		t.Fatal("a token of a KBS that refuses")
	}
	s = agent.Status()
	if a := s.Attestation; s.Token != nil || a.Result != "failed" || !strings.Contains(a.Cause, "refused the evidence") {
		t.Errorf("%+v, %+v", s.Token, a)
	}
}
