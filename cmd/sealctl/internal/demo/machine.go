package demo

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/ttrpc"

	"github.com/sealpod/sealpod/api/datahub"
	"github.com/sealpod/sealpod/cmd/sealctl/internal/trust"
	"github.com/sealpod/sealpod/relyingparty"
	"github.com/sealpod/sealpod/relyingparty/verifier"
	"github.com/sealpod/sealpod/teesim"
)

// Sample is the kind of machine without any TEE. There the demo needs neither
// root nor FUSE.
const Sample = "sample"

// Kinds are the kinds of machine that the pods of a demo can run on.
func Kinds() []string { return append([]string{Sample}, teesim.Kinds()...) }

// site is where pods run: machines of one kind. A nil site is without a TEE.
type site struct{ sim *teesim.Simulator }

// openSite returns machines of that kind from a new maker, whose keys are in dir
// as the pods' directories will be.
func openSite(kind, dir string) (*site, error) {
	if kind == "" || kind == Sample {
		return nil, nil
	}
	// The longest path of a TPM, before it is ready; see teesim/azure.
	if tpm := dir + "/measurement/machine/dev/tpmrm0.4194304"; strings.HasPrefix(kind, "az-") && len(tpm) > 107 {
		return nil, fmt.Errorf("paths below %s are too long for unix sockets; set TMPDIR to a shorter one", dir)
	}
	sim, err := teesim.Open(kind, filepath.Join(dir, "maker"))
	if errors.Is(err, teesim.ErrKind) {
		return nil, fmt.Errorf("%w and %s", err, Sample)
	}
	if err != nil {
		return nil, err
	}
	return &site{sim}, nil
}

// verifiers are what a relying party needs that trusts the site; nil means its
// default, which is for samples.
func (s *site) verifiers() ([]verifier.Verifier, error) {
	if s == nil {
		return nil, nil
	}
	return trust.Verifiers(trust.Options{Simulator: s.sim.Trust()})
}

// boot starts a machine for the pod of g with the digest of the pod's init data.
// The zero Launch is a good machine.
func (s *site) boot(ctx context.Context, g *guest, l teesim.Launch) error {
	doc, err := os.ReadFile(g.initData)
	if err != nil {
		return err
	}
	digest := sha256.Sum256(doc)
	l.InitData = digest[:]
	g.machine, err = s.sim.Boot(ctx, filepath.Join(g.dir, "machine"), l)
	return err
}

// expected are the reference values of the pod's machine, and of its init data
// in the form that evidence of its TEE has it.
func expected(g *guest) (map[string]any, error) {
	doc, err := os.ReadFile(g.initData)
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(doc)
	bound := digest[:]
	switch tee := g.machine.TEE(); {
	case tee == "tdx": // MRCONFIGID has 48 bytes
		bound = append(bound, make([]byte, 16)...)
	case strings.HasPrefix(tee, "az-"): // PCR 8 after it was extended once
		pcr := sha256.Sum256(append(make([]byte, sha256.Size), bound...))
		bound = pcr[:]
	}
	values := maps.Clone(g.machine.ReferenceValues())
	values["init_data"] = []string{hex.EncodeToString(bound)}
	return values, nil
}

// fault is a machine that must not get the owner's secret.
type fault struct {
	id, title string
	want      string // the reason must contain this
	launch    teesim.Launch
	initData  string // what stands behind the owner's
	makers    bool   // the relying party trusts AMD and Intel
}

// faults are what a host, or whoever neglects its firmware, can do to a machine.
func faults() []fault {
	return []fault{
		{id: "measurement", title: "A machine that booted another kernel", want: "executables", launch: teesim.Launch{Kernel: []byte("a kernel with a back door")}},
		{id: "init-data", title: "A machine started with other init data", want: "init_data", initData: "# and a line of the host's\n"},
		{id: "debug", title: "A machine the host may debug", want: "debug", launch: teesim.Launch{Debug: true}},
		{id: "stale-tcb", title: "A machine whose firmware misses an update", want: "tcb", launch: teesim.Launch{StaleTCB: true}},
		{id: "simulator", title: "A simulated machine, where only real ones are trusted", want: "evidence of a simulator", makers: true},
	}
}

// try starts a pod on a machine with a fault and asks for the owner's secret.
// The pod's software is in order: what refuses is the relying party.
func (w *story) try(ctx context.Context, f fault) (err error) {
	dir := filepath.Join(w.dir, f.id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("%w: %w", errPrepare, err)
	}
	url := w.own.url()
	if f.makers {
		strict, err := openStrict(ctx, dir)
		if err != nil {
			return fmt.Errorf("%w: %w", errPrepare, err)
		}
		defer strict.stop() //nolint:errcheck // nothing in it is of use any more
		url = "http://" + strict.http.addr
	}
	g, err := w.own.guestConfig(ctx, dir, url)
	if err != nil {
		return fmt.Errorf("%w: %w", errPrepare, err)
	}
	// The owner's init data is one document for all pods: real ones find sockets
	// and directories in the same places.
	doc, err := os.ReadFile(w.pod.initData)
	if err == nil {
		err = os.WriteFile(g.initData, append(doc, f.initData...), 0o600)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errPrepare, err)
	}
	if err := w.site.boot(ctx, g, f.launch); err != nil {
		return fmt.Errorf("%w: %w", errPrepare, err)
	}
	p, err := startPod(ctx, w.sealpod, g)
	defer func() {
		if stopErr := p.stop(); stopErr != nil {
			err = errors.Join(fmt.Errorf("%w: %w", errPrepare, stopErr), err)
		}
	}()
	if err != nil {
		return fmt.Errorf("%w: %w", errPrepare, err)
	}
	return p.hub.Do(ctx, func(c *ttrpc.Client) error {
		_, err := datahub.NewGetResourceServiceClient(c).GetResource(ctx, &datahub.GetResourceRequest{ResourcePath: "kbs:///" + secretPath})
		return err
	})
}

// strict is a relying party that trusts AMD and Intel only.
type strict struct {
	rp   *relyingparty.Server
	http *server
}

func openStrict(ctx context.Context, dir string) (*strict, error) {
	list, err := trust.Verifiers(trust.Options{SNPVCEK: []string{dir}, TDXCollateral: trust.IntelPCS})
	if err != nil {
		return nil, err
	}
	rp, err := relyingparty.Open(relyingparty.Config{StoreDir: filepath.Join(dir, "relying-party"), Verifiers: list})
	if err != nil {
		return nil, err
	}
	s, err := serve(ctx, rp.Handler())
	if err != nil {
		return nil, errors.Join(err, rp.Close())
	}
	return &strict{rp, s}, nil
}

func (s *strict) stop() error { return errors.Join(s.http.stop(), s.rp.Close()) }
