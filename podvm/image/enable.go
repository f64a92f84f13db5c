package image

import (
	"fmt"
	"path"
	"strings"

	"github.com/sealpod/sealpod/podvm/debian"
)

// enable makes the links of the units that the presets in the tree over enable by
// name, as systemctl preset would: /etc cannot be written at the first boot.
// Source: systemd systemd.preset(5), systemd.unit(5) on [Install].
func enable(over, t debian.Tree) error {
	for name, n := range over {
		if ok, _ := path.Match("usr/lib/systemd/system-preset/*.preset", name); !ok {
			continue
		}
		for line := range strings.Lines(string(n.Data)) {
			f := strings.Fields(line)
			if len(f) != 2 || f[0] != "enable" {
				continue
			}
			unit, ok := t[unitDir+f[1]]
			if !ok {
				return fmt.Errorf("enabling units by %s: there is no %s", name, f[1])
			}
			for _, target := range wantedBy(string(unit.Data)) {
				t[unitDir+target+".wants/"+f[1]] = debian.Link("../" + f[1])
			}
		}
	}
	return nil
}

// wantedBy returns the units that are to want a unit when it is enabled.
func wantedBy(unit string) []string {
	var out []string
	install := false
	for line := range strings.Lines(unit) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			install = line == "[Install]"
		}
		if list, ok := strings.CutPrefix(line, "WantedBy="); ok && install {
			out = append(out, strings.Fields(list)...)
		}
	}
	return out
}
