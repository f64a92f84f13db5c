package untar

import (
	"archive/tar"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm/testenv"
)

// capability is cap_net_bind_service=ep in the version 2 format.
const capability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

const root = "d 0755 ."

func TestExtract(t *testing.T) {
	tests := []struct {
		name string
		in   []ent
		// overlay and plain are what list shows; plain nil means "the same".
		overlay, plain []string
		err            error
	}{
		{name: "empty archive", overlay: []string{root}},
		{
			name:    "file, directory, symlink",
			in:      []ent{{name: "a/"}, {name: "a/f", body: "x"}, {name: "a/l", typ: tar.TypeSymlink, link: "../../etc/passwd"}},
			overlay: []string{root, "d 0755 a", `- 0644 a/f "x"`, "l 0777 a/l -> ../../etc/passwd"},
		},
		{
			name:    "missing parents are made 0755",
			in:      []ent{{name: "a/b/f"}},
			overlay: []string{root, "d 0755 a", "d 0755 a/b", "- 0644 a/b/f"},
		},
		{
			name:    "a dot entry sets owner, mode and time of the root",
			in:      []ent{{name: "./", mode: 0o1711, uid: 5, gid: 6, mtime: time.Unix(1400000000, 0)}, {name: "./f"}},
			overlay: []string{"d 1711 . 5:6 @1400000000.0", "- 0644 f"},
			plain:   []string{"d 1711 . @1400000000.0", "- 0644 f"},
		},
		{
			name:    "a leading slash is dropped",
			in:      []ent{{name: "/etc/"}, {name: "//etc/f", body: "x"}},
			overlay: []string{root, "d 0755 etc", `- 0644 etc/f "x"`},
		},
		{
			name:    "setuid, setgid and sticky are kept after chown",
			in:      []ent{{name: "su", mode: 0o4755, uid: 7, gid: 8}, {name: "sg", mode: 0o2711}, {name: "d/", mode: 0o3777}},
			overlay: []string{root, "d 3777 d", "- 2711 sg", "- 4755 su 7:8"},
			plain:   []string{root, "d 3777 d", "- 2711 sg", "- 4755 su"},
		},
		{
			name: "file capabilities survive chown",
			in: []ent{{name: "ping", mode: 0o755, uid: 1, gid: 1, xattrs: map[string]string{
				"security.capability": capability}}},
			overlay: []string{root, "- 0755 ping 1:1 security.capability=" + `"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"`},
			plain:   []string{root, "- 0755 ping"},
		},
		{
			name: "attributes on files, directories and symlinks; overlayfs' own are dropped",
			in: []ent{
				{name: "d/", xattrs: map[string]string{"user.d": "1", "trusted.overlay.redirect": "/x", "trusted.keep": "k"}},
				{name: "f", mode: 0o444, xattrs: map[string]string{"user.f": "2", "trusted.overlay.opaque": "y", "user.overlay.opaque": "y"}},
				{name: "l", typ: tar.TypeSymlink, link: "f", xattrs: map[string]string{"trusted.l": "3", "user.no": "4"}},
			},
			overlay: []string{root, `d 0755 d trusted.keep="k" user.d="1"`, `- 0444 f user.f="2"`, `l 0777 l -> f trusted.l="3"`},
			plain:   []string{root, `d 0755 d user.d="1"`, `- 0444 f user.f="2"`, `l 0777 l -> f`},
		},
		{
			name: "devices and fifos",
			in: []ent{{name: "null", typ: tar.TypeChar, major: 1, minor: 3, mode: 0o666}, {name: "disk", typ: tar.TypeBlock, major: 259, minor: 70000, mode: 0o660, gid: 6},
				{name: "pipe", typ: tar.TypeFifo, mode: 0o622}},
			overlay: []string{root, "b 0660 disk 0:6 dev 259:70000", "c 0666 null dev 1:3", "p 0622 pipe"},
			plain:   []string{root, "p 0622 pipe"},
		},
		{
			name: "hard links, relative and absolute, replace what is there",
			in: []ent{{name: "d/a", body: "x", mode: 0o600}, {name: "d/b", typ: tar.TypeLink, link: "d/a", mode: 0o777},
				{name: "c", body: "old"}, {name: "c", typ: tar.TypeLink, link: "/d/a"}, {name: "c", typ: tar.TypeLink, link: "d/b"}},
			overlay: []string{root, `- 0600 c "x"`, "d 0755 d", "- 0600 d/a == c", "- 0600 d/b == c"},
		},
		{
			name:    "a hard link through a symlink parent stays in the layer",
			in:      []ent{{name: "real/f", body: "x"}, {name: "s", typ: tar.TypeSymlink, link: "/real"}, {name: "l", typ: tar.TypeLink, link: "s/f"}},
			overlay: []string{root, `- 0644 l "x"`, "d 0755 real", "- 0644 real/f == l", "l 0777 s -> /real"},
		},
		{
			name: "a file over a hard link does not write through it",
			in: []ent{{name: "a", body: "old"}, {name: "b", typ: tar.TypeLink, link: "a"},
				{name: "b", body: "new"}},
			overlay: []string{root, `- 0644 a "old"`, `- 0644 b "new"`},
		},
		{
			name:    "a hard link to itself changes nothing",
			in:      []ent{{name: "a", body: "x"}, {name: "a", typ: tar.TypeLink, link: "a"}},
			overlay: []string{root, `- 0644 a "x"`},
		},
		{name: "hard link before its target", in: []ent{{name: "b", typ: tar.TypeLink, link: "a"}, {name: "a"}}, err: ErrArchive},
		{name: "hard link to a directory", in: []ent{{name: "a/"}, {name: "b", typ: tar.TypeLink, link: "a"}}, err: ErrArchive},
		{
			name:    "whiteouts",
			in:      []ent{{name: "d/.wh.gone", body: "ignored"}, {name: ".wh.x"}},
			overlay: []string{root, "d 0755 d", "c 0000 d/gone dev 0:0", "c 0000 x dev 0:0"},
			plain:   []string{root, "- 0600 .wh.x", "d 0755 d", "- 0600 d/.wh.gone"},
		},
		{
			name:    "opaque directories, also before their own entry",
			in:      []ent{{name: "a/.wh..wh..opq"}, {name: "a/f"}, {name: "b/"}, {name: "b/.wh..wh..opq"}, {name: "a/", mode: 0o700}},
			overlay: []string{root, `d 0700 a trusted.overlay.opaque="y"`, "- 0644 a/f", `d 0755 b trusted.overlay.opaque="y"`},
			plain:   []string{root, "d 0700 a", "- 0600 a/.wh..wh..opq", "- 0644 a/f", "d 0755 b", "- 0600 b/.wh..wh..opq"},
		},
		{
			name:    "the root can be opaque",
			in:      []ent{{name: ".wh..wh..opq"}},
			overlay: []string{root + ` trusted.overlay.opaque="y"`},
			plain:   []string{root, "- 0600 .wh..wh..opq"},
		},
		{
			name: "a name both hidden and present is present, a directory then opaque",
			in: []ent{{name: "d/f"}, {name: ".wh.d"}, {name: "f"}, {name: ".wh.f"},
				{name: ".wh.e"}, {name: "e/g"}, {name: ".wh.h"}, {name: "h/"}, {name: ".wh.i"}, {name: "i"}},
			overlay: []string{root, `d 0755 d trusted.overlay.opaque="y"`, "- 0644 d/f", `d 0755 e trusted.overlay.opaque="y"`,
				"- 0644 e/g", "- 0644 f", `d 0755 h trusted.overlay.opaque="y"`, "- 0644 i"},
			plain: []string{root, "- 0600 .wh.d", "- 0600 .wh.e", "- 0600 .wh.f", "- 0600 .wh.h", "- 0600 .wh.i",
				"d 0755 d", "- 0644 d/f", "d 0755 e", "- 0644 e/g", "- 0644 f", "d 0755 h", "- 0644 i"},
		},
		{
			name:    "other AUFS metadata is ignored",
			in:      []ent{{name: ".wh..wh.plnk/"}, {name: ".wh..wh.plnk/1.2"}, {name: ".wh..wh.aufs"}},
			overlay: []string{root},
		},
		{
			name: "the last entry of a name wins",
			in: []ent{{name: "a", body: "1"}, {name: "a", body: "2"}, {name: "b/c/d", body: "x"}, {name: "b", body: "file"},
				{name: "e", body: "x"}, {name: "e/", mode: 0o711}, {name: "e/f"}, {name: "g/h"}, {name: "g/", mode: 0o750}},
			overlay: []string{root, `- 0644 a "2"`, `- 0644 b "file"`, "d 0711 e", "- 0644 e/f", "d 0750 g", "- 0644 g/h"},
		},
		{
			name:    "an absolute symlink as parent resolves inside the layer",
			in:      []ent{{name: "usr/lib/"}, {name: "lib", typ: tar.TypeSymlink, link: "/usr/lib"}, {name: "lib/x", body: "1"}, {name: "lib/sub/"}},
			overlay: []string{root, "l 0777 lib -> /usr/lib", "d 0755 usr", "d 0755 usr/lib", "d 0755 usr/lib/sub", `- 0644 usr/lib/x "1"`},
		},
		{
			name:    "a dangling symlink as parent gets its target",
			in:      []ent{{name: "var/run", typ: tar.TypeSymlink, link: "../../../run/x"}, {name: "var/run/pid", body: "1"}},
			overlay: []string{root, "d 0755 run", "d 0755 run/x", `- 0644 run/x/pid "1"`, "d 0755 var", "l 0777 var/run -> ../../../run/x"},
		},
		{
			name: "a directory replaced by a symlink takes later files elsewhere",
			in: []ent{{name: "d/a"}, {name: "e/"}, {name: "d", typ: tar.TypeSymlink, link: "e"}, {name: "d/b"},
				{name: "d/"}, {name: "d/c"}},
			overlay: []string{root, "d 0755 d", "- 0644 d/c", "d 0755 e", "- 0644 e/b"},
		},
		{
			name: "times of directories are those of the tar, although files came later",
			in: []ent{{name: "d/", mtime: time.Unix(1000000000, 0)}, {name: "d/f", mtime: time.Unix(1100000000, 0)},
				{name: "d/l", typ: tar.TypeSymlink, link: "x", mtime: time.Unix(1200000000, 0)}},
			overlay: []string{root, "d 0755 d @1000000000.0", "- 0644 d/f @1100000000.0", "l 0777 d/l -> x @1200000000.0"},
		},
		{
			name:    "a read-only directory takes its files",
			in:      []ent{{name: "d/", mode: 0o555}, {name: "d/e/", mode: 0o111}, {name: "d/e/f", mode: 0o111}},
			overlay: []string{root, "d 0555 d", "d 0111 d/e", "- 0111 d/e/f"},
			plain:   []string{root, "d 0755 d", "d 0711 d/e", "- 0511 d/e/f"},
		},
		{
			name: "owners, 32 bits through PAX",
			in: []ent{{name: "f", uid: 1<<32 - 2, gid: 3000000}, {name: "d/", uid: 9, gid: 10},
				{name: "l", typ: tar.TypeSymlink, link: "f", uid: 11, gid: 12}},
			overlay: []string{root, "d 0755 d 9:10", "- 0644 f 4294967294:3000000", "l 0777 l 11:12 -> f"},
			plain:   []string{root, "d 0755 d", "- 0644 f", "l 0777 l -> f"},
		},
		{name: "owner -1 would mean no change", in: []ent{{name: "f", uid: 1<<32 - 1}}, err: ErrArchive},
		{name: "owner beyond 32 bits", in: []ent{{name: "f", gid: 1 << 32}}, err: ErrArchive},
		{
			name:    "long names through PAX",
			in:      []ent{{name: strings.Repeat("d", 255) + "/" + strings.Repeat("f", 255)}},
			overlay: []string{root, "d 0755 " + strings.Repeat("d", 255), "- 0644 " + strings.Repeat("d", 255) + "/" + strings.Repeat("f", 255)},
		},
		{name: "contiguous files are files", in: []ent{{name: "f", typ: tar.TypeCont}}, overlay: []string{root, "- 0644 f"}},
		{name: "unknown entry types", in: []ent{{name: "f", typ: 'Q'}}, err: ErrArchive},
		{name: "symlink without a target", in: []ent{{name: "f", typ: tar.TypeSymlink}}, err: ErrArchive},
		{name: "file below a file", in: []ent{{name: "f"}, {name: "f/g"}}, err: ErrArchive},
		{
			name: "a parent that removed itself is gone",
			in:   []ent{{name: "a/x/up", typ: tar.TypeSymlink, link: ".."}, {name: "a/x/up/x", body: "file"}, {name: "a/x/up/y"}},
			err:  ErrArchive,
		},
		{name: "symlink loop as parent", in: []ent{{name: "a", typ: tar.TypeSymlink, link: "b"}, {name: "b", typ: tar.TypeSymlink, link: "a"}, {name: "a/f"}}, err: ErrArchive},
		{name: "symlink to itself and below", in: []ent{{name: "a", typ: tar.TypeSymlink, link: "a/b"}, {name: "a/f"}}, err: ErrArchive},
	}
	for _, tt := range tests {
		for _, mode := range []Mode{Overlay, Plain} {
			t.Run(tt.name+map[Mode]string{Overlay: "/overlay", Plain: "/plain"}[mode], func(t *testing.T) {
				if mode == Overlay {
					testenv.Root(t)
				}
				dir, _, err := extract(t, archive(t, tt.in...), mode)
				if !errors.Is(err, tt.err) || (err != nil) != (tt.err != nil) {
					t.Fatalf("error %v, want %v", err, tt.err)
				}
				if tt.err != nil {
					return
				}
				want := tt.overlay
				if mode == Plain && tt.plain != nil {
					want = tt.plain
				}
				if d := cmp.Diff(want, list(t, dir, mode)); d != "" {
					t.Error(d)
				}
			})
		}
	}
}

