package sysfs

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/podvm/testenv"
)

// The tools of a shell are enough for a report, as the kernel's documentation
// has it, and for a register.
func TestShellTools(t *testing.T) {
	tests := map[string]struct{ script, want string }{
		"a report by dd": {`
			mkdir e
			printf %64s | tr ' ' d | dd of=e/inblob bs=64 count=1 2>/dev/null
			dd if=e/outblob bs=7 2>/dev/null; echo; cat e/generation e/provider
			rmdir e && ls`, report0 + "\n1\ntdx_guest\n"},
		"a report by redirection": {`
			mkdir e; printf %64s | tr ' ' d > e/inblob
			cat < e/outblob; echo; cat e/generation; rmdir e; ls`, report0 + "\n1\n"},
		"two programs write one file": {`
			mkdir e; { printf %32s | tr ' ' d; printf %32s | tr ' ' d; } > e/inblob
			cat e/outblob; echo; cat e/generation; rmdir e`, report0 + "\n1\n"},
		"dd of single bytes": {`
			mkdir e; printf %64s | tr ' ' d | dd of=e/inblob bs=1 2>/dev/null
			cat e/outblob; echo; cat e/generation; rmdir e`, report0 + "\n1\n"},
		"too much": {`
			mkdir e; printf %65s > e/inblob 2>&1 || echo refused; cat e/outblob 2>&1; rmdir e`,
			"refused\ncat: e/outblob: Invalid argument\n"},
		"the part behind byte 7": {`
			mkdir e; printf %64s | tr ' ' d > e/inblob
			tail -c +8 e/outblob | head -c 4; rmdir e`, "dddd"},
		"cp": {`
			mkdir e; printf %64s | tr ' ' d > e/inblob
			cp e/outblob "$OUT"; cat "$OUT"; rmdir e`, report0},
		"rm does not": {`mkdir e; rm -r e 2>/dev/null || ls; rmdir e`, "e\n"},
		"a register": {`
			cd "$SYS/` + registerPath + `"
			wc -c < rtmr2:sha384
			printf %48s > rtmr2:sha384 && printf %47s > rtmr2:sha384 2>/dev/null || echo refused
			printf %48s >> rtmr2:sha384 && echo appended
			dd if=mrconfigid bs=48 count=1 2>/dev/null | tr '\007' 7`, "48\nrefused\nappended\n" + strings.Repeat("7", 48)},
	}
	sh := testenv.Tool(t, "sh")
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tree, _, _ := tdxTree()
			sys := mountTree(t, tree)
			cmd := exec.CommandContext(t.Context(), sh, "-c", tt.script)
			cmd.Dir = sys + "/" + reportPath
			cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "SYS=" + sys, "OUT=" + t.TempDir() + "/out"}
			out, err := cmd.CombinedOutput()
			if err != nil || string(out) != tt.want {
				t.Errorf("%v\n%q, want\n%q", err, out, tt.want)
			}
		})
	}
}
