package teesim

import (
	"context"
	"log/slog"
	"os"
	"time"

	"github.com/sealpod/sealpod/teesim/azure"
	"github.com/sealpod/sealpod/teesim/snp"
	"github.com/sealpod/sealpod/teesim/sysfs"
	"github.com/sealpod/sealpod/teesim/tdx"
)

// What a good machine boots, unless the launch says otherwise.
const (
	goodKernel      = "a kernel of the simulator"
	goodCommandLine = "console=ttyS0 root=/dev/dm-0 ro"
)

// boot starts the machine that m is to be.
func (s *Simulator) boot(ctx context.Context, m *Machine, l Launch) error {
	if l.Kernel == nil {
		l.Kernel = []byte(goodKernel)
	}
	if l.CommandLine == "" {
		l.CommandLine = goodCommandLine
	}
	switch s.kind {
	case TDX:
		return s.bootTDX(ctx, m, l)
	case SNP:
		return s.bootSNP(ctx, m, l)
	default:
		return s.bootAzure(ctx, m, l)
	}
}

func (s *Simulator) bootTDX(ctx context.Context, m *Machine, l Launch) error {
	td := s.intel.NewTD(tdx.Launch{
		Kernel: l.Kernel, CommandLine: l.CommandLine, InitData: l.InitData, Debug: l.Debug, StaleTCB: l.StaleTCB,
	})
	m.tee, m.values = "tdx", td.ReferenceValues()
	return m.mountSys(ctx, sysfs.Tree{
		Reports: td.Reports(), Measurements: td.Registers(),
		Files: map[string][]byte{"firmware/acpi/tables/data/CCEL": td.CCEL()},
	})
}

func (s *Simulator) bootSNP(ctx context.Context, m *Machine, l Launch) error {
	guest := snp.NewGuest(snp.Launch{
		Kernel: l.Kernel, CommandLine: l.CommandLine, InitData: l.InitData, Debug: l.Debug, StaleTCB: l.StaleTCB,
	})
	m.tee, m.values = "snp", guest.ReferenceValues()
	return m.mountSys(ctx, sysfs.Tree{Reports: s.amd.Device(guest), Dirs: []string{"devices/platform/sev-guest"}})
}

// mountSys gives the machine its /sys.
func (m *Machine) mountSys(ctx context.Context, t sysfs.Tree) error {
	fs, err := sysfs.Mount(ctx, m.host.Path("/sys"), t)
	if err != nil {
		return err
	}
	m.closers = append(m.closers, fs.Close)
	return nil
}

// refresh is the shortest time between two renewals of the paravisor's report, so
// that guests have to wait for theirs. Azure's is 2 s.
const refresh = 20 * time.Millisecond

// bootAzure starts a machine whose launch the hardware measures up to the
// paravisor; the kernel is measured by the TPM.
func (s *Simulator) bootAzure(ctx context.Context, m *Machine, l Launch) error {
	var hw azure.Hardware
	if s.intel != nil {
		m.tee = "az-tdx-vtpm"
		hw = azure.TDX(s.intel, s.intel.NewTD(tdx.Launch{Paravisor: true, Debug: l.Debug, StaleTCB: l.StaleTCB}))
	} else {
		m.tee = "az-snp-vtpm"
		hw = azure.SNP(s.amd, snp.NewGuest(snp.Launch{Debug: l.Debug, StaleTCB: l.StaleTCB}))
	}
	if err := os.Mkdir(m.tpmDir(), 0o700); err != nil {
		return err
	}
	vm, err := azure.Start(ctx, azure.Options{
		Root: m.host.Root, Dir: m.tpmDir(), Hardware: hw, Kernel: l.Kernel, CommandLine: l.CommandLine, Refresh: refresh,
		Log: slog.Default(),
	})
	if err != nil {
		return err
	}
	m.closers = append(m.closers, vm.Close)
	m.host.IMDS, m.values = vm.IMDS(), vm.ReferenceValues()
	return nil
}
