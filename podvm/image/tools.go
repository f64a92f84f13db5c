package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

// tools are the programs the builder runs, and Debian's packages that have them.
var tools = [][2]string{
	{"mmdebstrap", "mmdebstrap"}, {"xz", "xz-utils"}, {"depmod", "kmod"}, {"mksquashfs", "squashfs-tools"},
	{"veritysetup", "cryptsetup-bin"}, {"sfdisk", "fdisk"}, {"mkfs.vfat", "dosfstools"}, {"mcopy", "mtools"},
}

// ErrTools says that programs the builder runs are missing. The message names
// the packages that have them.
var ErrTools = errors.New("programs are missing")

// CheckTools looks for all programs that a build takes.
func CheckTools(qcow2 bool) error {
	var missing []string
	need := tools
	if qcow2 {
		need = append(need[:len(need):len(need)], [2]string{"qemu-img", "qemu-utils"})
	}
	for _, t := range need {
		if _, err := exec.LookPath(t[0]); err != nil {
			missing = append(missing, fmt.Sprintf("%s (package %s)", t[0], t[1]))
		}
	}
	if missing != nil {
		return fmt.Errorf("%w: install %s", ErrTools, strings.Join(missing, ", "))
	}
	return nil
}

// run runs a program and returns what it writes. The environment is the same
// everywhere, as some of it can get into what programs make.
func run(ctx context.Context, in io.Reader, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/", "LC_ALL=C", "TZ=UTC", "SOURCE_DATE_EPOCH=315532800"}
	var out, said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, &out, &said
	if err := cmd.Run(); err != nil {
		text := strings.TrimSpace(said.String())
		return nil, fmt.Errorf("running %s: %w: %s", name, err, text[max(0, len(text)-2048):])
	}
	return out.Bytes(), nil
}
