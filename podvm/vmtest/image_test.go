package vmtest

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sealpod/sealpod/forwarder/agenttest"
	"github.com/sealpod/sealpod/podvm/image"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// mirror has current packages only, which is what a test can count on.
const mirror = "http://deb.debian.org/debian"

// production is the image as it is shipped, without kata-agent, and testImage is
// that with a test in it. Both are built once.
var production, testImage struct {
	sync.Once
	*image.Result
	err error
}

// imageDir is where images of this process are, for as long as it runs.
var imageDir = sync.OnceValues(func() (string, error) { return os.MkdirTemp("", "vmtest-image") })

func buildImage(t *testing.T, out string, trees ...string) (*image.Result, error) {
	t.Helper()
	root, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	dir, err := imageDir()
	if err != nil {
		return nil, err
	}
	init := filepath.Join(dir, out+".init")
	if err := build(t, "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid=", "-o", init, "./podvm/image/init"); err != nil {
		return nil, err
	}
	return image.Build(t.Context(), image.Options{
		Out: filepath.Join(dir, out), Init: init, Cache: filepath.Join(root, "bin", "image", "cache"), Mirror: mirror, Trees: trees,
	})
}

// needImages returns only where images can be built and booted.
func needImages(t *testing.T) {
	t.Helper()
	Firmware(t)
	if err := image.CheckTools(false); err != nil {
		testenv.Missing(t, err.Error())
	}
}

