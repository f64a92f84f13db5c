package podvm

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// LogLevel turns a level name into a slog level. Accepted, in any case:
// trace, debug, info, warn, error, off, as the RUST_LOG variable of the
// programs Sealpod replaces has them. There are no targets here: of a filter
// list such as "warn,attestation_agent=debug" the first plain level counts, and
// if there is none the level of the first target.
func LogLevel(name string) (slog.Level, error) {
	words := strings.Split(name, ",")
	for _, word := range words {
		if l, ok := plainLevel(word); ok {
			return l, nil
		}
	}
	for _, word := range words {
		if target, level, ok := strings.Cut(word, "="); ok && strings.TrimSpace(target) != "" {
			if l, ok := plainLevel(level); ok {
				return l, nil
			}
		}
	}
	return 0, fmt.Errorf("log level %q: want trace, debug, info, warn, error or off", Printable(name, 64))
}

func plainLevel(word string) (slog.Level, bool) {
	switch strings.ToLower(strings.TrimSpace(word)) {
	case "trace":
		return slog.LevelDebug - 4, true
	case "debug":
		return slog.LevelDebug, true
	case "info":
		return slog.LevelInfo, true
	case "warn", "warning":
		return slog.LevelWarn, true
	case "error":
		return slog.LevelError, true
	case "off":
		return slog.LevelError + 100, true
	}
	return 0, false
}

// LevelName is the name of a level, as LogLevel takes it.
func LevelName(l slog.Level) string {
	for _, name := range []string{"trace", "debug", "info", "warn", "error"} {
		if known, _ := plainLevel(name); l <= known {
			return name
		}
	}
	return "off"
}

// leveled is a handler whose level can be found again.
type leveled struct {
	slog.Handler
	level *slog.LevelVar
}

// WithAttrs implements slog.Handler.
func (l leveled) WithAttrs(attrs []slog.Attr) slog.Handler {
	return leveled{l.Handler.WithAttrs(attrs), l.level}
}

// WithGroup implements slog.Handler.
func (l leveled) WithGroup(name string) slog.Handler {
	return leveled{l.Handler.WithGroup(name), l.level}
}

// LevelOf returns what changes the level of a logger of NewLogger, and of those
// made from it; nil of any other.
func LevelOf(log *slog.Logger) *slog.LevelVar {
	if l, ok := log.Handler().(leveled); ok {
		return l.level
	}
	return nil
}

// NewLogger returns a logger for the applet that writes to w. RUST_LOG of host
// wins over level; SEALPOD_LOG_FORMAT=json selects JSON lines, anything else
// text. The level can be changed later through the returned LevelVar, or LevelOf.
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
	return slog.New(leveled{h, lv}).With("applet", applet), lv, nil
}
