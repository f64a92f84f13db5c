package untar

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm/testenv"
)

// TestGNUTar unpacks what the tar program packs and compares with the
// original, for every format it writes.
func TestGNUTar(t *testing.T) {
	tarBin := testenv.Tool(t, "tar")
	mode := Overlay
	if os.Geteuid() != 0 {
		mode = Plain
	}
	src := t.TempDir()
	in := func(name string) string { return filepath.Join(src, name) }
	sparse, err := os.Create(filepath.Join(src, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{0, 1 << 20, 2<<20 + 4096, 5<<20 + 13} {
		_, e := sparse.WriteAt([]byte("data"), at)
		err = errors.Join(err, e)
	}
	long := strings.Repeat("long-", 30)
	err = errors.Join(err, sparse.Truncate(8<<20), sparse.Close(), os.Chmod(src, 0o755),
		os.MkdirAll(in("d/"+long+"/"+long), 0o755),
		os.WriteFile(in("d/"+long+"/"+long+"/f"), []byte("deep"), 0o600),
		os.WriteFile(in("su"), []byte("su"), 0o755),
		os.Link(in("su"), in("d/su")),
		os.Symlink("../su", in("d/link")),
		os.Symlink("/"+strings.Repeat("t/", 100), in("far")),
		unix.Mkfifo(in("fifo"), 0o640))
	if mode == Overlay {
		err = errors.Join(err,
			os.Chown(in("su"), 1234, 3000000),
			unix.Setxattr(in("su"), "security.capability", []byte(capability), 0),
			unix.Setxattr(in("d"), "trusted.t", []byte("dir"), 0),
			unix.Mknod(in("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	}
	err = errors.Join(err, os.Chmod(in("su"), 0o755|os.ModeSetuid), unix.Setxattr(in("su"), "user.u", []byte("v\x00\n="), 0))
	stamp := []unix.Timespec{{Sec: 1234567890, Nsec: 0}, {Sec: 1234567890, Nsec: 0}}
	for _, name := range []string{"d/link", "d/" + long, "d", "su", "sparse", "fifo", "."} {
		err = errors.Join(err, unix.UtimesNanoAt(unix.AT_FDCWD, in(name), stamp, unix.AT_SYMLINK_NOFOLLOW))
	}
	if err != nil {
		t.Fatal(err)
	}
	want := list(t, src, mode)

	xattrs := []string{"--xattrs", "--xattrs-include=*"}
	for name, args := range map[string][]string{
		"pax":            append(xattrs, "--format=pax"),
		"pax sparse 1.0": append(xattrs, "--format=pax", "--sparse", "--sparse-version=1.0"),
		"pax sparse 0.1": append(xattrs, "--format=pax", "--sparse", "--sparse-version=0.1"),
		"pax sparse 0.0": append(xattrs, "--format=pax", "--sparse", "--sparse-version=0.0"),
		"gnu":            {"--format=gnu"},
		"gnu sparse":     {"--format=gnu", "--sparse"},
	} {
		t.Run(name, func(t *testing.T) {
			raw, err := exec.CommandContext(t.Context(), tarBin, append(args, "-C", src, "-cf", "-", ".")...).Output()
			if err != nil {
				t.Fatal(err)
			}
			dir, _, err := extract(t, raw, mode)
			if err != nil {
				t.Fatal(err)
			}
			expect := slices.Clone(want)
			if strings.HasPrefix(name, "gnu") { // has no attributes
				for i, line := range expect {
					line = strings.Replace(line, ` user.u="v\x00\n="`, "", 1)
					line = strings.Replace(line, ` trusted.t="dir"`, "", 1)
					if at := strings.Index(line, " security.capability="); at >= 0 {
						line = line[:at] + line[strings.LastIndex(line, " @"):]
					}
					expect[i] = line
				}
			}
			if d := cmp.Diff(expect, list(t, dir, mode)); d != "" {
				t.Error(d)
			}
			if a, b := mustRead(t, src+"/sparse"), mustRead(t, dir+"/sparse"); a != b {
				t.Error("sparse file differs")
			}
			var st unix.Stat_t
			if err := unix.Stat(dir+"/sparse", &st); err != nil || (strings.Contains(name, "sparse") && st.Blocks*512 > 1<<20) {
				t.Errorf("sparse file takes %d bytes, %v", st.Blocks*512, err)
			}
		})
	}
}

func mustRead(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
