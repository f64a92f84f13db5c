package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/attester/initdata"
	"github.com/sealpod/sealpod/cmd/internal/cli"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/teesim"
)

// maxKernel caps the kernel that a simulated machine measures, in bytes.
const maxKernel = 256 << 20

// simOptions are the flags of `sealctl tee-sim`.
type simOptions struct {
	dir, kernel, commandLine, initData string
	debug, staleTCB, asJSON            bool
}

// teeSimCommand is `sealctl tee-sim`.
func teeSimCommand() *cobra.Command {
	var o simOptions
	cmd := &cobra.Command{
		Use:   "tee-sim KIND --dir DIRECTORY",
		Short: "Run a simulated TEE for trials and tests",
		Long: `Run a machine with a simulated TEE until Ctrl-C. Its evidence has the form of the
real thing and is really signed, by a simulated maker with a root of its own that
no relying party trusts unless told to (relying-party --trust-simulator).

KIND is ` + strings.Join(teesim.Kinds(), ", ") + `.
DIRECTORY keeps the maker's keys (keys), what a relying party must trust (trust),
what a good machine measures (reference-values.json) and the machine's files
(machine). Those of tdx-sim and snp-sim are in sys, a FUSE file system with
configfs-tsm: it takes /dev/fuse and either root or Debian's package fuse3. The
Azure kinds have a TPM instead, the program swtpm behind the socket dev/tpmrm0,
and a metadata service. Other users can use neither sys nor the TPM.`,
		Example: `  sealctl tee-sim tdx-sim --dir ./sim
  sealctl tee-sim snp-sim --dir ./sim --init-data initdata.toml
  sealctl relying-party --store ./rp --trust-simulator ./sim/trust
  SEALPOD_HOST_ROOT=$PWD/sim/machine sealpod attestation-agent -c aa.toml`,
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: teesim.Kinds(),
		RunE:      func(cmd *cobra.Command, args []string) error { return o.run(cmd, args[0]) },
	}
	f := cmd.Flags()
	f.StringVar(&o.dir, "dir", "", "`directory` of the simulator (required; made if missing)")
	f.StringVar(&o.kernel, "kernel", "", "kernel `file` to measure instead of one made up")
	f.StringVar(&o.commandLine, "command-line", "", "kernel command `line` to measure instead of one made up")
	f.StringVar(&o.initData, "init-data", "", "start the machine with the digest of this init data `file`, as its algorithm says (not on Azure, where the guest measures it)")
	f.BoolVar(&o.debug, "debug", false, "let the host debug the machine")
	f.BoolVar(&o.staleTCB, "stale-tcb", false, "run firmware that misses an update")
	f.BoolVar(&o.asJSON, "json", false, "say where things are as one line of JSON")
	return cmd
}

func (o simOptions) run(cmd *cobra.Command, kind string) error {
	if o.dir == "" {
		return fmt.Errorf("give --dir DIRECTORY, where the simulator keeps its keys and its machine (%w)", cli.ErrUsage)
	}
	if o.initData != "" && strings.HasPrefix(kind, "az-") {
		return fmt.Errorf("--init-data: on Azure the host sets none at launch: give the file to attestation-agent, with -t (%w)", cli.ErrUsage)
	}
	launch, err := o.launch()
	if err == nil {
		o.dir, err = filepath.Abs(o.dir)
	}
	if err != nil {
		return err
	}
	sim, err := teesim.Open(kind, o.dir)
	if err != nil {
		return err
	}
	m, err := sim.Boot(cmd.Context(), filepath.Join(o.dir, "machine"), launch)
	if err != nil {
		return err
	}
	if err = o.announce(cmd.OutOrStdout(), sim, m); err == nil {
		<-cmd.Context().Done()
	}
	return errors.Join(err, m.Close())
}

// launch reads what the machine starts with.
func (o simOptions) launch() (teesim.Launch, error) {
	l := teesim.Launch{CommandLine: o.commandLine, Debug: o.debug, StaleTCB: o.staleTCB}
	var err error
	if o.kernel != "" {
		if l.Kernel, err = podvm.ReadFileMax(o.kernel, maxKernel); err != nil {
			return l, fmt.Errorf("--kernel: %w", err)
		}
	}
	if o.initData != "" {
		text, err := podvm.ReadFileMax(o.initData, initdata.MaxBytes)
		if err != nil {
			return l, fmt.Errorf("--init-data: %w", err)
		}
		doc, err := initdata.Parse(text)
		if err != nil {
			return l, fmt.Errorf("--init-data: %s: %w", o.initData, err)
		}
		l.InitData = doc.Digest()
	}
	return l, nil
}

// simPlaces is what others need to know of a machine.
type simPlaces struct {
	TEE             string   `json:"tee"`
	Root            string   `json:"root"`
	Environment     []string `json:"environment"`
	Trust           string   `json:"trust"`
	ReferenceValues string   `json:"reference_values"`
}

// announce writes the reference values and says where things are.
func (o simOptions) announce(w io.Writer, sim *teesim.Simulator, m *teesim.Machine) error {
	at := simPlaces{
		TEE: m.TEE(), Root: m.Host().Root, Environment: m.Env(),
		Trust: sim.Trust(), ReferenceValues: filepath.Join(o.dir, "reference-values.json"),
	}
	values, err := json.MarshalIndent(m.ReferenceValues(), "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the reference values: %w", err)
	}
	if err := replaceFile(at.ReferenceValues, append(values, '\n')); err != nil {
		return fmt.Errorf("writing the reference values: %w", err)
	}
	if o.asJSON {
		err = json.NewEncoder(w).Encode(at)
	} else {
		others := m.Host().Path("/sys") + " is this machine's /sys"
		if strings.HasPrefix(at.TEE, "az-") {
			others = m.Host().Path("/dev/tpmrm0") + " is a socket to this machine's TPM"
		}
		_, err = fmt.Fprintf(w, `Machine           %s (TEE %s, simulated)
Guest daemons     export %s
Relying party     sealctl relying-party --trust-simulator %s …
                  sealctl kbs set-reference-values %s …
Other programs    %s
Ctrl-C stops it.
`, at.Root, at.TEE, strings.Join(at.Environment, " "), at.Trust, at.ReferenceValues, others)
	}
	if err != nil {
		return fmt.Errorf("writing to standard output: %w", err)
	}
	return nil
}
