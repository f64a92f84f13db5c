package tdx

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	teesim "github.com/sealpod/sealpod/teesim/tdx"
)

var (
	le      = binary.LittleEndian
	simTime = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	digest  = []byte("0123456789abcdef0123456789abcdef0123456789abcdef")
)

// fixed is a source with one answer.
type fixed struct {
	c     *Collateral
	err   error
	asked atomic.Int32
	last  Platform
}

func (f *fixed) Collateral(_ context.Context, p Platform) (*Collateral, error) {
	f.asked.Add(1)
	f.last = p
	return f.c, f.err
}

// simulator is a simulated platform whose failures end the test.
type simulator struct {
	t testing.TB
	*teesim.Platform
	teesim.Certificates
	root *x509.Certificate
}

func newSimulator(t testing.TB) *simulator { t.Helper(); return newPlatform(t, teesim.Options{}) }

func newPlatform(t testing.TB, o teesim.Options) *simulator {
	t.Helper()
	o.Now = func() time.Time { return simTime }
	p, err := teesim.Open("", o)
	if err != nil {
		t.Fatal(err)
	}
	return &simulator{t, p, p.Certificates(), p.Root()}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := teesim.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// model is a quote of version 4 of a platform before TDX 1.5, whose versions
// are all 5.
func (s *simulator) model() teesim.Parts {
	body := teesim.Body{ReportData: [64]byte(padded(digest, 64)), MRConfigID: [48]byte(digest), TEETCBSVN: [16]byte(slices.Repeat([]byte{5}, 16))}
	body.TEETCBSVN[1] = 0
	return s.Parts(body)
}

func (s *simulator) quote(m teesim.Parts) []byte {
	s.t.Helper()
	raw, err := s.Sign(m)
	if err != nil {
		s.t.Fatal(err)
	}
	return raw
}

// levels are TCB levels: for each, the version that all parts must reach, and
// the status.
func levels(pairs ...any) []teesim.Level {
	var out []teesim.Level
	for i := 0; i < len(pairs); i += 2 {
		svn := pairs[i].(int)
		out = append(out, teesim.Level{
			SVN: svn, Status: pairs[i+1].(string), Date: time.Date(2025, time.Month(svn+1), 1, 0, 0, 0, 0, time.UTC), Advisories: []string{fmt.Sprintf("SA-%d", svn)},
		})
	}
	return out
}

// tcb is what is true of the platform of model.
func (s *simulator) tcb() teesim.TCB {
	t := s.TCB()
	t.Issued = simTime.AddDate(0, -1, 0)
	t.Platform, t.Module, t.Enclave = levels(5, "UpToDate", 2, "OutOfDate"), levels(5, "UpToDate", 2, "OutOfDate"), levels(4, "UpToDate", 1, "OutOfDate")
	return t
}

func (s *simulator) collateral(t teesim.TCB) *Collateral {
	s.t.Helper()
	c, err := s.Collateral(t)
	if err != nil {
		s.t.Fatal(err)
	}
	return (*Collateral)(c)
}

func (s *simulator) verifier(c *Collateral) *Verifier {
	s.t.Helper()
	v, err := New(Config{Roots: certs(s.root), Source: &fixed{c: c}, Now: func() time.Time { return simTime }})
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

func certs(c ...*x509.Certificate) []*x509.Certificate { return c }

// withFiller ends a log as the attester does.
func withFiller(events ...teesim.Event) []byte {
	return append(teesim.EventLog(events...), slices.Repeat([]byte{0xFF}, 8)...)
}

// agentLog is a log with one event of the attestation agent in RTMR3, and the
// value that it gives.
func agentLog(text string) (log []byte, rtmr [48]byte) {
	event := teesim.AgentEvent(4, text)
	return withFiller(event), teesim.Replay(event)[3]
}

// toJSON is the evidence of the attester of guest-components.
func toJSON(quote, log []byte) json.RawMessage {
	text := "null"
	if log != nil {
		text = fmt.Sprintf("%q", base64.StdEncoding.EncodeToString(log))
	}
	return fmt.Appendf(nil, `{"cc_eventlog":%s,"quote":%q}`, text, base64.StdEncoding.EncodeToString(quote))
}
