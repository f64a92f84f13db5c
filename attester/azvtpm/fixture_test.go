package azvtpm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/attester/internal/vtpm"
	"github.com/sealpod/sealpod/attester/vtpmtest"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// machine is a confidential VM: a real TPM with a paravisor in front of it, and
// a metadata service.
type machine struct {
	tpm  *vtpmtest.TPM
	host podvm.Host
	kind Kind

	// The paravisor renews its report on every lazy+1-th reading; -1 is never.
	lazy, readings int
	report         []byte
	hooks          []vtpmtest.Hook // before the paravisor

	mu    sync.Mutex
	asked []string // of the metadata service: paths
}

const hclSize = 2600

func newMachine(t testing.TB, kind Kind) *machine {
	t.Helper()
	m := &machine{tpm: vtpmtest.Start(t, testenv.Tool(t, "swtpm")), kind: kind}
	m.tpm.Key(t, keyHandle)
	m.report = signed(hcl(kind, claims(strings.Repeat("00", 64)), hclSize))
	paravisor := vtpmtest.ReadOnlyNV(reportIndex, hclSize, func() []byte {
		if m.readings++; m.lazy >= 0 && m.readings > m.lazy {
			m.readings = 0
			m.report = renewed(kind, m.tpm.NV(t, reportDataIndex))
		}
		return m.report
	})
	m.host = m.tpm.Machine(t, func(cmd []byte) []byte {
		for _, h := range m.hooks {
			if out := h(cmd); out != nil {
				return out
			}
		}
		return nil
	}, paravisor)
	s := httptest.NewServer(http.HandlerFunc(m.metadata))
	t.Cleanup(s.Close)
	m.host.IMDS = s.URL
	return m
}

// renewed is a new report with report data, padded, in capitals as older
// paravisors have it.
func renewed(kind Kind, data []byte) []byte {
	user := make([]byte, 64)
	copy(user, data)
	return signed(hcl(kind, claims(strings.ToUpper(string(must(Hex(user).MarshalText())))), hclSize))
}

// signed puts the hash of the claims where the hardware would.
func signed(b []byte) []byte {
	h := must(ParseHCL(b))
	sum := sha256.Sum256(h.Claims)
	copy(h.signedHash(), sum[:])
	return b
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// attester is one that does not wait long.
func (m *machine) attester() *Attester {
	a := New(m.host, m.kind)
	a.metadata.retry = time.Microsecond
	return a
}

// metadata is the service: its TD quote is the TDREPORT with zeros after it.
func (m *machine) metadata(w http.ResponseWriter, r *http.Request) {
	body := must(podvm.ReadMax(r.Body, 1<<20))
	m.mu.Lock()
	m.asked = append(m.asked, r.URL.Path)
	m.mu.Unlock()
	if r.Header.Get("Metadata") != "true" {
		http.Error(w, "no Metadata header", http.StatusBadRequest)
		return
	}
	switch r.Method + r.URL.Path {
	case "GET" + vcekPath:
		text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: vcek()}))
		_ = json.NewEncoder(w).Encode(map[string]string{"vcekCert": text, "certificateChain": text, "tcbm": "00"})
	case "POST" + quotePath:
		var in struct{ Report []byte }
		if r.Header.Get("Content-Type") != "application/json" || json.Unmarshal(body, &in) != nil || len(in.Report) != TDReportSize {
			http.Error(w, "not a report", http.StatusBadRequest)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"quote": base64.RawURLEncoding.EncodeToString(quoteOf(in.Report))})
	default:
		http.NotFound(w, r)
	}
}

func quoteOf(report []byte) []byte { return append(bytes.Clone(report), make([]byte, 17)...) }

// vcek is some certificate.
var vcek = sync.OnceValue(func() []byte {
	key := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	return must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))
})

// key is the public part of the attestation key.
func (m *machine) key(t testing.TB) *rsa.PublicKey {
	t.Helper()
	var out *rsa.PublicKey
	err := vtpm.New(m.host).Do(t.Context(), func(c *vtpm.Conn) (err error) {
		out, err = c.AttestationKey(keyHandle)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
