package luks

import (
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/podvm/testenv"
	"github.com/sealpod/sealpod/podvm/tool"
)

func TestEagerInit(t *testing.T) {
	for in, want := range map[string]string{
		"":                            "-E lazy_itable_init=0",
		"-O ^has_journal -m 0":        "-O ^has_journal -m 0 -E lazy_itable_init=0",
		"-E lazy_journal_init":        "-E lazy_journal_init,lazy_itable_init=0",
		"-E a=1 -E b=2 -F":            "-E a=1 -E b=2,lazy_itable_init=0 -F",
		"-Ea=1":                       "-Ea=1,lazy_itable_init=0",
		"-E a=1 -Eb=2":                "-E a=1 -Eb=2,lazy_itable_init=0",
		"-E lazy_itable_init=1 -F":    "-E lazy_itable_init=1 -F",
		"-E x,lazy_itable_init=0,y=1": "-E x,lazy_itable_init=0,y=1",
	} {
		args := strings.Fields(in)
		before := slices.Clone(args)
		if got := strings.Join(eagerInit(args), " "); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
		if !slices.Equal(args, before) {
			t.Errorf("%q: the options of the caller changed", in)
		}
	}
}

// The dry run of the real program, for file systems of different shape.
func TestSuperblocks(t *testing.T) {
	mkfs := testenv.Tool(t, "mkfs.ext4")
	for name, tt := range map[string]struct {
		size int64
		opts []string
		want []int64
	}{
		"small, without copies": {16 << 20, []string{"-b", "4096"}, []int64{0}},
		"large":                 {300 << 20, []string{"-b", "4096"}, []int64{0, 32768 * 4096}},
		"small blocks":          {40 << 20, []string{"-b", "1024"}, []int64{0, 8193 * 1024 &^ 4095, 24577 * 1024 &^ 4095}},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := exec.Command(mkfs, append(append([]string{"-F", "-n"}, tt.opts...), image(t, tt.size))...).Output()
			if err != nil {
				t.Fatal(err)
			}
			if got, err := superblocks(string(out)); err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("%v, %v, want %v\n%s", got, err, tt.want, out)
			}
		})
	}
	for name, out := range map[string]string{
		"nothing": "", "no size": "Superblock backups stored on blocks: 1", "a strange size": "Creating filesystem with 1 99999k blocks and",
		"a huge number": "Creating filesystem with 9 4k blocks and 1 inodes\nSuperblock backups stored on blocks:\n\t9223372036854775807\n",
	} {
		if got, err := superblocks(out); err == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func FuzzMkfsOptions(f *testing.F) {
	for _, s := range []string{"", "-E lazy_journal_init", "-O ^has_journal -m 0 -i 163840 -I 128", "-Fq -Ea=1", "-J device=x", "-é"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		args, err := MkfsOptions(s)
		if err != nil {
			if !errors.Is(err, tool.ErrOption) {
				t.Fatal(err)
			}
			return
		}
		got := eagerInit(args)
		n := 0
		for i, a := range got {
			if strings.Contains(a, lazyInit) {
				n++
			}
			// Nothing but options and their values.
			if i == 0 && (len(a) < 2 || a[0] != '-') {
				t.Fatalf("%q", got)
			}
		}
		if n == 0 {
			t.Fatalf("%q has no %s", got, lazyInit)
		}
		if again := eagerInit(got); !slices.Equal(again, got) {
			t.Fatalf("%q, again %q", got, again)
		}
		// What is accepted stays so with the addition.
		if _, err := MkfsOptions(strings.Join(got, " ")); err != nil {
			t.Fatalf("%q: %v", got, err)
		}
	})
}
