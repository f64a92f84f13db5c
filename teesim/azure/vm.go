package azure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/uuid"

	"github.com/sealpod/sealpod/podvm/rpc"
)

// ErrPath says that a machine's directory has a name too long for a socket in it.
var ErrPath = errors.New("the path of the TPM's socket is too long, it takes a directory with a shorter name")

// maxSocketPath is the longest path of a unix socket in bytes.
// Source: unix(7), sun_path, with a zero at its end.
const maxSocketPath = 107

// Options say what a VM is like. Root and Hardware must be there.
type Options struct {
	// Root is the machine's directory; its TPM is the socket ROOT/dev/tpmrm0.
	Root string
	// Dir is where the TPM keeps its state while the VM runs, in a directory of
	// its own that only this user can enter; "" is the one for temporary files.
	// The guest must not see it.
	Dir string
	// Hardware is what signs: TDX or SNP.
	Hardware Hardware
	// Kernel, CommandLine and Initrd are the guest's unified kernel image, which
	// PCR 11 covers; a nil Initrd is none.
	Kernel, Initrd []byte
	CommandLine    string
	// Refresh is the shortest time between two renewals of the HCL report: a
	// guest that starts to read it sooner gets the old one. Azure's is 2 s; with
	// zero each reading is of a new report.
	Refresh time.Duration
	// Log gets what happens; nil is nothing.
	Log *slog.Logger

	limits limits // of tests
}

// VM is a running simulated VM. It is safe for concurrent use.
type VM struct {
	hardware Hardware
	boot     []measurement
	log      *slog.Logger
	tpm      *softTPM
	imds     *imds

	cancel context.CancelFunc
	wg     sync.WaitGroup
	closed sync.Once
	result error // of Close

	mu  sync.Mutex
	err error
}

// Start boots a VM. ctx bounds the boot only; Close ends the VM. Errors:
// ErrNoTPM, ErrPath, ErrTPM.
func Start(ctx context.Context, o Options) (_ *VM, err error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.limits == (limits{}) {
		o.limits = usualLimits
	}
	path := filepath.Join(o.Root, "dev/tpmrm0")
	if n := len(path) + len(fmt.Sprintf(".%d", os.Getpid())); n > maxSocketPath { // the name it has before it is ready
		return nil, fmt.Errorf("%w: %s would take %d of %d bytes", ErrPath, path, n, maxSocketPath)
	}
	tpm, err := startTPM(o.Dir)
	if err != nil {
		return nil, err
	}
	v := &VM{hardware: o.Hardware, boot: measureBoot(o), log: o.Log, tpm: tpm, cancel: func() {}}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.Close())
		}
	}()
	start := time.Now()
	release := tpm.stopWith(ctx)
	p := &paravisor{hardware: o.Hardware, vmID: strings.ToUpper(uuid.NewString()), rest: o.Refresh, log: o.Log}
	err = tpm.Do(func(t transport.TPM) error {
		if p.key, p.password, err = provision(t, v.boot); err != nil {
			return err
		}
		return p.renew(t)
	})
	if !release() {
		return nil, errors.Join(context.Cause(ctx), err)
	}
	if err != nil {
		return nil, fmt.Errorf("preparing the TPM: %w", err)
	}
	if v.imds, err = startIMDS(ctx, o.Hardware, o.Log); err != nil {
		return nil, err
	}
	l, err := rpc.Listen(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("offering the TPM: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("offering the TPM: %w", err), l.Close())
	}
	v.run(p, l, o.limits)
	o.Log.Debug("A simulated Azure VM runs", "tpm", path, "imds", v.imds.url, "dur", time.Since(start))
	return v, nil
}

// run starts what serves the guest.
func (v *VM) run(p *paravisor, l net.Listener, limits limits) {
	ctx, cancel := context.WithCancel(context.Background())
	v.cancel = cancel
	f := &front{limits: limits, tpm: v.tpm, paravisor: p, log: v.log, loaded: loaded{},
		clients: map[*client]struct{}{}, left: make(chan struct{}, 1)}
	v.wg.Go(func() { f.serve(ctx, l) })
	v.wg.Go(func() {
		select {
		case <-ctx.Done():
		case <-v.tpm.gone:
			if ctx.Err() == nil {
				v.log.Error("The simulated TPM is gone", "err", v.tpm.end)
				v.mu.Lock()
				v.err = v.tpm.end
				v.mu.Unlock()
			}
			cancel() // guests see a machine without a TPM
		}
	})
}

// IMDS returns the base URL of the metadata service.
func (v *VM) IMDS() string { return v.imds.url }

// Err returns why the VM's TPM ended by itself, an ErrTPM, and nil as long as it
// runs. A VM without a TPM has no TPM socket either.
func (v *VM) Err() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.err
}

// PCR returns the value of a PCR from 0 to 23 in the SHA-256 bank.
func (v *VM) PCR(i int) ([]byte, error) {
	if i < 0 || i > 23 {
		return nil, fmt.Errorf("PCR %d: there are 0 to 23", i)
	}
	var mask [3]byte
	mask[i/8] = 1 << (i % 8)
	var out *tpm2.PCRReadResponse
	err := v.tpm.Do(func(t transport.TPM) (err error) {
		out, err = tpm2.PCRRead{PCRSelectionIn: tpm2.TPMLPCRSelection{
			PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: mask[:]}},
		}}.Execute(t)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading PCR %d: %w", i, err)
	}
	if len(out.PCRValues.Digests) != 1 {
		return nil, fmt.Errorf("reading PCR %d: %d values", i, len(out.PCRValues.Digests))
	}
	return bytes.Clone(out.PCRValues.Digests[0].Buffer), nil
}

// Close ends the VM: its socket, its metadata service, its TPM and the TPM's
// state. It may be called more than once.
func (v *VM) Close() error {
	v.closed.Do(func() {
		v.cancel()
		// The TPM first: then no command takes longer than its client waits.
		v.result = v.tpm.Close()
		if v.imds != nil {
			v.result = errors.Join(v.result, v.imds.Close())
		}
		v.wg.Wait()
	})
	return v.result
}
