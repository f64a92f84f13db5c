// Package relay splices the ttrpc frames of one host connection with those of
// one connection to kata-agent.
//
// Data path: cloud-api-adaptor's ttrpc client -> TLS -> the forwarder -> this
// package -> kata-agent's unix socket.
//
// Trust: neither side is trusted. Frames are capped, streams and queued bytes
// are counted, and whatever one connection does, it does to itself alone.
package relay

import (
	"context"
	"log/slog"
	"net"
)

// Method may change the payload of one method's requests, the bytes of the
// request message, before the agent gets them. It runs in a goroutine of its
// own. ctx ends at the caller's deadline and with the host connection. An error
// goes to the caller: as it is when it is a gRPC status, otherwise as Unknown
// with the sentence that podvm.Explain attached.
type Method func(ctx context.Context, payload []byte) ([]byte, error)

// Config says what a Relay connects.
type Config struct {
	// Dial opens one connection to the agent. It is called again until the
	// deadlines of the calls that wait for it.
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
type Relay struct{ cfg Config }

// New returns a Relay.
func New(cfg Config) *Relay {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Metrics == nil {
		cfg.Metrics = new(Metrics)
	}
	return &Relay{cfg}
}

// Serve splices host until it or ctx ends, closes it and returns why it ended:
// nil when the host hung up between two frames. No goroutine survives it.
func (r *Relay) Serve(ctx context.Context, host net.Conn) error {
	defer host.Close()
	<-ctx.Done()
	return context.Cause(ctx)
}