func TestStats(t *testing.T) {
	raw := archive(t, ent{name: "c", typ: tar.TypeChar, major: 1}, ent{name: "b", typ: tar.TypeBlock, major: 1}, ent{name: "a/b/c/"},
		ent{name: "x", xattrs: map[string]string{"trusted.x": "1", "user.y": "1"}})
	_, st, err := extract(t, raw, Plain)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Stats{Entries: 4, SkippedDevices: 2, SkippedXattrs: 1}); st != want {
		t.Errorf("got %+v, want %+v", st, want)
	}
}

func TestConcatenatedArchives(t *testing.T) {
	a, b := archive(t, ent{name: "a"}), archive(t, ent{name: "b"})
	zeros := make([]byte, 10240)
	for name, raw := range map[string][]byte{
		"back to back":     append(append([]byte{}, a...), b...),
		"zeros between":    append(append(append([]byte{}, a...), zeros...), b...),
		"zeros at the end": append(append(append([]byte{}, a...), b...), zeros[:700]...),
		"no end marker":    append(append([]byte{}, a...), b[:len(b)-1024]...),
	} {
		t.Run(name, func(t *testing.T) {
			dir, _, err := extract(t, raw, Plain)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff([]string{root, "- 0644 a", "- 0644 b"}, list(t, dir, Plain)); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestImpliedDirectoriesAreMarked: what directories without an entry are is for
// the layers below to say.
func TestImpliedDirectoriesAreMarked(t *testing.T) {
	tests := map[string]struct {
		in      []ent
		implied string // marked directories, the root left out
	}{
		"all described":           {[]ent{{name: "a/"}, {name: "a/f"}}, ""},
		"described later":         {[]ent{{name: "a/b/f"}, {name: "a/"}, {name: "a/b/"}}, ""},
		"some":                    {[]ent{{name: "a/b/f"}, {name: "a/"}, {name: "c/d"}}, "a/b c"},
		"replaced":                {[]ent{{name: "a/f"}, {name: "a"}}, ""},
		"described, then implied": {[]ent{{name: "a/"}, {name: "a"}, {name: "a/"}, {name: "b/"}, {name: "b", typ: tar.TypeSymlink, link: "c"}, {name: "b/f"}}, "c"},
		"behind a symlink":        {[]ent{{name: "l", typ: tar.TypeSymlink, link: "/x/y"}, {name: "l/f"}}, "x x/y"},
		"attribute of our own":    {[]ent{{name: "./", xattrs: map[string]string{ImpliedXattr: "y"}}, {name: "a/"}}, ""},
	}
	for name, tt := range tests {
		for _, mode := range []Mode{Overlay, Plain} {
			t.Run(name+map[Mode]string{Overlay: "/overlay", Plain: "/plain"}[mode], func(t *testing.T) {
				if mode == Overlay {
					testenv.Root(t)
				}
				dir, _, err := extract(t, archive(t, tt.in...), mode)
				if err != nil {
					t.Fatal(err)
				}
				var marked []string
				err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
					var st unix.Stat_t
					if err == nil {
						err = unix.Lstat(p, &st)
					}
					if p != dir && d.IsDir() && !IsDescribed(st) {
						marked = append(marked, strings.TrimPrefix(p, dir+"/"))
					}
					return err
				})
				if got := strings.Join(marked, " "); err != nil || got != tt.implied {
					t.Errorf("marked %q, want %q, %v", got, tt.implied, err)
				}
				_, err = unix.Lgetxattr(dir, ImpliedXattr, nil)
				if want := mode == Overlay && tt.implied != ""; (err == nil) != want {
					t.Errorf("the root says %v", err)
				}
			})
		}
	}
}
