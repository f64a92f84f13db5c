package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/hostrun"
)

// runDaemon runs serve until it returns or a signal asks it to stop: SIGINT and
// SIGHUP as upstream, SIGTERM because systemd sends it. Logs go to stderr,
// where the journal reads them; level is the configured one, RUST_LOG wins.
func runDaemon(applet, level string, serve func(ctx context.Context, host podvm.Host, log *slog.Logger) error) error {
	host := podvm.HostFromEnv()
	log, _, err := podvm.NewLogger(os.Stderr, host, applet, level)
	if err != nil {
		return err
	}
	slog.SetDefault(log)
	if err := hostrun.Take(); err != nil {
		return err
	}
	if err := podvm.NoCoreDumps(); err != nil {
		log.Warn("Core dumps stay possible", "err", err)
	}
	if os.Getenv("GOGC") == "" {
		// The disk of a pod VM is often its memory. Collecting twice as often
		// costs a pull less than a hundredth of its time.
		debug.SetGCPercent(50)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGHUP, syscall.SIGTERM)
	defer stop()
	log.Info("Starting", "version", podvm.Version())
	if host.Simulated() {
		log.Warn("The machine is a simulation: its evidence proves nothing to a real relying party", "root", host.Root, "metadata", host.IMDS)
	}
	err = serve(ctx, host, log)
	if err == nil {
		log.Info("Stopped")
	}
	return err
}
