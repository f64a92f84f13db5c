package tdx

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/relyingparty/verifier"
	teesim "github.com/sealpod/sealpod/teesim/tdx"
)

// bindEvent is what the attestation agent records for init data.
func bindEvent(content string) teesim.Event {
	return teesim.AgentEvent(4, "github.com/sealpod/sealpod BindInitData "+content)
}

// recorded is the quote of a TD that measured those events.
func (s *simulator) recorded(mrConfigID []byte, events ...teesim.Event) []byte {
	m := s.model()
	m.Body.MRConfigID, m.Body.RTMR = [48]byte(padded(mrConfigID, 48)), teesim.Replay(events...)
	return s.quote(m)
}

func TestInitDataBinding(t *testing.T) {
	s := newSimulator(t)
	v := s.verifier(s.collateral(s.tcb()))
	short, long := sha256.Sum256([]byte("init")), sha512.Sum512([]byte("init"))
	other := teesim.AgentEvent(4, "github.com/confidential-containers PullImage {}")
	boot := teesim.KernelEvent([]byte("kernel"))
	for name, c := range map[string]struct {
		digest     []byte
		mrConfigID []byte
		events     []teesim.Event
		binding    any
		initData   string
	}{
		"MRCONFIGID":                          {digest, digest, nil, "mrconfigid", hex.EncodeToString(digest)},
		"MRCONFIGID, SHA-256 padded":          {short[:], short[:], nil, "mrconfigid", hex.EncodeToString(padded(short[:], 48))},
		"MRCONFIGID, SHA-512 cut":             {long[:], long[:48], nil, "mrconfigid", hex.EncodeToString(long[:48])},
		"MRCONFIGID counts before RTMR3":      {digest, digest, []teesim.Event{bindEvent("00")}, "mrconfigid", hex.EncodeToString(digest)},
		"RTMR3":                               {digest, nil, []teesim.Event{bindEvent(hex.EncodeToString(digest))}, "rtmr3", hex.EncodeToString(digest)},
		"RTMR3, SHA-256 as it is":             {short[:], nil, []teesim.Event{bindEvent(hex.EncodeToString(short[:]))}, "rtmr3", hex.EncodeToString(short[:])},
		"RTMR3, SHA-512 in full":              {long[:], nil, []teesim.Event{bindEvent(hex.EncodeToString(long[:]))}, "rtmr3", hex.EncodeToString(long[:])},
		"RTMR3, with boot before, more after": {digest, nil, []teesim.Event{boot, bindEvent(hex.EncodeToString(digest)), other, bindEvent("00")}, "rtmr3", hex.EncodeToString(digest)},
		"none sent":                           {nil, digest, nil, nil, hex.EncodeToString(digest)},
		"none sent, RTMR3":                    {nil, nil, []teesim.Event{bindEvent(hex.EncodeToString(digest))}, nil, strings.Repeat("00", 48)},
	} {
		got, err := v.Verify(t.Context(), toJSON(s.recorded(c.mrConfigID, c.events...), withFiller(c.events...)), verifier.Expected{ReportData: digest, InitData: c.digest})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if values := got[0].Values; values["init_data_binding"] != c.binding || values["init_data"] != c.initData {
			t.Errorf("%s: %v, %v", name, values["init_data_binding"], values["init_data"])
		}
	}
}

