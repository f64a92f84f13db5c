package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/cmd/internal/cli"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/doctor"
	"github.com/sealpod/sealpod/podvm/rpc"
)

var errSick = errors.New("something is wrong")

// doctorFlags is the command line of doctor.
type doctorFlags struct {
	config     doctor.Config
	agent, hub string
	only       []string
	json       bool
}

func doctorApplet() *cobra.Command {
	f := doctorFlags{config: doctor.Default(podvm.HostFromEnv())}
	cmd := &cobra.Command{
		Use:   "doctor [CHECK...]",
		Short: "What is wrong with this pod VM, and what to do about it",
		Long: `Runs checks at once and prints what they find, each with a hint at what to do
next: the TEE and what it was detected by, clock, space, configuration files,
name resolution, certificates, sockets, the pod's network, the relying party with
the time of each step, and init data against what was measured. Run it as root.

It changes nothing, but the attestation agent may attest once.

The exit code is 0 if no check failed, warnings or not, 1 if one did, and 2 if
the command line is wrong.`,
		Example: `  sealpod doctor
  sealpod doctor kbs clock
  sealpod doctor --json | jq -r '.checks[] | select(.status == "failed").findings[].hint'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.only = args
			return f.run(cmd.Context(), cmd.OutOrStdout())
		},
	}
	c := &f.config
	fl := cmd.Flags()
	fl.StringVarP(&f.agent, "aa_addr", "a", "unix://"+c.AgentSocket, "the attestation agent's `unix://PATH`")
	fl.StringVarP(&f.hub, "cdh_addr", "c", "unix://"+c.HubSocket, "the data hub's `unix://PATH`")
	fl.StringVar(&c.AgentConfig, "aa-config", c.AgentConfig, "configuration `file` of the attestation agent")
	fl.StringVar(&c.HubConfig, "cdh-config", c.HubConfig, "configuration `file` of the data hub")
	fl.StringVar(&c.ForwarderConfig, "apf-config", c.ForwarderConfig, "configuration `file` of the forwarder")
	fl.StringVar(&c.REST, "rest", c.REST, "`HOST:PORT` of api-server-rest, in the pod's network namespace")
	fl.StringVar(&c.Namespace, "netns", c.Namespace, "`file` of the pod's network namespace")
	fl.StringVar(&c.Images, "images", c.Images, "`directory` of the image store")
	fl.BoolVar(&f.json, "json", false, "print JSON")
	return cmd
}

func (f doctorFlags) run(ctx context.Context, out io.Writer) error {
	var err error
	if f.config.AgentSocket, err = rpc.SocketPath(f.agent); err != nil {
		return fmt.Errorf("--aa_addr: %w (%w)", err, cli.ErrUsage)
	}
	if f.config.HubSocket, err = rpc.SocketPath(f.hub); err != nil {
		return fmt.Errorf("--cdh_addr: %w (%w)", err, cli.ErrUsage)
	}
	checks := doctor.Checks(f.config)
	for _, name := range f.only {
		if !slices.ContainsFunc(checks, func(c doctor.Check) bool { return c.Name == name }) {
			return fmt.Errorf("no check %q (%w)", podvm.Printable(name, 64), cli.ErrUsage)
		}
	}
	if len(f.only) > 0 {
		checks = slices.DeleteFunc(checks, func(c doctor.Check) bool { return !slices.Contains(f.only, c.Name) })
	}
	reports := doctor.Run(ctx, checks)
	worst := doctor.Worst(reports)
	if f.json {
		err = json.NewEncoder(out).Encode(struct {
			Version string          `json:"version"`
			Status  doctor.Status   `json:"status"`
			Checks  []doctor.Report `json:"checks"`
		}{podvm.Version(), worst, reports})
	} else {
		err = printReports(out, reports, colored(out))
	}
	if err == nil && worst == doctor.Failed {
		err = errSick
	}
	return err
}

// printReports writes reports as a table for people, and hints below what they are
// about.
func printReports(out io.Writer, reports []doctor.Report, color bool) error {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "CHECK\tRESULT\tFINDING")
	for _, r := range reports {
		name := r.Check
		for _, f := range r.Findings {
			fmt.Fprintf(t, "%s\t%s\t%s\n", name, f.Status, f.Text)
			if f.Hint != "" {
				fmt.Fprintf(t, "\t\t  hint: %s\n", f.Hint)
			}
			name = ""
		}
		if len(r.Seconds) > 0 {
			fmt.Fprintf(t, "\t\t  %s\n", times(r.Seconds))
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	text := b.String()
	if color {
		text = resultColors.Replace(text)
	}
	_, err := io.WriteString(out, text)
	return err
}

// times are those of parts, sorted by name.
func times(seconds map[string]float64) string {
	var parts []string
	for _, what := range slices.Sorted(maps.Keys(seconds)) {
		parts = append(parts, fmt.Sprintf("%s %.3fs", what, seconds[what]))
	}
	return strings.Join(parts, ", ")
}

// resultColors works on the finished table, see colors.
var resultColors = strings.NewReplacer(
	"  ok       ", "  \x1b[32mok\x1b[0m       ", "  warning  ", "  \x1b[33mwarning\x1b[0m  ", "  failed   ", "  \x1b[31mfailed\x1b[0m   ")

// colored reports whether out is a terminal that wants colours.
func colored(out io.Writer) bool {
	return cli.IsTerminal(out) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}
