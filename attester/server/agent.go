package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/ttrpc"

	aa "github.com/sealpod/sealpod/api/attestationagent"
	"github.com/sealpod/sealpod/attester"
	"github.com/sealpod/sealpod/attester/eventlog"
	"github.com/sealpod/sealpod/attester/internal/gate"
	"github.com/sealpod/sealpod/attester/tdx"
	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// maxRuntimeData caps what a caller may have put into evidence, in bytes. TEEs
// take 64 at most; only sample has use for more.
const maxRuntimeData = 64 << 10

// maxEvidence is how many callers' evidence is made at once. Making it takes
// seconds on some machines, and devices serve in the order of coming: more in
// that queue would keep an attestation for a token, or the event of a pulled
// image, waiting past its deadline. Two, so that the device is in use while a
// certificate is fetched.
const maxEvidence = 2

// EventLog records a runtime event and extends a measurement register with it.
type EventLog interface {
	// Extend records the event in register, or in the configured one when
	// register is nil. Errors: attester.ErrUnsupported when the TEE has no
	// registers to extend.
	Extend(ctx context.Context, domain, operation, content string, register *uint64) error
}

// Deps is what an Agent is made of.
type Deps struct {
	Config Config // valid, see LoadConfig
	TEEs   *attester.Set
	// EventLog is nil when the TEE cannot extend measurements.
	EventLog EventLog
	InitData InitData     // what BindInitData returned
	Log      *slog.Logger // nil means slog.Default()
}

// Agent is the attestation agent behind its servers, see Register and
// RegisterGRPC. It is safe for concurrent use.
type Agent struct {
	tees     *attester.Set
	asked    asked // tees, for evidence that callers ask for
	events   EventLog
	eventsOn bool
	recorded []byte        // InitData.Recorded
	bound    sync.Once     // by a caller
	tokens   *tokens       // nil without a usable KBS
	kbs      *kbs.Client   // nil without a usable KBS
	as       *kbs.ASClient // nil without a usable attestation service
	unusable map[string]error
	last     atomic.Pointer[Attestation] // nil before the first one ended
	initData InitData
	started  time.Time
	count    *counters
}

// New returns an agent that serves at once; nothing is connected yet. A KBS or
// attestation service whose address or certificate is no good does not keep
// the agent from starting, since a pod may never ask for a token: it is logged,
// and GetToken says so. Close the agent when done.
func New(d Deps) *Agent {
	if d.Log == nil {
		d.Log = slog.Default()
	}
	a := &Agent{tees: d.TEEs, asked: asked{d.TEEs, make(gate.Gate, maxEvidence)}, events: d.EventLog, eventsOn: d.Config.EventLog.Enable,
		recorded: d.InitData.Recorded, initData: d.InitData, unusable: map[string]error{}, started: time.Now()}
	a.count = newCounters(a.started)
	if a.eventsOn && a.events == nil {
		d.Log.Warn("The event log is enabled but this TEE cannot extend measurements", "tee", d.TEEs.TEE())
	}
	if c := d.Config.Tokens.CoCoAS; c != nil {
		a.as, a.unusable["coco_as"] = c.client()
	}
	if c := d.Config.Tokens.KBS; c != nil {
		if a.kbs, a.unusable["kbs"] = c.client(d.Log); a.kbs != nil {
			var init *kbs.InitData
			if doc := d.InitData.Document; doc != nil {
				init = &kbs.InitData{Format: "toml", Body: doc.Text}
			}
			a.tokens = newTokens(func(ctx context.Context) (*kbs.Token, error) {
				last := newAttestation(time.Now())
				tok, err := a.kbs.Attest(kbs.WithSteps(ctx, last.step), d.TEEs, init, c.TEEKeyAlgorithm)
				last.end(err)
				a.last.Store(last)
				a.count.attested(last)
				return tok, err
			}, c.cache(), d.Log)
		}
	}
	for kind, err := range a.unusable {
		if err != nil {
			d.Log.Warn("No token of this type can be had", "type", kind, "err", err)
		}
	}
	return a
}

// Close ends what is running and closes connections.
func (a *Agent) Close() {
	if a.tokens != nil {
		a.tokens.close()
		a.kbs.Close()
	}
	if a.as != nil {
		a.as.Close()
	}
}

