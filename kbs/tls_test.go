package kbs

import (
	"encoding/pem"
	"net/http/httptest"
	"testing"
)

// The configured certificate is trusted beside the system's, and one
// connection serves the whole handshake and the fetch after it.
func TestExtraRootAndOneConnection(t *testing.T) {
	k := newFakeKBS(t)
	conns := map[string]bool{}
	handler := k.Config.Handler
	srv := httptest.NewTLSServer(handler)
	defer srv.Close()
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	c := k.client(t, func(cfg *ClientConfig) { cfg.URL, cfg.CertPEM = srv.URL, cert })
	tok, err := c.Attest(t.Context(), &fakeTEE{}, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	u, err := ParseURI("kbs:///a/b/c")
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := c.Resource(t.Context(), tok, u); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range k.gets {
		conns[r.RemoteAddr] = true
	}
	if len(conns) != 1 {
		t.Errorf("fetches came over %d connections", len(conns))
	}
}