// TestInitDataThatIsNotBound has one row for each way to pass off other init
// data as that of the guest.
func TestInitDataThatIsNotBound(t *testing.T) {
	s := newSimulator(t)
	v := s.verifier(s.collateral(s.tcb()))
	sum := sha512.Sum384([]byte("init"))
	init := sum[:]
	text := hex.EncodeToString(init)
	good := bindEvent(text)
	pull := teesim.AgentEvent(4, "github.com/confidential-containers PullImage {}")
	flipped := slices.Clone(init)
	flipped[47] ^= 1
	change := func(f func(*teesim.Event)) teesim.Event { e := good; f(&e); e.Digest = sha512.Sum384(e.Data); return e }
	const notFirst, notReplayed = "first event of RTMR3 is not that of the init data", "replaying register 4"
	for name, c := range map[string]struct {
		mrConfigID []byte
		events     []teesim.Event // that were measured
		log        []teesim.Event // that are sent; nil means those
		text       string
	}{
		"second event":                   {nil, []teesim.Event{pull, good}, nil, notFirst},
		"second after another binding":   {nil, []teesim.Event{bindEvent(hex.EncodeToString(flipped)), good}, nil, notFirst},
		"first event left out":           {nil, []teesim.Event{pull, good}, []teesim.Event{good}, notReplayed},
		"order changed":                  {nil, []teesim.Event{pull, good}, []teesim.Event{good, pull}, notReplayed},
		"only in the log":                {nil, nil, []teesim.Event{good}, notReplayed},
		"only in the log, not extended":  {nil, []teesim.Event{pull}, []teesim.Event{{Register: 4, Type: 3, Digest: good.Digest, Data: good.Data}, pull}, notFirst},
		"digest off by one bit":          {nil, []teesim.Event{bindEvent(hex.EncodeToString(flipped))}, nil, notFirst},
		"digest padded":                  {nil, []teesim.Event{bindEvent(text + "00")}, nil, notFirst},
		"digest cut":                     {nil, []teesim.Event{bindEvent(text[:64])}, nil, notFirst},
		"upper-case hex":                 {nil, []teesim.Event{bindEvent(strings.ToUpper(text))}, nil, notFirst},
		"trailing space":                 {nil, []teesim.Event{bindEvent(text + " ")}, nil, notFirst},
		"trailing bytes behind the text": {nil, []teesim.Event{change(func(e *teesim.Event) { e.Data = append(slices.Clone(e.Data), 0) })}, nil, notFirst},
		"length of the text too small":   {nil, []teesim.Event{change(func(e *teesim.Event) { e.Data = slices.Clone(e.Data); e.Data[4]-- })}, nil, notFirst},
		"another tag":                    {nil, []teesim.Event{change(func(e *teesim.Event) { e.Data = slices.Clone(e.Data); e.Data[0]++ })}, nil, notFirst},
		"another type of event":          {nil, []teesim.Event{change(func(e *teesim.Event) { e.Type = 13 })}, nil, notFirst},
		"content that was not measured":  {nil, []teesim.Event{pull}, []teesim.Event{{Register: 4, Type: 6, Digest: pull.Digest, Data: good.Data}}, "not what was measured"},
		"domain of another":              {nil, []teesim.Event{teesim.AgentEvent(4, "github.com/sealpod/sealpod2 BindInitData "+text)}, nil, notFirst},
		"another operation":              {nil, []teesim.Event{teesim.AgentEvent(4, "github.com/sealpod/sealpod bindInitData "+text)}, nil, notFirst},
		"RTMR2":                          {nil, []teesim.Event{change(func(e *teesim.Event) { e.Register = 3 })}, nil, notFirst},
		"a register that is not there":   {nil, []teesim.Event{change(func(e *teesim.Event) { e.Register = 5 })}, nil, notFirst},
		"MRCONFIGID of other init data":  {flipped, []teesim.Event{good}, nil, "started with other init data"},
		"MRCONFIGID of one bit":          {[]byte{1}, []teesim.Event{good}, nil, "started with other init data"},
		"no event":                       {nil, nil, nil, notFirst},
	} {
		if c.log == nil {
			c.log = c.events
		}
		_, err := v.Verify(t.Context(), toJSON(s.recorded(c.mrConfigID, c.events...), withFiller(c.log...)), verifier.Expected{ReportData: digest, InitData: init})
		if !errors.Is(err, verifier.ErrEvidence) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := v.Verify(t.Context(), toJSON(s.recorded(nil, good), nil), verifier.Expected{ReportData: digest, InitData: init})
	if !errors.Is(err, verifier.ErrEvidence) || !strings.Contains(err.Error(), "there is no event log") {
		t.Errorf("log missing: %v", err)
	}
}
