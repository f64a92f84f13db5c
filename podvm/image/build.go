package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sealpod/sealpod/podvm/debian"
)

// Options say what to build. The zero value of a field is what it says.
type Options struct {
	// Out is the path of the disk image without its ending; files that belong to
	// it are beside.
	Out string
	// Init is the program podvm/image/init, built for the guest.
	Init string
	// Cache is a directory for unpacked packages; empty is none.
	Cache string
	// Profile is who the image is for; empty is Production.
	Profile Profile
	// Mirror is the URL of the archive; empty is Snapshot of snapshot.debian.org.
	Mirror string
	// Pinned are the packages to build with: any other is an error. Nil is any.
	Pinned []debian.Package
	// Trees are directories that go over the root file system, as what make
	// install leaves in DESTDIR. The last wins.
	Trees []string
	// KataAgent is the program kata-agent, to be /usr/local/bin/kata-agent; empty
	// is none, for Trees that have it or images whose forwarder never starts.
	KataAgent string
	// PauseBundle is the unpacked bundle of the pause image, to be /pause_bundle;
	// empty is none.
	PauseBundle string
	// AgentPolicy is a file with kata-agent's policy for pods whose init data has
	// none; empty allows everything then.
	AgentPolicy string
	// QCow2 makes an image for qemu besides.
	QCow2 bool
}

// Result is what a build has made.
type Result struct {
	Raw, QCow2, UKI string // paths; QCow2 is empty where none was asked for
	SHA256          string // of Raw, hex
	RootHash        string // hex
	Packages        []debian.Package
	Measurements    *Measurements
}

// ErrPinned says that the archive has other packages than those asked for.
var ErrPinned = errors.New("the archive has not the packages of the list")

// Mirror is the URL of Debian's archive at a time, as in 20261124T000000Z.
func Mirror(snapshot string) string {
	return "http://snapshot.debian.org/archive/debian/" + snapshot
}

