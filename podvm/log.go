package podvm

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// LogLevel turns a level name into a slog level. Accepted, in any case:
// trace, debug, info, warn, error, off, as the RUST_LOG variable of the
// programs Sealpod replaces has them. A filter list such as
// "warn,attestation_agent=debug" takes its first plain word; other words are
// target filters with no meaning here.
func LogLevel(name string) (slog.Level, error) {
	for _, word := range strings.Split(name, ",") {
		switch strings.ToLower(strings.TrimSpace(word)) {
		case "trace":
			return slog.LevelDebug - 4, nil
		case "debug":
			return slog.LevelDebug, nil
		case "info":
			return slog.LevelInfo, nil
		case "warn", "warning":
			return slog.LevelWarn, nil
		case "error":
			return slog.LevelError, nil
		case "off":
			return slog.LevelError + 100, nil
		}
	}
	return 0, fmt.Errorf("log level %q: want trace, debug, info, warn, error or off", Printable(name, 64))
}

// NewLogger returns a logger for the applet that writes to w. RUST_LOG of host
// wins over level; SEALPOD_LOG_FORMAT=json selects JSON lines, anything else
// text. The level can be changed later through the returned LevelVar.
func NewLogger(w io.Writer, host Host, applet, level string) (*slog.Logger, *slog.LevelVar, error) {
	if env := host.Getenv("RUST_LOG"); env != "" {
		level = env
	}
	if level == "" {
		level = "info"
	}
	lv := new(slog.LevelVar)
	l, err := LogLevel(level)
	if err != nil {
		return nil, nil, err
	}
	lv.Set(l)
	opts := &slog.HandlerOptions{Level: lv}
	var h slog.Handler = slog.NewTextHandler(w, opts)
	if host.Getenv("SEALPOD_LOG_FORMAT") == "json" {
		h = slog.NewJSONHandler(w, opts)
	}
	return slog.New(h).With("applet", applet), lv, nil
}
