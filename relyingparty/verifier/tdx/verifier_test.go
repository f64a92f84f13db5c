package tdx

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sealpod/sealpod/relyingparty/verifier"
	teesim "github.com/sealpod/sealpod/teesim/tdx"
)

func TestVersionsAndBodies(t *testing.T) {
	s := newSimulator(t)
	v := s.verifier(s.collateral(s.tcb()))
	for name, change := range map[string]func(*teesim.Parts){
		"version 4":          func(*teesim.Parts) {},
		"version 5, TDX 1.0": func(m *teesim.Parts) { m.Header.Version, m.BodyType = 5, bodyType10 },
		"version 5, TDX 1.5": func(m *teesim.Parts) {
			m.Header.Version, m.BodyType, m.Body.TEETCBSVN2 = 5, bodyType15, m.Body.TEETCBSVN
		},
		"module of TDX 1.5":    func(m *teesim.Parts) { m.Body.TEETCBSVN[1] = 1 },
		"chain ends in a zero": func(m *teesim.Parts) { m.Chain = append(m.Chain, 0) },
	} {
		m := s.model()
		change(&m)
		got, err := v.Verify(t.Context(), toJSON(s.quote(m), nil), verifier.Expected{ReportData: digest, InitData: digest})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want := map[string]any{
			"tcb_status": "UpToDate", "tcb_eval_num": 17, "is_dynamic_platform": true, "is_cached_keys": false, "is_smt_enabled": true,
			"platform_instance_id": "30313233343536373839616263646566", "platform_provider_id": strings.Repeat("aa", 16), "pck_crl_num": int64(7),
			"collateral_expiration_status": "0",
		}
		for k, w := range want {
			if got[0].Values[k] != w {
				t.Errorf("%s: %s is %v", name, k, got[0].Values[k])
			}
		}
		body := got[0].Values["quote"].(map[string]any)["body"].(map[string]any)
		if (body["mr_servicetd"] != nil) != (m.BodyType == bodyType15) {
			t.Errorf("%s: body %v", name, body)
		}
		if _, err := json.Marshal(got); err != nil {
			t.Error(err)
		}
	}
	if v.TEE() != "tdx" {
		t.Error("wire name")
	}
}

func TestEventLogBecomesClaims(t *testing.T) {
	s := newSimulator(t)
	log, rtmr := agentLog(`github.com/confidential-containers PullImage {"image":"i"}`)
	m := s.model()
	m.Body.RTMR[3] = rtmr
	got, err := s.verifier(s.collateral(s.tcb())).Verify(t.Context(), toJSON(s.quote(m), log), verifier.Expected{ReportData: digest})
	if err != nil {
		t.Fatal(err)
	}
	events := got[0].Values["uefi_event_logs"].([]any)
	data := events[0].(map[string]any)["details"].(map[string]any)["data"]
	want := map[string]any{"domain": "github.com/confidential-containers", "operation": "PullImage", "content": map[string]any{"image": "i"}}
	if len(events) != 1 || !reflect.DeepEqual(data, want) {
		t.Errorf("%v", events)
	}
}

func TestAttributesAreClaims(t *testing.T) {
	s := newSimulator(t)
	v := s.verifier(s.collateral(s.tcb()))
	for bit := range 64 {
		m := s.model()
		m.Body.TDAttributes = [8]byte{}
		m.Body.TDAttributes[bit/8] = 1 << (bit % 8)
		got, err := v.Verify(t.Context(), toJSON(s.quote(m), nil), verifier.Expected{ReportData: digest})
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]any{
			"debug": bit < 8, "septve_disable": bit == 28, "migratable": bit == 29, "protection_keys": bit == 30, "key_locker": bit == 31, "perfmon": bit == 63,
		}
		if !reflect.DeepEqual(got[0].Values["td_attributes"], want) {
			t.Errorf("bit %d: %v", bit, got[0].Values["td_attributes"])
		}
	}
}

