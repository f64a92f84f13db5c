package sysfs

import (
	"bytes"
	"crypto/sha512"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
)

func (g guest) register(name string) string { return g.at(registerPath, name) }

// extend writes b to a register with one write and returns how much was taken.
func (g guest) extend(name string, b string, flags int) (int, error) {
	f, err := os.OpenFile(g.register(name), os.O_WRONLY|flags, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return syscall.Write(int(f.Fd()), []byte(b))
}

func extended(before, digest string) string {
	sum := sha512.Sum384([]byte(before + digest))
	return string(sum[:])
}

func only(_ int, err error) error { return err }

var zeros, digest = strings.Repeat("\x00", 48), strings.Repeat("D", 48)

// registerRules are those of drivers/virt/coco/guest/tsm-mr.c and of fs/sysfs.
var registerRules = []rule{
	{name: "a register has 48 bytes", do: func(g guest) error {
		if got := read(g, g.register("mrconfigid")); got != strings.Repeat("\x07", 48) {
			g.Errorf("%q", got)
		}
		return nil
	}},
	{name: "a write of 48 bytes extends", do: func(g guest) error {
		if n, err := g.extend("rtmr2:sha384", digest, 0); n != 48 || err != nil {
			g.Errorf("took %d, %v", n, err)
		}
		if got := read(g, g.register("rtmr2:sha384")); got != extended(zeros, digest) {
			g.Errorf("%x", got)
		}
		return nil
	}},
	{name: "O_TRUNC does not harm", do: func(g guest) error { return only(g.extend("rtmr2:sha384", digest, os.O_TRUNC)) }},
	{name: "appending begins at the start", do: func(g guest) error { return only(g.extend("rtmr2:sha384", digest, os.O_APPEND)) }},
	{name: "a write of 47 bytes", do: func(g guest) error { return only(g.extend("rtmr2:sha384", digest[1:], 0)) }, want: syscall.EINVAL},
	{name: "a longer write is cut to 48 bytes", do: func(g guest) error {
		if n, err := g.extend("rtmr2:sha384", digest+"x", 0); n != 48 || err != nil {
			g.Errorf("took %d, %v", n, err)
		}
		if got := read(g, g.register("rtmr2:sha384")); got != extended(zeros, digest) {
			g.Errorf("%x", got)
		}
		return nil
	}},
	{name: "the rest of a longer write", do: func(g guest) error {
		f, err := os.OpenFile(g.register("rtmr2:sha384"), os.O_WRONLY, 0)
		g.must(err)
		defer f.Close()
		_, err = f.WriteString(digest + "x")
		return err
	}, want: syscall.EFBIG},
	{name: "a write inside", do: func(g guest) error {
		f, err := os.OpenFile(g.register("rtmr2:sha384"), os.O_WRONLY, 0)
		g.must(err)
		defer f.Close()
		_, err = f.WriteAt([]byte(digest), 1)
		return err
	}, want: syscall.EINVAL},
	{name: "a refused write does not extend", do: func(g guest) error {
		if _, err := g.extend("rtmr2:sha384", "short", 0); err == nil {
			g.Error("taken")
		}
		if got := read(g, g.register("rtmr2:sha384")); got != zeros {
			g.Errorf("%x", got)
		}
		return nil
	}},
	{name: "a part of a register", do: func(g guest) error {
		f, err := os.Open(g.register("mrconfigid"))
		g.must(err)
		defer f.Close()
		b := make([]byte, 20)
		if n, _ := f.ReadAt(b, 40); n != 8 || !bytes.Equal(b[:n], bytes.Repeat([]byte{7}, 8)) {
			g.Errorf("%x", b[:n])
		}
		return nil
	}},
	{name: "an open register shows what it is now", do: func(g guest) error {
		f, err := os.OpenFile(g.register("rtmr3:sha384"), os.O_RDWR, 0)
		g.must(err)
		defer f.Close()
		b, now := make([]byte, 48), zeros
		for range 3 {
			if _, err := f.ReadAt(b, 0); err != nil || string(b) != now {
				g.Errorf("%x, %v", b, err)
			}
			_, err = f.WriteAt([]byte(digest), 0)
			g.must(err)
			now = extended(now, digest)
		}
		return nil
	}},
	{name: "mrconfigid cannot be extended", do: func(g guest) error { return only(g.extend("mrconfigid", digest, 0)) }, want: syscall.EACCES},
	{name: "mrtd cannot be extended", do: func(g guest) error { return only(g.extend("mrtd:sha384", digest, 0)) }, want: syscall.EACCES},
	{name: "modes and sizes", do: func(g guest) error {
		for name, want := range map[string]string{"mrconfigid": "-r--r--r-- 48", "rtmr0:sha384": "-rw-r--r-- 48"} {
			if st, err := os.Stat(g.register(name)); err != nil || fmt.Sprintf("%v %d", st.Mode(), st.Size()) != want {
				g.Errorf("%s: %v, %v", name, st, err)
			}
		}
		return nil
	}},
	{name: "the class links to the device", do: func(g guest) error {
		if to, err := os.Readlink(g.at("class/misc/tdx_guest")); to != "../../devices/virtual/misc/tdx_guest" || err != nil {
			g.Errorf("%q, %v", to, err)
		}
		if got := read(g, g.at("class/misc/tdx_guest/measurements/mrtd:sha384")); got != zeros {
			g.Errorf("%x", got)
		}
		return nil
	}},
	{name: "no other register", do: func(g guest) error { return openErr(g.register("rtmr4:sha384"), os.O_RDONLY) }, want: syscall.ENOENT},
	{name: "a register that cannot be read", do: func(g guest) error {
		g.regs.lose("mrconfigid")
		_, err := os.ReadFile(g.register("mrconfigid"))
		return err
	}, want: syscall.EIO},
	{name: "a register that cannot be extended now", do: func(g guest) error {
		g.regs.lose("rtmr1:sha384")
		return only(g.extend("rtmr1:sha384", digest, 0))
	}, want: syscall.EIO},

	{name: "the event log is read whole", do: func(g guest) error {
		if got := read(g, g.at("firmware/acpi/tables/data/CCEL")); got != strings.Repeat("log.", 20000) {
			g.Errorf("%d bytes", len(got))
		}
		return nil
	}},
	{name: "the event log cannot be written", do: func(g guest) error {
		return openErr(g.at("firmware/acpi/tables/data/CCEL"), os.O_WRONLY)
	}, want: syscall.EACCES},
	{name: "ACPI tables are for root", do: func(g guest) error {
		for name, want := range map[string]os.FileMode{"firmware/acpi/tables/data/CCEL": 0o400, "kernel/note": 0o444} {
			if st, err := os.Stat(g.at(name)); err != nil || st.Mode() != want {
				g.Errorf("%s: %v, %v", name, st, err)
			}
		}
		return nil
	}},
	{name: "an empty directory", do: func(g guest) error { g.names(g.at("devices/platform"), "sev-guest"); return nil }},
	{name: "no mkdir in sysfs", do: func(g guest) error { return os.Mkdir(g.at("devices/x"), 0o755) }, want: syscall.EPERM},
	{name: "no rmdir in sysfs", do: func(g guest) error { return syscall.Rmdir(g.at("devices/platform/sev-guest")) }, want: syscall.EPERM},
	{name: "no file in sysfs", do: func(g guest) error { return openErr(g.at("x"), os.O_WRONLY|os.O_CREATE) }, want: syscall.EACCES},
	{name: "no unlink in sysfs", do: func(g guest) error { return syscall.Unlink(g.at("kernel/note")) }, want: syscall.EPERM},
}

func TestRegistersAndFilesAreAsInTheKernel(t *testing.T) { runRules(t, registerRules) }

// Without a TEE there is no report to make, and no registers are shown.
func TestWithoutAProvider(t *testing.T) {
	sys := mountTree(t, Tree{})
	if err := os.Mkdir(sys+"/"+reportPath+"/x", 0o755); !errors.Is(err, syscall.ENXIO) {
		t.Errorf("mkdir: %v", err)
	}
	if _, err := os.Stat(sys + "/devices"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("devices: %v", err)
	}
}
