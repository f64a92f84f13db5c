package azvtpm

import (
	"fmt"
	"testing"
	"time"

	"github.com/sealpod/sealpod/attester/vtpmtest"
)

// BenchmarkEvidence makes evidence with new report data each time. tpm-ns/op is
// the part the software TPM takes, which stands for a TPM, not for Azure's.
func BenchmarkEvidence(b *testing.B) {
	m := newMachine(b, SNP)
	a := m.attester()
	var inTPM time.Duration
	m.hooks = append(m.hooks, func(cmd []byte) []byte {
		if vtpmtest.IsAbout(cmd, reportIndex) {
			return nil // the paravisor's
		}
		start := time.Now()
		out, err := m.tpm.Send(cmd)
		inTPM += time.Since(start)
		if err != nil {
			b.Error(err)
		}
		return out
	})
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		n++
		if _, err := a.Evidence(b.Context(), fmt.Appendf(nil, "%048d", n)); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(inTPM.Nanoseconds())/float64(n), "tpm-ns/op")
}
