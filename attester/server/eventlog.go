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
	platform, ok := eventlog.PlatformOf(tees.TEE())
	m, can := tees.Primary.(attester.Measurer)
	if !ok || !can {
		return nil, nil
	}
	registers := m.Registers()
	if registers == nil {
		return nil, nil
	}
	l, err := eventlog.Open(ctx, eventlog.Options{
		Host: host, Platform: platform, Registers: registers, DefaultPCR: c.EventLog.InitPCR, Log: log,
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}
