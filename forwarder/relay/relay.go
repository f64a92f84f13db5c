// Package relay splices the ttrpc frames of a host connection with those of a
// connection of its own to kata-agent, and lets the calls that must be changed
// on their way be changed.
//
// Data path: cloud-api-adaptor's ttrpc client, TLS, the forwarder's listener,
// this package, kata-agent's unix socket. Two goroutines per connection read
// frames on one side and write them on the other, as many at once as are there;
// only calls that are held back, because they are changed or because the agent
// is absent, take another way.
//
// Trust: neither side is trusted. Frames are capped, calls, goroutines and bytes
// that wait are counted, each wait for a peer has an end, and what a connection
// does it does to itself alone. The relay does not know the services: whether
// the agent may be asked a thing is for the agent's policy.
package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
)

// Method may change the payload of one method's requests, the bytes of the
// request message, before the agent gets them. It runs in a goroutine of its
// own, while other calls overtake. ctx ends with the host connection and shortly
// before the caller's deadline, so that the caller can be told why. An error
// goes to the caller: as it is when it is a gRPC status, otherwise as Unknown
// with the sentence that podvm.Explain attached.
type Method func(ctx context.Context, payload []byte) ([]byte, error)

// Config says what a Relay connects.
type Config struct {
	// Dial opens one connection to the agent. It is called at the first request
	// of a host connection and when one comes after the agent was lost; when it
	// fails, again until nobody waits for it any more.
	Dial func(ctx context.Context) (net.Conn, error)
	// Methods are the calls that are changed on their way, by names like
	// "/grpc.AgentService/CreateContainer". All others pass as bytes.
	Methods map[string]Method
	// Log is where connections are reported; nil means nowhere.
	Log *slog.Logger
	// Metrics counts; nil means not.
	Metrics *Metrics
}

// Relay splices connections. It is safe for concurrent use.
type Relay struct {
	dial    func(ctx context.Context) (net.Conn, error)
	methods map[string]map[string]Method // by service and method
	log     *slog.Logger
	metrics *Metrics

	mu       sync.Mutex
	sessions map[*session]bool
}

// New returns a Relay.
func New(cfg Config) *Relay {
	r := &Relay{dial: cfg.Dial, methods: map[string]map[string]Method{}, log: cfg.Log, metrics: cfg.Metrics, sessions: map[*session]bool{}}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.metrics == nil {
		r.metrics = new(Metrics)
	}
	for name, m := range cfg.Methods {
		service, method, _ := strings.Cut(strings.TrimPrefix(name, "/"), "/")
		if r.methods[service] == nil {
			r.methods[service] = map[string]Method{}
		}
		r.methods[service][method] = m
	}
	return r
}

// method returns what changes the calls of a method, or nil.
func (r *Relay) method(service, method []byte) Method {
	return r.methods[string(service)][string(method)]
}

// Serve splices host with an agent connection of its own until host or ctx ends,
// closes both and returns why: nil when the host hung up between two frames,
// ErrHalfFrame or ErrNotReading when it was cut off. A lost agent is no reason.
// No goroutine survives it. That a silent host is dead is for TCP keep-alives to
// find out, which Go's listeners turn on.
func (r *Relay) Serve(ctx context.Context, host net.Conn) error {
	r.metrics.open.Add(1)
	defer r.metrics.open.Add(-1)
	s := newSession(ctx, r, host)
	r.add(s)
	defer r.remove(s)
	err := s.fromHost()
	if errors.Is(err, io.EOF) {
		err = errHungUp
	}
	s.end(fmt.Errorf("reading from the host: %w", err))
	s.owned.Wait()
	if err = context.Cause(s.ctx); errors.Is(err, errHungUp) {
		return nil
	}
	return err
}

// errHungUp is the good end of a host connection.
var errHungUp = errors.New("the host hung up")

func (r *Relay) add(s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sessions[s] = true
}

func (r *Relay) remove(s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.sessions, s)
}

// Running returns how many calls want an answer soon: those that are held back,
// and those the agent has not answered whose callers gave a deadline. Calls
// without one, such as WaitProcess, may last as long as the pod.
func (r *Relay) Running() (calls int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for s := range r.sessions {
		calls += s.running()
	}
	return calls
}