// asked are TEEs whose evidence callers ask for, at most maxEvidence at once.
type asked struct {
	*attester.Set
	turn gate.Gate
}

// Evidence waits for its turn and returns the evidence of the primary TEE.
func (s asked) Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error) {
	if err := s.turn.Lock(ctx); err != nil {
		return nil, err
	}
	defer s.turn.Unlock()
	return s.Set.Evidence(ctx, reportData)
}

// checkRuntimeData refuses what is longer than maxRuntimeData.
func checkRuntimeData(b []byte) error {
	if len(b) <= maxRuntimeData {
		return nil
	}
	return podvm.Explain(fmt.Errorf("%w: runtime data of %d bytes", podvm.ErrTooLarge, len(b)),
		fmt.Sprintf("runtime data of more than %d bytes", maxRuntimeData))
}

// errToken says that no token of the wanted type can be had.
var errToken = errors.New("no such token")

// token returns a token: type "kbs" as JSON with its TEE key, from the cache
// while that is allowed (see tokens), type "coco_as" as a bare JWT.
func (a *Agent) token(ctx context.Context, kind string) ([]byte, error) {
	switch {
	case kind == "kbs" && a.tokens != nil:
		refused, _ := ttrpc.GetMetadataValue(ctx, rpc.RefusedToken)
		tok, err := a.tokens.get(ctx, refused)
		if err != nil {
			return nil, err
		}
		return tok.Marshal()
	case kind == "coco_as" && a.as != nil:
		return a.as.Token(ctx, a.asked)
	case a.unusable[kind] != nil:
		return nil, podvm.Explain(a.unusable[kind], fmt.Sprintf("the address or certificate in [token_configs.%s] is not usable", kind))
	case kind == "kbs" || kind == "coco_as":
		return nil, podvm.Explain(fmt.Errorf("%w: %s", errToken, kind),
			fmt.Sprintf("the attestation agent's configuration has no [token_configs.%s]", kind))
	}
	return nil, podvm.Explain(fmt.Errorf("%w: type %q", errToken, podvm.Printable(kind, 64)),
		"the token type must be kbs or coco_as")
}

// extend records an event, but none that only the agent itself may record. A
// token from before the event is not given out after it.
func (a *Agent) extend(ctx context.Context, req *aa.ExtendRuntimeMeasurementRequest) (aa.RuntimeMeasurementResult, error) {
	if !a.eventsOn {
		return aa.RuntimeMeasurementResult_NOT_ENABLED, nil
	}
	if req.GetDomain() == eventlog.Domain {
		why := "the domain " + eventlog.Domain + " is the attestation agent's own"
		return aa.RuntimeMeasurementResult_OK, podvm.Explain(fmt.Errorf("%w: %s", eventlog.ErrEvent, why), why)
	}
	err := attester.ErrUnsupported
	if a.events != nil {
		err = a.events.Extend(ctx, req.GetDomain(), req.GetOperation(), req.GetContent(), req.RegisterIndex)
	}
	switch {
	case errors.Is(err, attester.ErrUnsupported):
		return aa.RuntimeMeasurementResult_NOT_SUPPORTED, nil
	case err != nil:
		return aa.RuntimeMeasurementResult_OK, err
	}
	a.measured()
	return aa.RuntimeMeasurementResult_OK, nil
}

// bindInitData binds a digest once more, which is no error where there is
// nothing to bind to, as upstream. RTMR3 is not extended for it: what is first
// there was settled before anybody could call.
func (a *Agent) bindInitData(ctx context.Context, digest []byte) error {
	err := a.tees.BindInitData(ctx, digest)
	switch {
	case errors.Is(err, attester.ErrUnsupported):
		return nil
	case errors.Is(err, tdx.ErrNoInitData) && a.recorded != nil && bytes.Equal(digest, a.recorded):
		return nil
	case err != nil:
		return err
	}
	a.bound.Do(a.measured) // a vTPM extends a register for it, the first time
	return nil
}

// measured forgets the token that does not know of the last measurement.
func (a *Agent) measured() {
	if a.tokens != nil {
		a.tokens.drop()
	}
}