// Build makes an image. It needs the programs that CheckTools looks for.
func Build(ctx context.Context, o Options) (_ *Result, err error) {
	if err := CheckTools(o.QCow2); err != nil {
		return nil, err
	}
	if o.Profile == "" {
		o.Profile = Production
	}
	if o.Profile != Production && o.Profile != Debug {
		return nil, fmt.Errorf("there is no profile %q", o.Profile)
	}
	all, list, err := fetch(ctx, o)
	if err != nil {
		return nil, err
	}
	if o.Pinned != nil && !slices.Equal(o.Pinned, list) {
		return nil, fmt.Errorf("%w: %s", ErrPinned, difference(o.Pinned, list))
	}
	over, err := o.over()
	if err != nil {
		return nil, err
	}
	t, err := root(ctx, all, o.Profile, over...)
	if err != nil {
		return nil, err
	}
	work, err := os.MkdirTemp(filepath.Dir(o.Out), ".build-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	r := &Result{Raw: o.Out + ".raw", UKI: o.Out + ".efi", Packages: list}
	if err := r.assemble(ctx, o, all, t, work); err != nil {
		return nil, err
	}
	return r, nil
}

// assemble makes the disk out of the root file system t.
func (r *Result) assemble(ctx context.Context, o Options, all, t debian.Tree, work string) error {
	in := func(name string) string { return filepath.Join(work, name) }
	if err := squash(ctx, t, in("root")); err != nil {
		return err
	}
	spec, err := verity(ctx, in("root"), in("verity"))
	if err != nil {
		return err
	}
	r.RootHash = spec.RootHash
	init, err := os.ReadFile(o.Init)
	if err != nil {
		return err
	}
	spec.Cmdline = cmdline(spec.RootHash)
	archive, err := initrd(ctx, all, init, spec)
	if err != nil {
		return err
	}
	uki, err := kernelImage(all, t, archive, spec.Cmdline)
	if err != nil {
		return err
	}
	if r.Measurements, err = Measure(uki); err != nil {
		return err
	}
	if err := os.WriteFile(r.UKI, uki, 0o644); err != nil {
		return err
	}
	if err := esp(ctx, r.UKI, in("esp")); err != nil {
		return err
	}
	// Empty, as scratch-storage wants it; systemd-repart makes it larger.
	if err := blank(in("scratch"), scratchSize); err != nil {
		return err
	}
	if err := writeDisk(ctx, in("disk"), []partition{
		{"esp", typeESP, espID, in("esp")},
		{"root", typeRoot, spec.Data, in("root")},
		{"root-verity", typeVerity, spec.Hash, in("verity")},
		{scratchLabel, typeLinux, scratchID, in("scratch")},
	}); err != nil {
		return err
	}
	if r.SHA256, err = fileSum(in("disk")); err != nil {
		return err
	}
	if o.QCow2 {
		r.QCow2 = o.Out + ".qcow2"
		if err := qcow2(ctx, in("disk"), r.QCow2); err != nil {
			return err
		}
	}
	return os.Rename(in("disk"), r.Raw)
}

// cmdline is the kernel's command line. Nothing on the disk or in firmware
// variables may add to what the image says, and a panic ends the machine's run.
func cmdline(rootHash string) string {
	return strings.Join([]string{
		"roothash=" + rootHash, "console=ttyS0", "panic=10", "oops=panic", "module.sig_enforce=1", "quiet", "loglevel=4",
		// /var is in memory. The installer's questions, and the PCRs that firmware
		// variables or partitions would change, are for other machines.
		"systemd.volatile=state", "systemd.firstboot=off", "systemd.gpt_auto=no", "systemd.import_credentials=no",
		// systemd takes options from the firmware variable SystemdOptions, which
		// nobody measures: without run-time services there are no variables.
		"efi=noruntime",
		"selinux=0", "audit=0",
		// AWS SEV-SNP guests hang in it. The misspelling is the kernel's.
		"initcall_blacklist=vmgenid_plaform_driver_init",
	}, " ")
}

// kernelImage makes the unified kernel image.
func kernelImage(all, t debian.Tree, initrd []byte, cmdline string) ([]byte, error) {
	version, err := kernelVersion(t)
	if err != nil {
		return nil, err
	}
	stub, err := all.Glob("usr/lib/systemd/boot/efi/linuxx64.efi.stub")
	if err != nil {
		return nil, err
	}
	kernel, err := all.Glob("boot/vmlinuz-" + version)
	if err != nil {
		return nil, err
	}
	return unify(stub.Data, []section{
		{".osrel", t["usr/lib/os-release"].Data},
		{".cmdline", []byte(cmdline)},
		{".uname", []byte(version)},
		{".initrd", initrd},
		{".linux", kernel.Data},
	})
}

// over are the trees that go over the packages.
func (o *Options) over() ([]debian.Tree, error) {
	var out []debian.Tree
	for _, dir := range o.Trees {
		t, err := debian.ReadDir(dir, "/")
		if err != nil {
			return nil, fmt.Errorf("reading the tree %s: %w", dir, err)
		}
		out = append(out, merged(t))
	}
	if o.KataAgent != "" {
		data, err := os.ReadFile(o.KataAgent)
		if err != nil {
			return nil, err
		}
		out = append(out, debian.Tree{"usr/local/bin/kata-agent": debian.File(0o755, data)})
	}
	if o.AgentPolicy != "" {
		data, err := os.ReadFile(o.AgentPolicy)
		if err != nil {
			return nil, err
		}
		out = append(out, debian.Tree{agentPolicy: debian.File(0o644, data)})
	}
	if o.PauseBundle != "" {
		t, err := debian.ReadDir(o.PauseBundle, "/pause_bundle")
		if err != nil {
			return nil, fmt.Errorf("reading the pause bundle: %w", err)
		}
		out = append(out, t)
	}
	return out, nil
}

// merged moves what is in /bin, /lib and so on to where the links lead.
func merged(t debian.Tree) debian.Tree {
	out := debian.Tree{}
	for name, n := range t {
		switch name {
		case "bin", "sbin", "lib", "lib64":
		default:
			out[debian.Merged(name)] = n
		}
	}
	return out
}

// fetch unpacks the packages, or takes them from the cache.
func fetch(ctx context.Context, o Options) (debian.Tree, []debian.Package, error) {
	cached, source := cachePath(o)
	if o.Cache != "" {
		t, list, err := readCache(cached)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return t, list, err
		}
		if err := os.MkdirAll(o.Cache, 0o755); err != nil {
			return nil, nil, err
		}
	}
	t, list, err := debian.Fetch(ctx, source)
	if err != nil || o.Cache == "" {
		return t, list, err
	}
	return t, list, writeCache(cached, t, list)
}

// cachePath is where unpacked packages are kept, by what they come from.
func cachePath(o Options) (string, debian.Source) {
	source := debian.Source{Suite: Suite, Mirror: o.Mirror, Packages: packages}
	if source.Mirror == "" {
		source.Mirror = Mirror(Snapshot)
	}
	if o.Profile == Debug {
		source.Packages = append(slices.Clone(packages), debugPackages...)
	}
	id := sha256.Sum256(fmt.Appendf(nil, "1 %q", []any{source.Suite, source.Mirror, source.Packages}))
	return filepath.Join(o.Cache, fmt.Sprintf("%s-%x.tar", Suite, id[:6])), source
}

func readCache(path string) (debian.Tree, []debian.Package, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	raw, err := os.ReadFile(path + ".packages")
	if err != nil {
		return nil, nil, err
	}
	list, err := debian.ParsePackages(raw)
	if err != nil {
		return nil, nil, err
	}
	t, err := debian.Read(f)
	return t, list, err
}

// writeCache writes the archive last and at once: it is there or it is not.
func writeCache(path string, t debian.Tree, list []debian.Package) error {
	archive, err := t.Tar()
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".packages", debian.FormatPackages(list), 0o644); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".part-")
	if err != nil {
		return err
	}
	_, err = io.Copy(f, archive)
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return os.Rename(f.Name(), path)
}

// difference says how two lists differ, up to the first of each side.
func difference(want, got []debian.Package) string {
	first := func(a, b []debian.Package) string {
		for _, p := range a {
			if !slices.Contains(b, p) {
				return p.File
			}
		}
		return "none"
	}
	return fmt.Sprintf("only in the list is %s, only in the archive %s", first(want, got), first(got, want))
}

func fileSum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