// installed is what make install leaves.
func installed(t *testing.T) string {
	t.Helper()
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "make", "-C", root, "install", "DESTDIR="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	info, err := os.Stat(filepath.Join(dir, "usr/local/bin/sealpod"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > maxBinary {
		t.Errorf("sealpod has %d bytes, at most %d are wanted", info.Size(), maxBinary)
	}
	binarySize.Do(func() { t.Logf("FIGURE sealpod has %.1f MB", float64(info.Size())/1e6) })
	return dir
}

// maxBinary is the most bytes that sealpod may have.
const maxBinary = 35_000_000

var binarySize sync.Once

func productionImage(t *testing.T) *image.Result {
	t.Helper()
	needImages(t)
	production.Do(func() { production.Result, production.err = buildImage(t, "production", installed(t)) })
	if production.err != nil {
		t.Fatal(production.err)
	}
	return production.Result
}

func imageWithTests(t *testing.T) *image.Result {
	t.Helper()
	needImages(t)
	testImage.Do(func() {
		c := guest(t, "TestInGuestImage.*")
		c.After = containersDir + appContainer + "/" + agenttest.RootFSFile
		c.Env = []string{checkEnv + "=" + os.Getenv(checkEnv)}
		testImage.Result, testImage.err = buildImage(t, "tests", installed(t), standIn(t), ImageTree(t, c))
	})
	if testImage.err != nil {
		t.Fatal(testImage.err)
	}
	return testImage.Result
}

// grown is the size of the machine's disk, more than the image's.
const grown = 1 << 30

func TestImageBoots(t *testing.T) {
	t.Parallel()
	r := imageWithTests(t)
	o := newOwner(t)
	p := newPod(t, o)
	chip, key := newAttestingTPM(t)
	o.expect(t, r.Measurements, key, p.pcr8())
	m := machine{disk: CopyDisk(t, r.Raw, grown), tpm: chip, data: []*Disk{NewDisk(t, 128<<20), NewDisk(t, 256<<20)}}
	// The second time, scratch storage has a volume whose key is gone, and the cloud
	// volume one whose data is to be there.
	for i, boot := range []string{"first", "second"} {
		t.Run(boot, func(t *testing.T) {
			out := bootPod(t, r, p, m)
			if want := []string{newLedger, keptLedger}[i]; !strings.Contains(out, want) {
				t.Errorf("the data of the cloud volume: no %q", want)
			}
		})
	}
}

// machine is the hardware that both boots have.
type machine struct {
	disk *Disk
	tpm  *TPM
	data []*Disk
}

// useOnce switches the machine on, uses it as a node does, and returns when it
// is off. The error is that of using it.
func useOnce(t *testing.T, p *pod, m machine) (vm *VM, err error) {
	t.Helper()
	vm = Start(t, Config{Boot: m.disk, TPM: m.tpm, Disks: m.data, Ports: []int{15150}, Memory: 2048, Timeout: 6 * time.Minute, Devices: p.cdrom()})
	if err = p.createSandbox(t.Context(), vm); err == nil {
		err = p.runContainers(t.Context(), vm)
		p.refusesStrangers(t, vm)
	}
	_ = vm.Wait() // the caller asks again
	return vm, err
}

func bootPod(t *testing.T, r *image.Result, p *pod, m machine) (out string) {
	t.Helper()
	vm, used := useOnce(t, p, m)
	for try := 1; vm.Stumbled(t, try); try++ {
		vm, used = useOnce(t, p, m)
	}
	if used != nil {
		t.Errorf("using the pod: %v", used)
	}
	if err := vm.Wait(); err != nil {
		t.Fatal(err)
	}
	out = vm.Output()
	if passed, problem := summary(out); problem != "" {
		t.Errorf("%s\n%s", problem, out)
	} else {
		t.Logf("%d tests passed", passed)
	}
	measured := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)PCR (\d+) ([0-9a-f]{64})$`).FindAllStringSubmatch(out, -1) {
		measured[m[1]] = m[2]
	}
	zero := strings.Repeat("0", 64)
	for pcr, want := range map[string]string{
		"8": p.pcr8(), "9": r.Measurements.PCR9, "11": r.Measurements.PCR11, "12": zero, "13": zero,
	} {
		if measured[pcr] != want {
			t.Errorf("PCR %s is %s, predicted was %s", pcr, measured[pcr], want)
		}
	}
	// The firmware has tried the disk with user data, too.
	if !slices.Contains(r.Measurements.PCR4[:], measured["4"]) {
		t.Errorf("PCR 4 is %s, predicted was one of %s", measured["4"], r.Measurements.PCR4)
	}
	for line := range strings.Lines(out) {
		if _, figure, ok := strings.Cut(line, "FIGURE "); ok {
			t.Log("FIGURE", strings.TrimSpace(figure))
		}
	}
	up, _ := vm.Boot()
	t.Logf("FIGURE power-on to the pod's second container %v, firmware included", up.Round(time.Millisecond))
	return out
}

// The owner's reference values come from the builder, and the machine's quote
// from its TPM, so that a change of the image must change them.
func TestImageIsTheSameTwice(t *testing.T) {
	t.Parallel()
	first := productionImage(t)
	began := time.Now()
	again, err := buildImage(t, "again", installed(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("FIGURE second build of the image %v", time.Since(began).Round(100*time.Millisecond))
	if first.SHA256 != again.SHA256 || *first.Measurements != *again.Measurements {
		t.Errorf("%s with %+v, then %s with %+v", first.SHA256, first.Measurements, again.SHA256, again.Measurements)
	}
	info, err := os.Stat(first.Raw)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("FIGURE image %d MiB", info.Size()>>20)
}

// partitionStart is the offset in bytes of the partition called name.
func partitionStart(t *testing.T, disk, name string) int64 {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "sfdisk", "--json", disk).Output()
	if err != nil {
		t.Fatal(err)
	}
	var table struct {
		PartitionTable struct {
			Partitions []struct {
				Name  string
				Start int64
			}
		}
	}
	if err := json.Unmarshal(out, &table); err != nil {
		t.Fatal(err)
	}
	for _, p := range table.PartitionTable.Partitions {
		if p.Name == name {
			return p.Start * 512
		}
	}
	t.Fatalf("no partition is called %s", name)
	return 0
}

func TestTamperedImageDoesNotBoot(t *testing.T) {
	t.Parallel()
	r := productionImage(t)
	root, hashes := partitionStart(t, r.Raw, "root"), partitionStart(t, r.Raw, "root-verity")
	for name, c := range map[string]struct {
		at   func(d *Disk) int64
		says string
	}{
		// Where the inodes start is in the superblock, at byte 64.
		// Source: linux v6.12 fs/squashfs/squashfs_fs.h.
		"an inode of the root file system": {func(d *Disk) int64 {
			var start [8]byte
			if _, err := d.file.ReadAt(start[:], root+64); err != nil {
				t.Fatal(err)
			}
			return root + int64(binary.LittleEndian.Uint64(start[:])) + 100
		}, "dm-verity device corrupted"},
		"the root of the hash tree": {func(*Disk) int64 { return hashes + 4096 + 5 }, "dm-verity device corrupted"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			disk := CopyDisk(t, r.Raw, 0)
			at, b := c.at(disk), make([]byte, 1)
			if _, err := disk.file.ReadAt(b, at); err != nil {
				t.Fatal(err)
			}
			b[0] ^= 1
			if _, err := disk.file.WriteAt(b, at); err != nil {
				t.Fatal(err)
			}
			stops(t, Config{Boot: disk}, c.says)
		})
	}
}

// Firmware passes a command line that the host has chosen to a kernel image, as
// long as Secure Boot is off.
func TestImageTakesNoOtherCommandLine(t *testing.T) {
	t.Parallel()
	r := productionImage(t)
	stops(t, Config{
		Boot:    CopyDisk(t, r.Raw, 0),
		Devices: []string{"-kernel", r.UKI, "-append", "console=ttyS0 panic=-1 systemd.debug_shell=ttyS0"},
	}, "the kernel's command line is not the one of this image")
}

// stops boots a machine that must panic in its initrd, and say so.
func stops(t *testing.T, c Config, says string) {
	t.Helper()
	c.Memory, c.Timeout = 1024, 2*time.Minute
	vm := Start(t, c)
	for try := 1; vm.Stumbled(t, try); try++ {
		vm = Start(t, c)
	}
	err := vm.Wait()
	if !errors.Is(err, ErrCrash) {
		t.Fatal(err)
	}
	console := vm.Console()
	if !strings.Contains(console, says) || !strings.Contains(console, "Kernel panic") {
		t.Errorf("the console does not say %q and that the kernel panicked:\n%s", says, console)
	}
	if strings.Contains(console, "systemd[1]") {
		t.Errorf("systemd has started:\n%s", console)
	}
}

// What nobody can run cannot be a way in.
func TestProductionImageHasNoWayIn(t *testing.T) {
	t.Parallel()
	r := productionImage(t)
	tool := testenv.Tool(t, "unsquashfs")
	raw, err := os.ReadFile(r.Raw)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	fs := filepath.Join(dir, "root")
	if err := os.WriteFile(fs, raw[partitionStart(t, r.Raw, "root"):], 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), tool, "-lls", "-d", "", fs).Output()
	if err != nil {
		t.Fatal(err)
	}
	banned := regexp.MustCompile(`/(s?bin|libexec)/(sh|bash|dash|rbash|busybox|sshd|login|agetty|sulogin|su|sudo|python3?|perl|cloud-init|apt|dpkg|vmtest-report|guest\.test)$`)
	var names []string
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) < 6 {
			continue
		}
		name := f[5]
		names = append(names, name)
		if banned.MatchString(name) {
			t.Errorf("the image has %s", name)
		}
		if mode := f[0]; strings.ContainsAny(mode, "sS") {
			t.Errorf("%s has mode %s", name, mode)
		}
		if mode := f[0]; mode[0] != 'l' && len(mode) == 10 && mode[8] == 'w' && mode[9] != 't' {
			t.Errorf("everybody may write %s", name)
		}
		if f[1] != "root/root" {
			t.Errorf("%s belongs to %s", name, f[1])
		}
	}
	if !slices.Contains(names, "/usr/lib/systemd/systemd") {
		t.Errorf("not a list of the image's files:\n%.500s", out)
	}
	t.Logf("FIGURE %d files", len(names))
}
