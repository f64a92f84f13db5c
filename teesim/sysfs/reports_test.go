package sysfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// reportRules are those of drivers/virt/coco/guest/report.c and of fs/configfs.
var reportRules = []rule{
	{name: "a report over what was written", do: func(g guest) error {
		g.must(g.put("inblob", data64))
		g.want("outblob", report0)
		g.want("auxblob", "certificates")
		g.want("generation", "1\n")
		return nil
	}},
	{name: "the provider's name and a line end", do: func(g guest) error { g.want("provider", "sev_guest\n"); return nil }},
	{name: "the generation begins at 0", do: func(g guest) error { g.want("generation", "0\n"); return nil }},
	{name: "reading does not advance the generation", do: func(g guest) error {
		g.must(g.put("inblob", data64))
		g.want("outblob", report0)
		g.want("outblob", report0)
		g.want("generation", "1\n")
		return nil
	}},
	{name: "a report is made once for a generation", do: func(g guest) error {
		g.must(g.put("inblob", data64))
		g.want("auxblob", "certificates")
		g.want("outblob", report0)
		if n := g.provider.calls.Load(); n != 1 {
			g.Errorf("made %d times", n)
		}
		return nil
	}},
	{name: "a write makes the report a new one", do: func(g guest) error {
		g.must(g.put("inblob", data64))
		g.want("outblob", report0)
		g.must(g.put("inblob", strings.Repeat("e", 64)))
		g.want("outblob", "report "+strings.Repeat("e", 64)+" level 0")
		g.want("generation", "2\n")
		return nil
	}},
	{name: "a privilege level", do: func(g guest) error {
		g.must(g.put("inblob", data64))
		g.must(g.put("privlevel", "2\n"))
		g.want("outblob", "report "+data64+" level 2")
		g.want("generation", "2\n")
		return nil
	}},
	{name: "the floor of the privilege level", do: func(g guest) error { g.want("privlevel_floor", "0\n"); return nil }},
	{name: "a privilege level above 3", do: func(g guest) error { return g.put("privlevel", "4") }, want: syscall.EINVAL},
	{name: "a privilege level that is no number", do: func(g guest) error { return g.put("privlevel", "high") }, want: syscall.EINVAL},
	{name: "a privilege level above 32 bits", do: func(g guest) error { return g.put("privlevel", "4294967296") }, want: syscall.ERANGE},
	{name: "a refused privilege level is no write", do: func(g guest) error {
		if err := g.put("privlevel", "9"); err == nil {
			g.Error("taken")
		}
		g.want("generation", "0\n")
		return nil
	}},
	{name: "every write to a text attribute is a value", do: func(g guest) error {
		f, err := os.OpenFile(g.entry+"/privlevel", os.O_WRONLY, 0)
		g.must(err)
		defer f.Close()
		for _, v := range []string{"1", "3\n"} {
			_, err := f.WriteString(v)
			g.must(err)
		}
		g.want("generation", "2\n")
		g.must(g.put("inblob", data64))
		g.want("outblob", "report "+data64+" level 3")
		return nil
	}},
	{name: "a text is cut to 4095 bytes", do: func(g guest) error {
		f, err := os.OpenFile(g.entry+"/privlevel", os.O_WRONLY, 0)
		g.must(err)
		defer f.Close()
		if n, err := syscall.Write(int(f.Fd()), append([]byte("1"), make([]byte, 5000)...)); n != 4095 || err != nil {
			g.Errorf("took %d, %v", n, err)
		}
		return nil
	}},
	{name: "no report without report data", do: func(g guest) error { return second(g.get("outblob")) }, want: syscall.EINVAL},
	{name: "no certificates without report data", do: func(g guest) error { return second(g.get("auxblob")) }, want: syscall.EINVAL},
	{name: "report data of 63 bytes can be written", do: func(g guest) error { return g.put("inblob", data64[:63]) }},
	{name: "no report over 63 bytes", do: func(g guest) error {
		g.must(g.put("inblob", data64[:63]))
		return second(g.get("outblob"))
	}, want: syscall.EINVAL},
	{name: "no TDX report over 63 bytes", provider: "tdx_guest", do: func(g guest) error {
		g.must(g.put("inblob", data64[:63]))
		return second(g.get("outblob"))
	}, want: syscall.EINVAL},
	{name: "report data of 65 bytes", do: func(g guest) error { return g.put("inblob", data64+"x") }, want: syscall.EFBIG},
	{name: "report data behind byte 64", do: func(g guest) error {
		f, err := os.OpenFile(g.entry+"/inblob", os.O_WRONLY, 0)
		g.must(err)
		defer f.Close()
		_, err = f.WriteAt([]byte("x"), 1<<40)
		return err
	}, want: syscall.EFBIG},
	{name: "too much report data empties it and is a write", do: func(g guest) error {
		g.must(g.put("inblob", data64))
		if err := g.put("inblob", data64+"x"); err == nil {
			g.Error("taken")
		}
		g.want("generation", "2\n")
		return second(g.get("outblob"))
	}, want: syscall.EINVAL},
	{name: "report data in parts is one write", do: func(g guest) error {
		f, err := os.OpenFile(g.entry+"/inblob", os.O_WRONLY|os.O_TRUNC, 0)
		g.must(err)
		for i := range 64 {
			_, err := f.WriteString(data64[i : i+1])
			g.must(err)
		}
		g.must(f.Close())
		g.want("generation", "1\n")
		g.want("outblob", report0)
		return nil
	}},
	{name: "report data counts when the file is closed", do: func(g guest) error {
		f, err := os.OpenFile(g.entry+"/inblob", os.O_WRONLY, 0)
		g.must(err)
		_, err = f.WriteString(data64)
		g.must(err)
		g.want("generation", "0\n")
		g.must(f.Close())
		g.want("generation", "1\n")
		return nil
	}},
	{name: "closing what was not written is no write", do: func(g guest) error {
		g.must(openErr(g.entry+"/inblob", os.O_WRONLY|os.O_TRUNC))
		g.want("generation", "0\n")
		return nil
	}},
	{name: "a hole in report data is zeros", do: func(g guest) error {
		f, err := os.OpenFile(g.entry+"/inblob", os.O_WRONLY, 0)
		g.must(err)
		_, err = f.WriteAt([]byte("end"), 61)
		g.must(err)
		g.must(f.Close())
		g.want("outblob", "report "+strings.Repeat("\x00", 61)+"end level 0")
		return nil
	}},
	{name: "appending begins at the start", do: func(g guest) error {
		for range 2 {
			f, err := os.OpenFile(g.entry+"/inblob", os.O_WRONLY|os.O_APPEND, 0)
			g.must(err)
			_, err = f.WriteString(data64[:32])
			g.must(err)
			_, err = f.WriteString(data64[32:])
			g.must(err)
			g.must(f.Close())
		}
		g.want("outblob", report0)
		return nil
	}},
	{name: "a part of a report", do: func(g guest) error {
		g.must(g.put("inblob", data64))
		f, err := os.Open(g.entry + "/outblob")
		g.must(err)
		defer f.Close()
		b := make([]byte, 5)
		if n, err := f.ReadAt(b, 7); err != nil || string(b[:n]) != "ddddd" {
			g.Errorf("read %q, %v", b[:n], err)
		}
		if n, err := f.ReadAt(b, 1<<40); n != 0 || !errors.Is(err, io.EOF) {
			g.Errorf("behind the end: %d, %v", n, err)
		}
		return nil
	}},
	{name: "an open report does not change", do: func(g guest) error {
		g.must(g.put("inblob", data64))
		f, err := os.Open(g.entry + "/outblob")
		g.must(err)
		defer f.Close()
		b := make([]byte, 10)
		_, err = io.ReadFull(f, b)
		g.must(err)
		g.must(g.put("inblob", strings.Repeat("e", 64)))
		rest, err := io.ReadAll(f)
		if got := string(b) + string(rest); err != nil || got != report0 {
			g.Errorf("read %q, %v", got, err)
		}
		return nil
	}},
	{name: "an empty report is read as one", do: func(g guest) error {
		g.provider.set(func(context.Context, []byte, uint) ([]byte, error) { return nil, nil })
		g.must(g.put("inblob", data64))
		g.want("outblob", "")
		return nil
	}},
	{name: "an empty report is asked for again", do: func(g guest) error {
		g.provider.set(func(context.Context, []byte, uint) ([]byte, error) { return nil, nil })
		g.must(g.put("inblob", data64))
		f, err := os.Open(g.entry + "/outblob")
		g.must(err)
		defer f.Close()
		if b, err := io.ReadAll(f); len(b) != 0 || err != nil {
			g.Errorf("%q, %v", b, err)
		}
		g.provider.set(nil)
		g.must(g.put("inblob", data64))
		if b, err := io.ReadAll(f); string(b) != report0 || err != nil {
			g.Errorf("%q, %v", b, err)
		}
		return nil
	}},
	{name: "a report of 32 KiB", do: func(g guest) error {
		big := bytes.Repeat([]byte("b"), maxBlob)
		g.provider.set(func(context.Context, []byte, uint) ([]byte, error) { return big, nil })
		g.must(g.put("inblob", data64))
		g.want("outblob", string(big))
		return nil
	}},
	{name: "a report of more than 32 KiB", do: func(g guest) error {
		g.provider.set(func(context.Context, []byte, uint) ([]byte, error) { return make([]byte, maxBlob+1), nil })
		g.must(g.put("inblob", data64))
		return second(g.get("outblob"))
	}, want: syscall.EFBIG},
	{name: "report data cannot be read", do: func(g guest) error { return openErr(g.entry+"/inblob", os.O_RDONLY) }, want: syscall.EACCES},
	{name: "report data cannot be read and written", do: func(g guest) error { return openErr(g.entry+"/inblob", os.O_RDWR) }, want: syscall.EACCES},
	{name: "a privilege level cannot be read", do: func(g guest) error { return openErr(g.entry+"/privlevel", os.O_RDONLY) }, want: syscall.EACCES},
	{name: "a report cannot be written", do: func(g guest) error { return openErr(g.entry+"/outblob", os.O_WRONLY) }, want: syscall.EACCES},
	{name: "the generation cannot be written", do: func(g guest) error { return openErr(g.entry+"/generation", os.O_RDWR) }, want: syscall.EACCES},
	{name: "modes and sizes", do: func(g guest) error {
		for attr, want := range map[string]string{
			"generation": "-r--r--r-- 4096", "provider": "-r--r--r-- 4096", "privlevel_floor": "-r--r--r-- 4096",
			"privlevel": "--w------- 4096", "inblob": "--w------- 0", "outblob": "-r--r--r-- 0", "auxblob": "-r--r--r-- 0",
		} {
			if st, err := os.Stat(g.entry + "/" + attr); err != nil || fmt.Sprintf("%v %d", st.Mode(), st.Size()) != want {
				g.Errorf("%s: %v, %v", attr, st, err)
			}
		}
		return nil
	}},
	{name: "the mode of an entry is not the caller's", do: func(g guest) error {
		if st, err := os.Stat(g.entry); err != nil || st.Mode() != os.ModeDir|0o755 {
			g.Errorf("%v, %v", st, err)
		}
		return nil
	}},
	{name: "attributes of SNP", do: func(g guest) error {
		g.names(g.entry, "auxblob", "generation", "inblob", "outblob", "privlevel", "privlevel_floor", "provider")
		return nil
	}},
	{name: "attributes of TDX", provider: "tdx_guest", do: func(g guest) error {
		g.names(g.entry, "generation", "inblob", "outblob", "provider")
		return openErr(g.entry+"/auxblob", os.O_RDONLY)
	}, want: syscall.ENOENT},
	{name: "an entry that is there", do: func(g guest) error { return os.Mkdir(g.entry, 0o755) }, want: syscall.EEXIST},
	{name: "an entry of any name", do: func(g guest) error {
		name := g.at(reportPath, "a \n\xff\"name\\"+strings.Repeat("x", 240))
		g.must(os.Mkdir(name, 0o755))
		return os.Remove(name)
	}},
	{name: "an entry of too long a name", do: func(g guest) error { return os.Mkdir(g.at(reportPath, strings.Repeat("x", 256)), 0o755) }, want: syscall.ENAMETOOLONG},
	{name: "rmdir removes an entry with its attributes", do: func(g guest) error {
		g.must(unix.Rmdir(g.entry))
		g.names(g.at(reportPath))
		return openErr(g.entry+"/generation", os.O_RDONLY)
	}, want: syscall.ENOENT},
	{name: "a new entry has nothing of an old one", do: func(g guest) error {
		g.must(g.put("inblob", data64))
		g.must(unix.Rmdir(g.entry))
		g.must(os.Mkdir(g.entry, 0o755))
		g.want("generation", "0\n")
		return second(g.get("outblob"))
	}, want: syscall.EINVAL},
	{name: "an open file of a removed entry", do: func(g guest) error {
		g.must(g.put("inblob", data64))
		f, err := os.Open(g.entry + "/outblob")
		g.must(err)
		defer f.Close()
		g.must(unix.Rmdir(g.entry))
		_, err = f.Read(make([]byte, 1))
		return err
	}, want: syscall.ENOENT},
	{name: "an open file of a removed entry is not opened again", do: func(g guest) error {
		f, err := os.Open(g.entry + "/provider")
		g.must(err)
		defer f.Close()
		g.must(unix.Rmdir(g.entry))
		return openErr(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_RDONLY)
	}, want: syscall.ENOENT},
	{name: "a removed entry that is made again is another", do: func(g guest) error {
		f, err := os.OpenFile(g.entry+"/inblob", os.O_WRONLY, 0)
		g.must(err)
		_, err = f.WriteString(data64)
		g.must(err)
		g.must(unix.Rmdir(g.entry))
		g.must(os.Mkdir(g.entry, 0o755))
		g.must(f.Close())
		g.want("generation", "0\n")
		return nil
	}},
	{name: "no rmdir of what is not there", do: func(g guest) error { return unix.Rmdir(g.at(reportPath, "none")) }, want: syscall.ENOENT},
	{name: "no rmdir of an attribute", do: func(g guest) error { return unix.Rmdir(g.entry + "/inblob") }, want: syscall.ENOTDIR},
	{name: "no rmdir of the subsystem", do: func(g guest) error { return unix.Rmdir(g.at("kernel/config/tsm")) }, want: syscall.EPERM},
	{name: "no rmdir of the group", do: func(g guest) error { return unix.Rmdir(g.at(reportPath)) }, want: syscall.EPERM},
	{name: "no mkdir in an entry", do: func(g guest) error { return os.Mkdir(g.entry+"/x", 0o755) }, want: syscall.EPERM},
	{name: "no mkdir beside the group", do: func(g guest) error { return os.Mkdir(g.at("kernel/config/tsm/x"), 0o755) }, want: syscall.EPERM},
	{name: "no mkdir in configfs", do: func(g guest) error { return os.Mkdir(g.at("kernel/config/x"), 0o755) }, want: syscall.EPERM},
	{name: "no file in an entry", do: func(g guest) error { return openErr(g.entry+"/x", os.O_WRONLY|os.O_CREATE) }, want: syscall.EACCES},
	{name: "no file in the group", do: func(g guest) error { return openErr(g.at(reportPath, "x"), os.O_WRONLY|os.O_CREATE) }, want: syscall.EACCES},
	{name: "O_CREAT of what is there", do: func(g guest) error { return openErr(g.entry+"/inblob", os.O_WRONLY|os.O_CREATE|os.O_TRUNC) }},
	{name: "no unlink", do: func(g guest) error { return unix.Unlink(g.entry + "/inblob") }, want: syscall.EPERM},
	{name: "no rename", do: func(g guest) error { return os.Rename(g.entry, g.entry+"2") }, want: syscall.EPERM},
	{name: "no symlink", do: func(g guest) error { return os.Symlink("x", g.at(reportPath, "l")) }, want: syscall.EPERM},
	{name: "no hard link", do: func(g guest) error { return os.Link(g.entry+"/inblob", g.entry+"/l") }, want: syscall.EPERM},
	{name: "no fifo", do: func(g guest) error { return unix.Mkfifo(g.at(reportPath, "p"), 0o600) }, want: syscall.EPERM},
	{name: "no chmod", do: func(g guest) error { return os.Chmod(g.entry+"/inblob", 0o666) }, want: syscall.EPERM},
	{name: "truncation does nothing", do: func(g guest) error {
		g.must(os.Truncate(g.entry+"/inblob", 0))
		g.want("generation", "0\n")
		return nil
	}},
	{name: "the driver's error", do: func(g guest) error { return g.fails(fmt.Errorf("busy: %w", syscall.EBUSY)) }, want: syscall.EBUSY},
	{name: "the driver's other error", do: func(g guest) error { return g.fails(syscall.ETIMEDOUT) }, want: syscall.ETIMEDOUT},
	{name: "an error without a number", do: func(g guest) error { return g.fails(errors.New("broken")) }, want: syscall.EIO},
	{name: "an error no driver makes", do: func(g guest) error { return g.fails(syscall.ENOENT) }, want: syscall.EIO},
	{name: "a deadline", do: func(g guest) error { return g.fails(context.DeadlineExceeded) }, want: syscall.ETIMEDOUT},
	{name: "after a failure it is tried again", do: func(g guest) error {
		if err := g.fails(syscall.EIO); err == nil {
			g.Error("no failure")
		}
		g.provider.set(nil)
		g.want("outblob", report0)
		g.want("generation", "1\n")
		return nil
	}},
}

func TestReportsAreAsInTheKernel(t *testing.T) { runRules(t, reportRules) }
