package image

import (
	"bytes"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/sealpod/sealpod/podvm/debian"
)

// accounts makes the users and groups that the sysusers.d files of the image
// name, none of whom can log in. Numbers that no file fixes go down from 999 in
// the order of names. Lines of other kinds, and conditions, are refused: systemd
// would do more with them.
// Source: systemd sysusers.d(5).
func accounts(t debian.Tree) error {
	users, groups := map[string]user{}, map[string]int{}
	for _, name := range slices.Sorted(maps.Keys(t)) {
		if ok, _ := path.Match("usr/lib/sysusers.d/*.conf", name); !ok {
			continue
		}
		for i, line := range strings.Split(string(t[name].Data), "\n") {
			if err := account(strings.TrimSpace(line), users, groups); err != nil {
				return fmt.Errorf("reading %s, line %d: %w", name, i+1, err)
			}
		}
	}
	taken := map[int]bool{}
	for _, id := range groups {
		taken[id] = true
	}
	for _, u := range users {
		taken[u.id] = true
	}
	next := 999
	free := func() int {
		for taken[next] {
			next--
		}
		taken[next] = true
		return next
	}
	var passwd, group, shadow bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(users)) {
		u := users[name]
		if u.id < 0 {
			u.id = free()
		}
		if g, ok := groups[name]; u.group < 0 && (!ok || g < 0) {
			groups[name] = u.id
		}
		if u.group < 0 {
			u.group = groups[name]
		}
		fmt.Fprintf(&passwd, "%s:x:%d:%d:%s:%s:/usr/sbin/nologin\n", name, u.id, u.group, u.gecos, u.home)
		fmt.Fprintf(&shadow, "%s:!*:1::::::\n", name)
	}
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		id := groups[name]
		if id < 0 {
			id = free()
		}
		fmt.Fprintf(&group, "%s:x:%d:\n", name, id)
	}
	if _, ok := users["root"]; !ok {
		return fmt.Errorf("no sysusers.d file names root")
	}
	t["etc/passwd"] = debian.File(0o644, passwd.Bytes())
	t["etc/group"] = debian.File(0o644, group.Bytes())
	t["etc/shadow"] = debian.File(0o600, shadow.Bytes())
	return nil
}

type user struct {
	id, group   int // -1 is any
	gecos, home string
}

func account(line string, users map[string]user, groups map[string]int) error {
	f := fields(line)
	if len(f) == 0 || strings.HasPrefix(line, "#") {
		return nil
	}
	for len(f) < 6 {
		f = append(f, "-")
	}
	id, group, err := numbers(f[2])
	if err != nil {
		return err
	}
	switch f[0] {
	case "u", "u!":
		home := f[4]
		if home == "-" {
			home = "/"
		}
		users[f[1]] = user{id, group, strings.Trim(f[3], "-"), home}
	case "g":
		groups[f[1]] = id
	default:
		return fmt.Errorf("type %q is not known", f[0])
	}
	return nil
}

// numbers reads the third column: "-", UID or UID:GID.
func numbers(s string) (id, group int, err error) {
	if s == "-" {
		return -1, -1, nil
	}
	uid, gid, both := strings.Cut(s, ":")
	if id, err = strconv.Atoi(uid); err != nil {
		return 0, 0, fmt.Errorf("not a number of a user: %q", s)
	}
	if !both {
		return id, -1, nil
	}
	if group, err = strconv.Atoi(gid); err != nil {
		return 0, 0, fmt.Errorf("not a number of a group: %q", s)
	}
	return id, group, nil
}

// fields splits at blanks outside of double quotes.
func fields(line string) []string {
	var out []string
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimSpace(line) {
		if quoted, ok := strings.CutPrefix(line, `"`); ok {
			text, rest, _ := strings.Cut(quoted, `"`)
			out, line = append(out, text), rest
			continue
		}
		i := strings.IndexAny(line, " \t")
		if i < 0 {
			i = len(line)
		}
		out, line = append(out, line[:i]), line[i:]
	}
	return out
}
