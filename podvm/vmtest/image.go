package vmtest

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/sealpod/sealpod/podvm/testenv"
	"github.com/sealpod/sealpod/podvm/vmtest/internal/wire"
)

// The UEFI firmware of Debian's package ovmf: code that does not ask for Secure
// Boot, and its variables as they are at first.
const (
	firmwareCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	firmwareVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

// Firmware returns only where machines can boot images.
func Firmware(t testing.TB) {
	t.Helper()
	Enabled(t)
	for _, path := range []string{firmwareCode, firmwareVars} {
		if _, err := os.Stat(path); err != nil {
			testenv.Missing(t, "needs the package ovmf: "+err.Error())
		}
	}
}

// firmware boots from a disk.
func firmware(line *command, boot *Disk) error {
	initial, err := os.Open(firmwareVars)
	if err != nil {
		return err
	}
	defer initial.Close()
	vars, err := unnamed()
	if err != nil {
		return err
	}
	fd := line.pass(vars)
	if _, err := io.Copy(vars, initial); err != nil {
		return err
	}
	line.add(
		"-drive", "if=pflash,format=raw,readonly=on,file="+firmwareCode,
		"-drive", fmt.Sprintf("if=pflash,format=raw,file=/proc/self/fd/%d", fd),
	)
	line.add(diskArg("vda", boot)...)
	return nil
}

// CopyDisk makes a disk with the content of a file, grown to size if that is
// more, for as long as the test runs.
func CopyDisk(t testing.TB, path string, size int64) *Disk {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	d := NewDisk(t, max(size, info.Size()))
	if _, err := io.Copy(d.file, f); err != nil {
		t.Fatal(err)
	}
	return d
}

// reportUnit starts the program report. It has no part in what it watches: its
// failure is not the machine's, and it waits for nobody.
const reportUnit = `[Unit]
Description=Report to the Test
After=multi-user.target

[Service]
Type=exec
ExecStart=/usr/local/bin/vmtest-report
StandardOutput=journal+console
StandardError=journal+console
`

// ImageTree makes a directory that goes over the root file system of an image
// whose machine is to run c.Cmd once it has reached multi-user.target and c.After
// is there, and to power itself off after that.
func ImageTree(t testing.TB, c Config) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, mode os.FileMode, data []byte) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, mode); err != nil {
			t.Fatal(err)
		}
	}
	job, err := json.Marshal(wire.Job{Args: c.Cmd, Env: append(guestEnv(), c.Env...), After: c.After})
	if err != nil {
		t.Fatal(err)
	}
	write(wire.JobPath, 0o644, job)
	write("usr/lib/systemd/system/vmtest-report.service", 0o644, []byte(reportUnit))
	if err := build(t, "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "usr/local/bin/vmtest-report"), "./podvm/vmtest/report"); err != nil {
		t.Fatalf("building the program that reports: %v", err)
	}
	wants := filepath.Join(dir, "usr/lib/systemd/system/multi-user.target.wants")
	if err := os.MkdirAll(wants, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../vmtest-report.service", filepath.Join(wants, "vmtest-report.service")); err != nil {
		t.Fatal(err)
	}
	for there, here := range c.Files {
		info, err := os.Stat(here)
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(here)
		if err != nil {
			t.Fatal(err)
		}
		write(there, info.Mode().Perm(), data)
	}
	return dir
}
