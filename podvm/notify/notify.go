// Package notify tells systemd how a daemon fares: that it serves, that it is
// about to end, and, as long as it really answers, that it is not stuck. Where
// no service manager asks for that, nothing here does anything.
//
// Data path: every daemon calls Serving beside its server; the units that start
// the daemons have Type=notify and WatchdogSec.
//
// Trust: the variables NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID come from
// whoever started the daemon, who could as well have started another program.
// Source: sd_notify(3), sd_watchdog_enabled(3).
package notify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"time"
)

const (
	// startTime is how long the first answer of a daemon may take before it is
	// asked again.
	startTime = 10 * time.Second
	// startPause is the time between two questions before the first answer.
	startPause = 50 * time.Millisecond
	// tellTime is how long a service manager may take to read.
	tellTime = 2 * time.Second
	// minInterval is the least interval of a watchdog that is kept, in
	// microseconds.
	minInterval = 1000
)

// Ready tells systemd that the daemon serves. A failure is a warning in log.
func Ready(log *slog.Logger) { tell(log, "READY=1") }

// Stopping tells systemd that the daemon is about to end, which may take as long
// as its running calls. A failure is a warning in log.
func Stopping(log *slog.Logger) { tell(log, "STOPPING=1") }

// Watch tells systemd four times in each watchdog interval that the daemon is not
// stuck, but only after alive answered nil within half of it. So a question that is
// lost is asked again in time. Without a watchdog it returns at once, else when ctx
// ends. The context of alive ends with that half.
func Watch(ctx context.Context, log *slog.Logger, alive func(context.Context) error) {
	interval := watchdog(log)
	if interval == 0 {
		return
	}
	feed(ctx, interval, func() {
		if ask(ctx, log, interval/2, alive) {
			tell(log, "WATCHDOG=1")
		}
	})
}

// feed calls once four times in each interval until ctx ends.
func feed(ctx context.Context, interval time.Duration, once func()) {
	tick := time.NewTicker(interval / 4)
	defer tick.Stop()
	for {
		once()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Serving is all of it for a daemon whose server starts meanwhile: Ready once
// alive answers nil, Watch until ctx ends, then Stopping. A daemon that ends
// before it was ready has nothing to tell.
func Serving(ctx context.Context, log *slog.Logger, alive func(context.Context) error) {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return
	}
	pause := time.NewTicker(startPause)
	defer pause.Stop()
	for !ask(ctx, log, startTime, alive) {
		select {
		case <-pause.C:
		case <-ctx.Done():
			return
		}
	}
	Ready(log)
	Watch(ctx, log, alive)
	<-ctx.Done()
	Stopping(log)
}

// ask reports whether alive answers nil within limit.
func ask(ctx context.Context, log *slog.Logger, limit time.Duration, alive func(context.Context) error) bool {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := alive(limited)
	if err != nil && ctx.Err() == nil {
		log.Warn("The daemon's own address does not answer", "err", err)
	}
	return err == nil
}

// watchdog returns how often systemd wants to hear that this process is not
// stuck, 0 for never.
func watchdog(log *slog.Logger) time.Duration {
	usec, pid := os.Getenv("WATCHDOG_USEC"), os.Getenv("WATCHDOG_PID")
	if os.Getenv("NOTIFY_SOCKET") == "" || usec == "" || pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0
	}
	n, err := strconv.ParseUint(usec, 10, 32) // an hour and more
	if err != nil || n < minInterval {
		log.Warn("The watchdog of systemd cannot be kept at rest", "err", fmt.Errorf("WATCHDOG_USEC is %.40q", usec))
		return 0
	}
	return time.Duration(n) * time.Microsecond
}

// tell sends state to the service manager, if there is one. The send is bounded,
// since a service manager that hangs leaves its socket full.
func tell(log *slog.Logger, state string) {
	addr := os.Getenv("NOTIFY_SOCKET")
	if addr == "" {
		return
	}
	if err := send(addr, state); err != nil {
		log.Warn("The service manager cannot be told", "state", state, "err", err)
	}
}

func send(addr, state string) (err error) {
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: addr, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if err := conn.SetWriteDeadline(time.Now().Add(tellTime)); err != nil {
		return err
	}
	_, err = conn.Write([]byte(state))
	return err
}
