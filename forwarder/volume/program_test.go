package volume

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/sealpod/sealpod/podvm"
)

// fakeProgram is a program of the machine. mkfs.ext4 is counted and then is the
// real one, unless the file hang exists; so is mkfs.xfs, which is cut short if a file
// unfinished-… exists; cryptsetup removes nodes, and says that
// they are busy if the file busy exists; udevadm does nothing.
func fakeProgram(name string, args []string) int {
	root := os.Getenv(podvm.HostRootEnv)
	log, err := os.OpenFile(filepath.Join(root, "programs.log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = fmt.Fprintln(log, name, strings.Join(args, " "))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 9
	}
	exists := func(file string) bool { _, err := os.Stat(filepath.Join(root, file)); return err == nil }
	switch {
	case exists("hang"):
		time.Sleep(time.Hour)
	case name == "udevadm":
	case name == "mkfs.ext4", name == "mkfs.xfs":
		_ = os.Setenv("PATH", strings.TrimPrefix(os.Getenv("PATH"), root+"/bin:"))
		cmd := exec.CommandContext(context.Background(), name, args...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		var exit *exec.ExitError
		if err := cmd.Run(); errors.As(err, &exit) {
			return exit.ExitCode()
		} else if err != nil {
			return 9
		}
		fails, hangs := exists("unfinished-fails"), exists("unfinished-hangs")
		if !fails && !hangs {
			return 0
		}
		if err := unfinish(args[len(args)-1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 9
		}
		_, _ = fmt.Fprintln(log, "unfinished xfs")
		if hangs {
			time.Sleep(time.Hour)
		}
		return 1
	case args[0] != "close":
		return 9
	case exists("busy") && len(args) == 2:
		fmt.Fprintln(os.Stderr, "Device is still in use.")
		return 5
	case os.Remove(filepath.Join(root, "dev/mapper", args[len(args)-1])) != nil:
		return 4
	}
	return 0
}

// unfinish makes of a new xfs what mkfs.xfs leaves when it is killed halfway: the
// superblock says that it is in progress.
func unfinish(device string) error {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	b := make([]byte, 512)
	_, err = f.ReadAt(b, 0)
	b[126] = 1
	sum := b[224:228]
	clear(sum)
	binary.LittleEndian.PutUint32(sum, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	_, werr := f.WriteAt(b, 0)
	return errors.Join(err, werr, f.Sync(), f.Close())
}

// ran returns how often a program of the machine ran with arguments that contain
// text.
func (m *machine) ran(program, text string) (n int) {
	raw, err := os.ReadFile(m.path("programs.log"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		m.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if args, ok := strings.CutPrefix(line, program+" "); ok && strings.Contains(args, text) {
			n++
		}
	}
	return n
}

// attachProcessEnv makes the test binary a forwarder that attaches the annotation
// that is the variable's value, says so, and hangs.
const attachProcessEnv = "SEALPOD_TEST_ATTACH"

func attachProcess() int {
	volumes, err := Parse(os.Getenv(attachProcessEnv))
	m := New(Config{Host: podvm.HostFromEnv()})
	for _, v := range volumes {
		if err == nil {
			_, err = m.Attach(context.Background(), v)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("attached")
	time.Sleep(time.Hour)
	return 0
}
