package eventlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"

	"github.com/sealpod/sealpod/podvm"
)

// ErrFull says that the log has no room for the event.
var ErrFull = errors.New("the event log is full")

// walPath and walTemp hold the event in progress.
const (
	walPath = "/run/attestation-agent/.wal_event_entry"
	walTemp = walPath + ".new"
)

// Log records events. Events are recorded one at a time, under the lock of the
// registers, and under one on the file, which other processes may have open as
// a Log too; it is safe for concurrent use.
type Log struct {
	platform   Platform
	registers  Registers
	defaultPCR uint64
	disk       disk
}

// Options says what a Log works on.
type Options struct {
	Host      podvm.Host
	Platform  Platform
	Registers Registers
	// DefaultPCR is the PCR of events that name none.
	DefaultPCR uint64
	Log        *slog.Logger // nil means slog.Default()
}

// Open makes the log if it is missing and completes an event that was
// interrupted, so that log and registers agree before anything is served.
//
// A default PCR that only the platform itself can extend is logged, since events
// may name another.
//
// Errors: ErrRegister for a default PCR that does not exist, ErrWAL.
func Open(ctx context.Context, o Options) (*Log, error) {
	return open(ctx, o, files{o.Host})
}

func open(ctx context.Context, o Options, d disk) (*Log, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	switch _, err := o.Platform.Register(o.DefaultPCR); {
	case errors.Is(err, ErrLocality):
		o.Log.Warn("Events that name no register cannot be recorded", "err", err)
	case err != nil:
		return nil, fmt.Errorf("opening the event log: default register: %w", err)
	}
	l := &Log{platform: o.Platform, registers: o.Registers, defaultPCR: o.DefaultPCR, disk: d}
	if err := d.create(Path); err != nil {
		return nil, fmt.Errorf("opening the event log: %w", err)
	}
	unlock, err := l.lock(ctx)
	if err != nil {
		return nil, fmt.Errorf("opening the event log: %w", err)
	}
	defer unlock()
	found, err := l.complete()
	if err != nil {
		return nil, fmt.Errorf("opening the event log: %w", err)
	}
	if found {
		o.Log.Warn("An interrupted event was completed in the event log", "file", Path)
	}
	return l, nil
}

// lock takes the registers and the log, and returns what gives them back.
func (l *Log) lock(ctx context.Context) (unlock func(), err error) {
	if err := l.registers.Lock(ctx); err != nil {
		return nil, err
	}
	file, err := l.disk.lock(ctx, Path)
	if err != nil {
		l.registers.Unlock()
		return nil, err
	}
	return func() {
		_ = file.Close() // read-only
		l.registers.Unlock()
	}, nil
}

// Extend measures the event in the register of pcr, nil meaning the default
// one, and appends it to the log. When it returns an error the register is
// unchanged, or the event is completed before the next one.
//
// Errors: ErrEvent, ErrRegister, ErrLocality, ErrFull, ErrWAL.
func (l *Log) Extend(ctx context.Context, domain, operation, content string, pcr *uint64) error {
	text, err := eventText(domain, operation, content)
	if err != nil {
		return err
	}
	number := l.defaultPCR
	if pcr != nil {
		number = *pcr
	}
	register, err := l.platform.Register(number)
	if err != nil {
		return fmt.Errorf("extending: %w", err)
	}
	unlock, err := l.lock(ctx)
	if err != nil {
		return fmt.Errorf("extending: %w", err)
	}
	defer unlock()
	if _, err := l.complete(); err != nil {
		return fmt.Errorf("completing the event before: %w", err)
	}
	if err := l.extend(newEntry(l.platform.Algorithm, register, text)); err != nil {
		return fmt.Errorf("extending register %d: %w", register, err)
	}
	return nil
}

// extend does one event from the start: nothing is pending.
func (l *Log) extend(e entry) error {
	offset, err := l.disk.size(Path)
	if err != nil {
		return err
	}
	if offset+int64(len(e.marshal())) > maxLog {
		return podvm.Explain(fmt.Errorf("%w: %d bytes", ErrFull, offset), ErrFull.Error())
	}
	current, err := l.read(e.register)
	if err != nil {
		return err
	}
	p := pending{offset: offset, expected: l.platform.Algorithm.sum(current, e.digest), entry: e}
	if err := l.disk.write(walTemp, p.marshal()); err != nil {
		return err
	}
	if err := l.disk.rename(walTemp, walPath); err != nil {
		return err
	}
	if err := l.registers.Extend(e.register, e.digest); err != nil {
		return l.undo(e.register, current, err)
	}
	return l.finish(p)
}

// undo drops the pending event after a failed extension, unless the register
// changed all the same; then the next call completes it.
func (l *Log) undo(register uint32, before []byte, cause error) error {
	now, err := l.read(register)
	if err == nil && bytes.Equal(now, before) {
		err = l.disk.remove(walPath)
	}
	return errors.Join(cause, err)
}

// complete brings a pending event to its end and tells whether there was one.
func (l *Log) complete() (bool, error) {
	raw, err := l.disk.read(walPath, int64(12+l.platform.Algorithm.Size+maxText))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	var p pending
	if err == nil {
		p, err = parsePending(l.platform.Algorithm, raw)
	}
	if err == nil {
		err = l.completeEvent(p)
	}
	if err != nil {
		return true, podvm.Explain(fmt.Errorf("reading %s: %w", walPath, err), "an interrupted event log entry cannot be completed")
	}
	return true, nil
}

func (l *Log) completeEvent(p pending) error {
	live, err := l.read(p.entry.register)
	if err != nil {
		return err
	}
	switch {
	case bytes.Equal(live, p.expected): // only the log may lack it
	case bytes.Equal(l.platform.Algorithm.sum(live, p.entry.digest), p.expected):
		if err := l.registers.Extend(p.entry.register, p.entry.digest); err != nil {
			return fmt.Errorf("extending register %d: %w", p.entry.register, err)
		}
	default:
		return fmt.Errorf("%w: register %d holds %x", ErrWAL, p.entry.register, live)
	}
	return l.finish(p)
}

// finish puts the entry of an extended register at its place in the log, over
// a part of it that may be there.
func (l *Log) finish(p pending) error {
	b := p.entry.marshal()
	size, err := l.disk.size(Path)
	if err != nil {
		return err
	}
	if size < p.offset || size > p.offset+int64(len(b)) {
		return fmt.Errorf("%w: %s has %d bytes, want %d and at most one entry", ErrWAL, Path, size, p.offset)
	}
	if err := l.disk.writeAt(Path, p.offset, b); err != nil {
		return err
	}
	return l.disk.remove(walPath)
}

func (l *Log) read(register uint32) ([]byte, error) {
	b, err := l.registers.Read(register)
	if err != nil {
		return nil, fmt.Errorf("reading register %d: %w", register, err)
	}
	if len(b) != l.platform.Algorithm.Size {
		return nil, fmt.Errorf("reading register %d: %d bytes, want %d", register, len(b), l.platform.Algorithm.Size)
	}
	return b, nil
}
