package server

import (
	"context"
	"log/slog"

	"github.com/sealpod/sealpod/attester"
	"github.com/sealpod/sealpod/attester/eventlog"
	"github.com/sealpod/sealpod/podvm"
)

// OpenEventLog opens the event log of the primary TEE and completes an event
// that was interrupted. It returns nil when the log is not enabled, or when the
// TEE or its kernel cannot extend registers: the agent serves all the same and
// answers NOT_ENABLED or NOT_SUPPORTED.
//
// Errors: those of eventlog.Open.
func OpenEventLog(ctx context.Context, c Config, tees *attester.Set, host podvm.Host, log *slog.Logger) (EventLog, error) {
	if !c.EventLog.Enable {
		return nil, nil
	}
	l, err := openEventLog(ctx, c, tees, host, log)
	if l == nil {
		return nil, err // not a nil *eventlog.Log in an interface
	}
	return l, nil
}

// openEventLog is OpenEventLog whether the log is enabled or not.
func openEventLog(ctx context.Context, c Config, tees *attester.Set, host podvm.Host, log *slog.Logger) (*eventlog.Log, error) {
	platform, ok := eventlog.PlatformOf(tees.TEE())
	m, can := tees.Primary.(attester.Measurer)
	if !ok || !can {
		return nil, nil
	}
	registers := m.Registers()
	if registers == nil {
		return nil, nil
	}
	pcr := platform.DefaultPCR
	if c.EventLog.InitPCR != nil {
		pcr = *c.EventLog.InitPCR
	}
	return eventlog.Open(ctx, eventlog.Options{
		Host: host, Platform: platform, Registers: registers, DefaultPCR: pcr, Log: log,
	})
}
