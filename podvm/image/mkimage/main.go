// Command mkimage builds the disk image of a pod VM: see podvm/image for what is
// in it, and mkimage --help for what can be chosen.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/sealpod/sealpod/podvm/debian"
	"github.com/sealpod/sealpod/podvm/image"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout)
	if errors.Is(err, pflag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	o := image.Options{}
	f := pflag.NewFlagSet("mkimage", pflag.ContinueOnError)
	f.SortFlags = false
	f.StringVar(&o.Out, "out", "podvm", "path of the image without its ending")
	profile := f.String("profile", string(image.Production), "production (nobody can log in) or debug (root on the serial console)")
	snapshot := f.String("snapshot", image.Snapshot, "state of Debian's archive, as snapshot.debian.org has it")
	f.StringVar(&o.Mirror, "mirror", "", "URL of another archive, instead of a snapshot")
	pinned := f.String("packages", "", "file with the packages to build with, as an earlier build has written; others are an error")
	f.StringArrayVar(&o.Trees, "tree", nil, "directory that goes over the root file system, such as DESTDIR of make install")
	f.StringVar(&o.KataAgent, "kata-agent", "", "program kata-agent for the guest")
	f.StringVar(&o.PauseBundle, "pause-bundle", "", "directory of the unpacked pause image")
	f.StringVar(&o.AgentPolicy, "agent-policy", "", "kata-agent's policy for pods whose init data has none; without it everything is allowed then")
	f.BoolVar(&o.QCow2, "qcow2", false, "make an image for qemu besides")
	f.StringVar(&o.Init, "init", "", "program podvm/image/init for the guest; without it go builds it from the working directory's module")
	f.StringVar(&o.Cache, "cache", "", "directory that keeps unpacked packages")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	o.Profile = image.Profile(*profile)
	if o.Mirror == "" {
		o.Mirror = image.Mirror(*snapshot)
	}
	if *pinned != "" {
		raw, err := os.ReadFile(*pinned)
		if err != nil {
			return err
		}
		if o.Pinned, err = debian.ParsePackages(raw); err != nil {
			return err
		}
	}
	if o.Init == "" {
		dir, err := os.MkdirTemp("", "mkimage-")
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
		o.Init = filepath.Join(dir, "init")
		if err := buildInit(ctx, o.Init); err != nil {
			return err
		}
	}
	began := time.Now()
	r, err := image.Build(ctx, o)
	if err != nil {
		return err
	}
	return report(out, o, r, time.Since(began))
}

// buildInit builds what goes into the initrd. Equal sources must give equal
// bytes, whatever folder they are in.
func buildInit(ctx context.Context, path string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid=", "-o", path,
		"github.com/sealpod/sealpod/podvm/image/init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the first program of the guest: %w\n%s", err, out)
	}
	return nil
}

// report writes the lists beside the image and says what there is.
func report(out io.Writer, o image.Options, r *image.Result, took time.Duration) error {
	write := func(ending string, data []byte) (string, error) {
		return o.Out + ending, os.WriteFile(o.Out+ending, data, 0o644)
	}
	packages, err := write(".packages", debian.FormatPackages(r.Packages))
	if err != nil {
		return err
	}
	values, err := json.MarshalIndent(r.Measurements.ReferenceValues(), "", "  ")
	if err != nil {
		return err
	}
	references, err := write(".reference-values.json", append(values, '\n'))
	if err != nil {
		return err
	}
	measured, err := json.MarshalIndent(r.Measurements, "", "  ")
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "image             %s\nsha256            %s\n", r.Raw, r.SHA256)
	if r.QCow2 != "" {
		fmt.Fprintf(out, "qcow2             %s\n", r.QCow2)
	}
	fmt.Fprintf(out, "kernel image      %s\nroot hash         %s\npackages          %s (%d)\nreference values  %s\nbuilt in          %s\n%s\n",
		r.UKI, r.RootHash, packages, len(r.Packages), references, took.Round(100*time.Millisecond), measured)
	fmt.Fprintf(out, "PCR 11, PCR 9 and RTMR 2 depend on the image alone; PCR 4 also on how many boot options firmware tries before.\n"+
		"RTMR 0 and 1, PCR 0 to 3, 5 and 7 hold firmware and its settings: take them from a machine that runs.\n"+
		"Load them with: sealctl kbs set-reference-values %s\n", references)
	return nil
}
