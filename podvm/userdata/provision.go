package userdata

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/sealpod/sealpod/podvm"
)

// DefaultTimeout is how long user data is waited for, as upstream.
const DefaultTimeout = 3 * time.Minute

// Pauses between tries to get user data: the first, doubled up to the last,
// which is upstream's.
const (
	firstPause = 500 * time.Millisecond
	lastPause  = 5 * time.Second
)

// Config says what Provision does.
type Config struct {
	Host podvm.Host
	// Source is one of Sources; "" is Auto.
	Source string
	// Timeout bounds finding and getting user data; 0 means DefaultTimeout.
	Timeout time.Duration
	// MeasuredOnly refuses user data that configures the attestation agent or the
	// data hub otherwise than by init data.
	MeasuredOnly bool
	// NoTPM leaves PCR 8 alone. It is for images whose boot loader extends it.
	NoTPM bool
	Log   *slog.Logger // nil means slog.Default()
}

// provisioner is a run of Provision.
type provisioner struct {
	Config
	http *metadata
	// seen is what the last try found in the mounted file.
	seen []byte
	// pause waits; an error says that ctx has ended.
	pause func(context.Context, time.Duration) error
}

// Provision gets the user data, checks all of it, measures the init data and
// writes the files. Getting and parsing are tried until the time is up: user data
// may come later than the VM. Anything else that is wrong stays wrong and is an
// error at once. After an error no file is there that was not before.
//
// It may be run again, and changes nothing then unless user data did.
//
// Errors: ErrCloudConfig, initdata.ErrInitData, ErrUnmeasured, ErrMeasure,
// podvm.ErrTooLarge, context.DeadlineExceeded beside the last failure when time
// is up, and those of files and networks.
func Provision(ctx context.Context, c Config) error {
	return newProvisioner(c).run(ctx)
}

func newProvisioner(c Config) *provisioner {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	if c.Source == "" {
		c.Source = Auto
	}
	return &provisioner{Config: c, http: newMetadata(), pause: pause}
}

func (p *provisioner) run(ctx context.Context) error {
	if !slices.Contains(Sources(), p.Source) {
		return fmt.Errorf("%w: %q: want one of %s", errNoSource, podvm.Printable(p.Source, 32), strings.Join(Sources(), ", "))
	}
	start := time.Now()
	entries, source, err := p.userData(ctx)
	if err != nil {
		return fmt.Errorf("getting user data: %w", err)
	}
	p.Log.Info("User data is here", "source", source, "files", len(entries), "dur", time.Since(start))
	todo, err := makePlan(p.Config, entries, source)
	if err != nil {
		return fmt.Errorf("checking user data: %w", err)
	}
	if err := p.measure(ctx, todo.initData.Digest()); err != nil {
		return fmt.Errorf("measuring init data: %w", err)
	}
	if err := write(p.Host, todo.files); err != nil {
		return err
	}
	p.Log.Info("The pod VM is configured", "bytes", todo.logged(), "algorithm", todo.initData.Algorithm,
		"digest", string(todo.files[digestFile]), "dur", time.Since(start))
	return nil
}

// userData returns the entries of write_files and where they are from; with None
// there are no entries.
func (p *provisioner) userData(ctx context.Context) (entries []writeFile, source string, err error) {
	ctx, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	for try, wait := 1, firstPause; ; try, wait = try+1, min(2*wait, lastPause) {
		entries, source, err = p.try(ctx)
		if err == nil {
			return entries, source, nil
		}
		p.Log.Warn("There is no usable user data yet", "source", source, "try", try, "err", err)
		switch over := p.pause(ctx, wait); {
		case errors.Is(over, context.DeadlineExceeded):
			return nil, "", fmt.Errorf("%w: nothing usable in %v and %d tries, the last: %w", over, p.Timeout, try, err)
		case over != nil:
			return nil, "", fmt.Errorf("%w: after %d tries, the last: %w", over, try, err)
		}
	}
}

func (p *provisioner) try(ctx context.Context) (entries []writeFile, source string, err error) {
	source = p.Source
	if source == Auto {
		if source, err = findSource(p.Host); err != nil {
			return nil, Auto, err
		}
	}
	if source == None {
		return nil, None, nil
	}
	raw, err := p.get(ctx, source)
	if err != nil {
		return nil, source, err
	}
	entries, err = parseCloudConfig(raw)
	return entries, source, err
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