// TestBadEvidence has one row for each attack.
func TestBadEvidence(t *testing.T) {
	s, other := newSimulator(t), newSimulator(t)
	v := s.verifier(s.collateral(s.tcb()))
	good := s.quote(s.model())
	change := func(f func(*teesim.Parts)) json.RawMessage {
		m := s.model()
		f(&m)
		return toJSON(s.quote(m), nil)
	}
	log, rtmr := agentLog("d o c")
	forged, _ := agentLog("d o evil")
	extended := s.model()
	extended.Body.RTMR[3] = rtmr
	bound := verifier.Expected{ReportData: digest, InitData: digest}
	nonce, init := bytes.Clone(digest), bytes.Clone(digest)
	nonce[0]++
	init[47] ^= 1
	plain, err := s.IssuePCK()
	if err != nil {
		t.Fatal(err)
	}
	v3 := slices.Clone(good)
	v3[0] = 3
	for name, c := range map[string]struct {
		raw  json.RawMessage
		want verifier.Expected
		text string
	}{
		"wrong nonce":                  {toJSON(good, nil), verifier.Expected{ReportData: nonce}, "another nonce"},
		"replayed":                     {toJSON(good, nil), verifier.Expected{ReportData: []byte("digest of the next session")}, "another nonce"},
		"nothing expected":             {toJSON(good, nil), verifier.Expected{}, "0 bytes"},
		"report data over 64 bytes":    {toJSON(good, nil), verifier.Expected{ReportData: make([]byte, 65)}, "65 bytes"},
		"init data off by one byte":    {toJSON(good, nil), verifier.Expected{ReportData: digest, InitData: init}, "other init data"},
		"evidence of SNP":              {json.RawMessage(`{"attestation_report":{},"cert_chain":null}`), bound, "not the evidence of a TDX guest"},
		"quote of SGX":                 {toJSON(v3, nil), bound, "3 is of SGX"},
		"quote of another TEE":         {change(func(m *teesim.Parts) { m.Header.TEEType = 0 }), bound, "TEE type 0x0"},
		"empty quote":                  {toJSON(nil, nil), bound, "empty"},
		"truncated quote":              {toJSON(good[:len(good)-1], nil), bound, "truncated"},
		"truncated body":               {toJSON(good[:100], nil), bound, "truncated"},
		"swapped chain":                {change(func(m *teesim.Parts) { m.Chain = teesim.PEM(other.PCK, other.CA, other.root) }), bound, "not trusted"},
		"swapped leaf":                 {change(func(m *teesim.Parts) { m.Chain = teesim.PEM(other.PCK, s.CA, s.root) }), bound, "PCK certificate"},
		"swapped authority":            {change(func(m *teesim.Parts) { m.Chain = teesim.PEM(s.PCK, other.CA, s.root) }), bound, "authority"},
		"chain in another order":       {change(func(m *teesim.Parts) { m.Chain = teesim.PEM(s.root, s.CA, s.PCK) }), bound, "not trusted"},
		"signer of collateral as PCK":  {change(func(m *teesim.Parts) { m.Chain = teesim.PEM(s.PCK, s.Signer, s.root) }), bound, "not a PCK certification authority"},
		"chain of two":                 {change(func(m *teesim.Parts) { m.Chain = teesim.PEM(s.PCK, s.root) }), bound, "2 certificates"},
		"chain of four":                {change(func(m *teesim.Parts) { m.Chain = teesim.PEM(s.PCK, s.CA, s.root, s.root) }), bound, "not 3 certificates"},
		"no chain":                     {change(func(m *teesim.Parts) { m.Chain = nil }), bound, "0 certificates"},
		"PCK without its extension":    {change(func(m *teesim.Parts) { m.Chain = teesim.PEM(plain, s.CA, s.root) }), bound, "no SGX extension"},
		"signed by another key":        {change(func(m *teesim.Parts) { m.Attestation = newKey(t) }), bound, "attestation key"},
		"enclave of another PCK":       {change(func(m *teesim.Parts) { m.PCK = newKey(t) }), bound, "not signed by the PCK key"},
		"another quoting enclave":      {change(func(m *teesim.Parts) { m.Enclave.MRSigner[0] = 0x52 }), bound, "not the one Intel published"},
		"quoting enclave too old":      {change(func(m *teesim.Parts) { m.Enclave.ISVSVN = 0 }), bound, "below every level"},
		"TCB below every level":        {change(func(m *teesim.Parts) { m.Body.TEETCBSVN = [16]byte{} }), bound, "below every level"},
		"TDX module nobody knows":      {change(func(m *teesim.Parts) { m.Body.TEETCBSVN[1] = 9 }), bound, "TDX_09"},
		"TDX module too old":           {change(func(m *teesim.Parts) { m.Body.TEETCBSVN[0], m.Body.TEETCBSVN[1] = 1, 1 }), bound, "below every level"},
		"log that does not replay":     {toJSON(s.quote(extended), forged), bound, "replaying register 4"},
		"log of nothing":               {toJSON(good, log), bound, "replaying register 4"},
		"log that is none":             {toJSON(good, []byte("log")), bound, "event log"},
		"not JSON":                     {json.RawMessage("x"), bound, "reading TDX evidence"},
		"two documents":                {append(toJSON(good, nil), "{}"...), bound, "data after"},
		"quote that is no base64":      {json.RawMessage(`{"quote":"%"}`), bound, "decoding quote"},
		"event log that is no base64":  {json.RawMessage(`{"quote":"AA==","cc_eventlog":"%"}`), bound, "decoding cc_eventlog"},
		"evidence without end":         {bytes.Repeat([]byte(" "), maxEvidence+1), bound, "at most"},
		"quote without end":            {toJSON(make([]byte, maxQuote+1), nil), bound, "at most"},
		"body type 4":                  {change(func(m *teesim.Parts) { m.Header.Version, m.BodyType = 5, 4 }), bound, "body type 4"},
		"size of another type of body": {toJSON(func() []byte { m := s.model(); m.Header.Version, m.BodyType = 5, 2; q := s.quote(m); q[50]++; return q }(), nil), bound, "has 584"},
	} {
		got, err := v.Verify(t.Context(), c.raw, c.want)
		if !errors.Is(err, verifier.ErrEvidence) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if _, err := v.Verify(t.Context(), toJSON(s.quote(extended), log), bound); err != nil {
		t.Errorf("the unchanged evidence: %v", err)
	}
}

func TestTCBStatusIsAClaim(t *testing.T) {
	s := newSimulator(t)
	for name, c := range map[string]struct {
		platform, module, qe string
		svn0, svn1           byte
		newer                byte // version of the module now, of TDX 1.5
		want                 string
	}{
		"up to date":                   {"UpToDate", "UpToDate", "UpToDate", 5, 0, 0, "UpToDate"},
		"platform needs hardening":     {"SWHardeningNeeded", "UpToDate", "UpToDate", 5, 0, 0, "SWHardeningNeeded"},
		"platform out of date":         {"OutOfDate", "UpToDate", "UpToDate", 5, 0, 0, "OutOfDate"},
		"module out of date":           {"UpToDate", "UpToDate", "UpToDate", 3, 1, 0, "OutOfDate"},
		"module and configuration":     {"ConfigurationNeeded", "UpToDate", "UpToDate", 3, 1, 0, "OutOfDateConfigurationNeeded"},
		"module, both":                 {"ConfigurationAndSWHardeningNeeded", "UpToDate", "UpToDate", 3, 1, 0, "OutOfDateConfigurationNeeded"},
		"enclave out of date":          {"UpToDate", "UpToDate", "OutOfDate", 5, 1, 0, "OutOfDate"},
		"enclave and hardening":        {"SWHardeningNeeded", "UpToDate", "OutOfDate", 5, 0, 0, "OutOfDate"},
		"enclave and configuration":    {"ConfigurationNeeded", "UpToDate", "OutOfDate", 5, 0, 0, "OutOfDateConfigurationNeeded"},
		"both out of date":             {"OutOfDateConfigurationNeeded", "UpToDate", "OutOfDate", 5, 0, 0, "OutOfDateConfigurationNeeded"},
		"enclave needs hardening":      {"UpToDate", "UpToDate", "SWHardeningNeeded", 5, 0, 0, "SWHardeningNeeded"},
		"enclave needs configuration":  {"SWHardeningNeeded", "UpToDate", "ConfigurationNeeded", 5, 0, 0, "ConfigurationAndSWHardeningNeeded"},
		"module was updated":           {"UpToDate", "UpToDate", "UpToDate", 3, 1, 5, "TDRelaunchAdvised"},
		"module updated, to configure": {"ConfigurationNeeded", "UpToDate", "UpToDate", 3, 1, 5, "TDRelaunchAdvisedConfigurationNeeded"},
		"module updated too little":    {"UpToDate", "UpToDate", "UpToDate", 3, 1, 4, "OutOfDate"},
	} {
		tcb := s.tcb()
		tcb.Platform, tcb.Module, tcb.Enclave = levels(3, c.platform), levels(5, c.module, 2, "OutOfDate"), levels(4, c.qe)
		m := s.model()
		m.Body.TEETCBSVN[0], m.Body.TEETCBSVN[1] = c.svn0, c.svn1
		if c.newer > 0 {
			m.Header.Version, m.BodyType, m.Body.TEETCBSVN2 = 5, bodyType15, m.Body.TEETCBSVN
			m.Body.TEETCBSVN2[0] = c.newer
		}
		_, claims, err := s.verifier(s.collateral(tcb)).VerifyQuote(t.Context(), s.quote(m))
		if err != nil || claims["tcb_status"] != c.want {
			t.Errorf("%s: %v, %v", name, claims["tcb_status"], err)
		}
	}
	tcb := s.tcb()
	tcb.Platform, tcb.Enclave = levels(3, "OutOfDate"), levels(4, "UpToDate")
	_, claims, err := s.verifier(s.collateral(tcb)).VerifyQuote(t.Context(), s.quote(s.model()))
	if err != nil || !reflect.DeepEqual(claims["advisory_ids"], []any{"SA-3", "SA-4"}) || claims["tcb_date"] != "2025-04-01T00:00:00Z" {
		t.Errorf("%v, %v", claims, err)
	}
}

// TestRelaunchIsAdvisedAsByIntel: only for a module that was out of date, and
// with what was to be configured then as now.
func TestRelaunchIsAdvisedAsByIntel(t *testing.T) {
	s := newSimulator(t)
	for name, c := range map[string]struct {
		before      string // status of platforms with other parts of version 3
		module, was byte   // versions of the module and of the other parts at launch
		want        string
	}{
		"all were old":             {"OutOfDate", 3, 3, "TDRelaunchAdvised"},
		"and to be configured":     {"OutOfDateConfigurationNeeded", 3, 3, "TDRelaunchAdvisedConfigurationNeeded"},
		"the module alone was old": {"OutOfDate", 3, 5, "TDRelaunchAdvised"},
		"the module was not old":   {"OutOfDate", 5, 3, "OutOfDate"},
	} {
		tcb := s.tcb()
		tcb.Platform, tcb.Module = levels(5, "UpToDate", 3, c.before), levels(5, "UpToDate", 2, "OutOfDate")
		m := s.model()
		m.Header.Version, m.BodyType = 5, bodyType15
		for i := range m.Body.TEETCBSVN {
			m.Body.TEETCBSVN[i], m.Body.TEETCBSVN2[i] = c.was, 5
		}
		m.Body.TEETCBSVN[0], m.Body.TEETCBSVN[1], m.Body.TEETCBSVN2[1] = c.module, 1, 1
		_, claims, err := s.verifier(s.collateral(tcb)).VerifyQuote(t.Context(), s.quote(m))
		if err != nil || claims["tcb_status"] != c.want {
			t.Errorf("%s: %v, want %s, %v", name, claims["tcb_status"], c.want, err)
		}
	}
}

func TestRevocationIsRefused(t *testing.T) {
	s := newSimulator(t)
	for name, c := range map[string]struct {
		change func(*teesim.TCB)
		text   string
	}{
		"PCK certificate":         {func(m *teesim.TCB) { m.Revoked = certs(s.PCK) }, "certificate is revoked"},
		"certification authority": {func(m *teesim.TCB) { m.Revoked = certs(s.CA) }, "certificate is revoked"},
		"TCB level":               {func(m *teesim.TCB) { m.Platform = levels(5, "Revoked") }, "TCB level is revoked"},
		"level of the enclave":    {func(m *teesim.TCB) { m.Enclave = levels(4, "Revoked") }, "TCB level is revoked"},
	} {
		m := s.tcb()
		c.change(&m)
		_, _, err := s.verifier(s.collateral(m)).VerifyQuote(t.Context(), s.quote(s.model()))
		if !errors.Is(err, verifier.ErrEvidence) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBadCollateral(t *testing.T) {
	s, other := newSimulator(t), newSimulator(t)
	for name, change := range map[string]func(*Collateral){
		"TCB info forged": func(c *Collateral) { c.TCBInfo = bytes.Replace(c.TCBInfo, []byte("OutOfDate"), []byte("UpToDate"), 1) },
		"identity forged": func(c *Collateral) {
			c.QEIdentity = bytes.Replace(c.QEIdentity, []byte(`"isvprodid":2`), []byte(`"isvprodid":3`), 1)
		},
		"documents swapped":      func(c *Collateral) { c.TCBInfo, c.QEIdentity = c.QEIdentity, c.TCBInfo },
		"of another root":        func(c *Collateral) { *c = *other.collateral(other.tcb()) },
		"chain of another root":  func(c *Collateral) { c.TCBInfoChain = teesim.PEM(other.Signer, other.root) },
		"chain of a PCK":         func(c *Collateral) { c.TCBInfoChain = teesim.PEM(s.CA, s.root) },
		"no chain":               func(c *Collateral) { c.QEIdentityChain = nil },
		"no signature":           func(c *Collateral) { c.TCBInfo = []byte(`{"tcbInfo":{}}`) },
		"not JSON":               func(c *Collateral) { c.TCBInfo = []byte("x") },
		"root list of another":   func(c *Collateral) { c.RootCRL = other.collateral(other.tcb()).RootCRL },
		"lists swapped":          func(c *Collateral) { c.RootCRL, c.PCKCRL = c.PCKCRL, c.RootCRL },
		"no lists":               func(c *Collateral) { c.PCKCRL = nil },
		"of another platform":    func(c *Collateral) { m := s.tcb(); m.FMSPC = "ffffffffffff"; *c = *s.collateral(m) },
		"TCB info of SGX":        func(c *Collateral) { m := s.tcb(); m.ID = "SGX"; *c = *s.collateral(m) },
		"signing key is revoked": func(c *Collateral) { m := s.tcb(); m.Revoked = certs(s.Signer); *c = *s.collateral(m) },
	} {
		c := s.collateral(s.tcb())
		change(c)
		_, _, err := s.verifier(c).VerifyQuote(t.Context(), s.quote(s.model()))
		if !errors.Is(err, ErrCollateral) || errors.Is(err, verifier.ErrEvidence) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestStaleCollateralIsAClaim(t *testing.T) {
	s := newSimulator(t)
	m := s.tcb()
	m.NextUpdate = simTime.Add(-time.Second)
	_, claims, err := s.verifier(s.collateral(m)).VerifyQuote(t.Context(), s.quote(s.model()))
	if err != nil || claims["collateral_expiration_status"] != "1" || claims["earliest_expiration_date"] != "2026-02-28T23:59:59Z" {
		t.Errorf("%v, %v", claims, err)
	}
}

func TestClockBeforeTheCertificates(t *testing.T) {
	s := newSimulator(t)
	v := s.verifier(s.collateral(s.tcb()))
	v.config.Now = func() time.Time { return simTime.AddDate(-10, 0, 0) }
	if _, _, err := v.VerifyQuote(t.Context(), s.quote(s.model())); !errors.Is(err, verifier.ErrEvidence) || !strings.Contains(err.Error(), "clock") {
		t.Error(err)
	}
}

func TestNothingIsFetchedForForgedQuotes(t *testing.T) {
	s, other := newSimulator(t), newSimulator(t)
	source := &fixed{c: s.collateral(s.tcb())}
	v, err := New(Config{Roots: certs(s.root), Source: source})
	if err != nil {
		t.Fatal(err)
	}
	m := s.model()
	m.Attestation = newKey(t)
	for _, q := range [][]byte{other.quote(other.model()), s.quote(m)} {
		if _, _, err := v.VerifyQuote(t.Context(), q); err == nil {
			t.Error("forged quote")
		}
	}
	if source.asked.Load() != 0 {
		t.Errorf("asked %d times", source.asked.Load())
	}
	if _, err := New(Config{}); err == nil {
		t.Error("no source")
	}
}

func TestCache(t *testing.T) {
	s := newSimulator(t)
	now := simTime
	source := &fixed{err: ErrCollateral}
	v, err := New(Config{Roots: certs(s.root), Source: source, MaxAge: time.Hour, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	quote := s.quote(s.model())
	check := func(what string, ok bool, asked int32) {
		t.Helper()
		_, _, err := v.VerifyQuote(t.Context(), quote)
		if (err == nil) != ok || source.asked.Load() != asked {
			t.Errorf("%s: asked %d times, %v", what, source.asked.Load(), err)
		}
	}
	check("fails", false, 1)
	check("failure is remembered", false, 1)
	now = now.Add(retryAfter)
	source.c, source.err = s.collateral(s.tcb()), nil
	check("asks again", true, 2)
	check("is cached", true, 2)
	parked := 0
	park := verifier.WithPark(t.Context(), func(call func()) { parked++; call() })
	if _, _, err := v.VerifyQuote(park, quote); err != nil || parked != 1 {
		t.Errorf("others could go first %d times, %v", parked, err)
	}
	now = now.Add(time.Hour)
	source.err = ErrCollateral
	check("serves on when the source fails", true, 3)
	check("does not hammer the source", true, 3)
	now = now.Add(retryAfter)
	source.err = nil
	check("refreshes", true, 4)
	if source.last != (Platform{[6]byte{1, 2, 3, 4, 5, 6}, "platform"}) {
		t.Errorf("%+v", source.last)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	key := func() *cacheEntry {
		for _, e := range v.cache.entries {
			return e
		}
		return nil
	}()
	key.slot <- struct{}{} // another guest is fetching
	if _, _, err := v.VerifyQuote(ctx, quote); !errors.Is(err, context.Canceled) {
		t.Errorf("guest that left: %v", err)
	}
}

// TestStaleCollateralIsAskedForAgain: a caching service may be late by a day, and
// collateral may expire while it is cached.
func TestStaleCollateralIsAskedForAgain(t *testing.T) {
	s := newSimulator(t)
	now := simTime
	old, fresh := s.tcb(), s.tcb()
	old.NextUpdate = now.Add(time.Hour)
	source := &fixed{c: s.collateral(old)}
	v, err := New(Config{Roots: certs(s.root), Source: source, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		after time.Duration
		asked int32
		stale string
	}{{0, 1, "0"}, {59 * time.Minute, 1, "0"}, {2 * time.Minute, 2, "1"}, {time.Second, 2, "1"}, {retryAfter, 3, "1"}} {
		now = now.Add(step.after)
		_, claims, err := v.VerifyQuote(t.Context(), s.quote(s.model()))
		if err != nil || claims["collateral_expiration_status"] != step.stale || source.asked.Load() != step.asked {
			t.Errorf("%s: asked %d times, stale %v, %v", now, source.asked.Load(), claims["collateral_expiration_status"], err)
		}
	}
	source.c = s.collateral(fresh)
	now = now.Add(retryAfter)
	if _, claims, err := v.VerifyQuote(t.Context(), s.quote(s.model())); err != nil || claims["collateral_expiration_status"] != "0" {
		t.Errorf("%v, %v", claims, err)
	}
}

// TestEvidenceIsStrictBase64 keeps two texts from being one quote.
func TestEvidenceIsStrictBase64(t *testing.T) {
	raw := json.RawMessage(`{"quote":"` + strings.TrimRight(base64.StdEncoding.EncodeToString([]byte("x")), "=") + `"}`)
	if _, _, err := parseEvidence(raw); err == nil {
		t.Error("no padding")
	}
}
