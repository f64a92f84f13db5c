package doctor

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/containerd/ttrpc"

	aa "github.com/sealpod/sealpod/api/attestationagent"
	aaserver "github.com/sealpod/sealpod/attester/server"
	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm"
)

// errNoKBS says that there is nothing to reach.
var errNoKBS = errors.New("no relying party is configured")

// relyingParty is the KBS of the attestation agent.
func (d *doctor) relyingParty() (*aaserver.KBSConfig, error) {
	c, _, err := d.agentConfig()
	if err != nil {
		return nil, err
	}
	if c.Tokens.KBS == nil {
		return nil, errNoKBS
	}
	return c.Tokens.KBS, nil
}

// dns resolves the name of the relying party.
func (d *doctor) dns(ctx context.Context, r *Report) {
	const hint = "what does DHCP say (resolvectl, /etc/resolv.conf)? is UDP and TCP port 53 open to the name server?"
	servers := 0
	raw, err := podvm.ReadFileMax(d.Host.Path("/etc/resolv.conf"), 64<<10)
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" {
			servers++
		}
	}
	if servers == 0 {
		r.warn(hint, "/etc/resolv.conf names no name server (%v)", err)
	}
	k, err := d.relyingParty()
	if err != nil {
		r.skip("no name was resolved: %s", why(err))
		return
	}
	u, err := url.Parse(k.URL)
	if err != nil {
		r.fail("correct url in [token_configs.kbs]", "the address of the relying party is not a URL")
		return
	}
	if _, err := netip.ParseAddr(u.Hostname()); err == nil {
		r.ok("the relying party is at %s, which needs no name server", u.Hostname())
		return
	}
	start := time.Now()
	addrs, err := net.DefaultResolver.LookupHost(ctx, u.Hostname())
	r.took(u.Hostname(), time.Since(start))
	if err != nil {
		r.fail(hint, "the relying party's name %s does not resolve: %v", u.Hostname(), err)
		return
	}
	r.ok("%s is %s", u.Hostname(), list(addrs))
}

// kbsDate is the time of the relying party, which is believed without its
// certificate: a clock that is wrong is why that would be refused.
func (d *doctor) kbsDate(ctx context.Context) (time.Time, error) {
	k, err := d.relyingParty()
	if err != nil {
		return time.Time{}, err
	}
	tr := &http.Transport{
		Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // see above
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, strings.TrimRight(k.URL, "/")+"/kbs/v0/auth", nil)
	if err != nil {
		return time.Time{}, errors.New("its address is not a URL")
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return time.Time{}, fmt.Errorf("it does not answer: %w", err)
	}
	if err := resp.Body.Close(); err != nil {
		return time.Time{}, err
	}
	date, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return time.Time{}, errors.New("it does not say what time it is")
	}
	return date, nil
}

// kbs asks the relying party for a challenge, and has the agent get a token.
func (d *doctor) kbs(ctx context.Context, r *Report) {
	k, err := d.relyingParty()
	if err != nil {
		r.skip("%s", why(err))
		return
	}
	if !d.challenge(ctx, k, r) {
		return
	}
	start := time.Now()
	err = d.call(ctx, d.AgentSocket, func(c *ttrpc.Client) error {
		_, err := aa.NewAttestationAgentServiceClient(c).GetToken(ctx, &aa.GetTokenRequest{TokenType: "kbs"})
		return err
	})
	took := time.Since(start)
	status := d.agentStatus(ctx)
	if status != nil && status.Attestation != nil {
		for step, seconds := range status.Attestation.Seconds {
			r.took("attestation agent: "+podvm.Printable(string(step), 32), time.Duration(seconds*float64(time.Second)))
		}
	}
	switch {
	case err != nil:
		r.fail("is it the evidence? compare reference values and the attestation policy (the relying party's log names the claim); else see the sockets",
			"no token through the attestation agent: %s", why(err))
	case status == nil || status.Attestation == nil:
		r.ok("a token through the attestation agent in %v", took.Round(time.Millisecond))
	default:
		r.ok("a token through the attestation agent in %v; its last attestation, %v ago, took %s", took.Round(time.Millisecond),
			time.Since(status.Attestation.Started).Round(time.Second), steps(status.Attestation))
	}
}

// steps is the times of an attestation for people.
func steps(a *aaserver.Attestation) string {
	var parts []string
	for _, s := range kbs.Steps() {
		if t, ok := a.Seconds[s]; ok {
			parts = append(parts, fmt.Sprintf("%s %.3fs", s, t))
		}
	}
	return fmt.Sprintf("%.3fs (%s)", a.Elapsed, strings.Join(parts, ", "))
}

// errEnough ends a handshake after its challenge.
var errEnough = errors.New("the challenge is enough")

// stranger has no evidence.
type stranger struct{ tee string }

func (s stranger) TEE() string { return s.tee }
func (stranger) Evidence(context.Context, []byte) (json.RawMessage, error) {
	return nil, errEnough
}
func (stranger) AdditionalEvidence(context.Context, []byte) (string, error) { return "", nil }

// challenge begins a handshake of its own, with the agent's client, and tells the
// parts of getting there apart.
func (d *doctor) challenge(ctx context.Context, k *aaserver.KBSConfig, r *Report) bool {
	tee, err := d.agentTEE(ctx)
	if err != nil {
		tee = "sample"
	}
	c, err := kbs.NewClient(kbs.ClientConfig{URL: k.URL, CertPEM: []byte(k.Cert), Attempts: 1, RequestTimeout: 10 * time.Second, Log: d.log})
	if err != nil {
		r.fail("correct [token_configs.kbs] in aa.toml", "%s", why(err))
		return false
	}
	defer c.Close()
	t := &trace{parts: map[string]time.Duration{}}
	ctx = httptrace.WithClientTrace(ctx, t.hooks())
	ctx = kbs.WithSteps(ctx, func(s kbs.Step, took time.Duration) {
		if s == kbs.StepChallenge {
			t.add("challenge", took)
		}
	})
	_, err = c.Attest(ctx, stranger{tee}, nil, "")
	for what, took := range t.all() {
		r.took(what, took)
	}
	if !errors.Is(err, errEnough) {
		r.fail("is the address right, the port open, the certificate trusted (see ca and clock), the relying party up?", "%s: %s", k.URL, why(err))
		return false
	}
	r.ok("%s answers with a challenge in %v", k.URL, t.all()["challenge"].Round(time.Millisecond))
	return true
}

// trace is the times of connecting.
type trace struct {
	mu    sync.Mutex
	parts map[string]time.Duration
}

func (t *trace) add(what string, took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.parts[what] = took
}

func (t *trace) all() map[string]time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.parts)
}

func (t *trace) hooks() *httptrace.ClientTrace {
	var mu sync.Mutex
	began := map[string]time.Time{}
	begin := func(what string) {
		mu.Lock()
		defer mu.Unlock()
		began[what] = time.Now()
	}
	end := func(what string) {
		mu.Lock()
		defer mu.Unlock()
		t.add(what, time.Since(began[what]))
	}
	return &httptrace.ClientTrace{
		DNSStart:          func(httptrace.DNSStartInfo) { begin("resolve") },
		DNSDone:           func(httptrace.DNSDoneInfo) { end("resolve") },
		ConnectStart:      func(string, string) { begin("connect") },
		ConnectDone:       func(string, string, error) { end("connect") },
		TLSHandshakeStart: func() { begin("tls") },
		TLSHandshakeDone:  func(tls.ConnectionState, error) { end("tls") },
	}
}
