package image

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/podvm/testenv"
)

// packer runs packer as an owner of an image does, with nothing of ours around.
func packer(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), testenv.Tool(t, "packer"), args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "CHECKPOINT_DISABLE=1", "PACKER_NO_COLOR=1"}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// seed runs seed.sh.
func seed(t *testing.T) string {
	t.Helper()
	testenv.Tool(t, "ssh-keygen")
	dir := filepath.Join(t.TempDir(), "seed")
	if out, err := exec.CommandContext(t.Context(), "packer/scripts/seed.sh", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for name, want := range map[string]string{"user-data": "      - ssh-ed25519 AAAA", "meta-data": "instance-id: ", "key": "PRIVATE KEY"} {
		if data, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !strings.Contains(string(data), want) {
			t.Errorf("%s is %s, %v", name, data, err)
		}
	}
	return dir
}

func TestPackerTemplatesAreValid(t *testing.T) {
	testenv.Tool(t, "packer")
	tree := filepath.Join(t.TempDir(), "tree.tar.gz")
	if err := os.WriteFile(tree, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, vars := range map[string][]string{
		"azure-arm": {"subscription_id=s", "client_id=c", "client_secret=x", "tenant_id=t", "resource_group=g", "gallery=g", "gallery_image=i", "tls_options=-ca-cert-file /etc/certificates/ca.crt"},
		"qemu":      {"seed=" + seed(t), "image_checksum=none"},
		"qemu on s390x": {
			"seed=" + seed(t), "image_checksum=none", "firmware=", "qemu_binary=qemu-system-s390x", "machine_type=s390-ccw-virtio",
		},
	} {
		t.Run(name, func(t *testing.T) {
			args := []string{"validate", "-var", "tree=" + tree}
			for _, v := range vars {
				args = append(args, "-var", v)
			}
			folder, _, _ := strings.Cut(name, " ")
			out, err := packer(t, append(args, filepath.Join("packer", folder))...)
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			// And without what has no default, it is not: the command looks.
			if out, err := packer(t, "validate", filepath.Join("packer", folder)); err == nil {
				t.Errorf("valid without any variable\n%s", out)
			}
		})
	}
}

func TestPackerTemplatesAreFormatted(t *testing.T) {
	files, err := filepath.Glob("packer/*/*.pkr.hcl")
	if err != nil || len(files) != 3 {
		t.Fatalf("%q, %v", files, err)
	}
	for _, file := range files {
		// It parses the file, too, also what this packer does not take.
		if out, err := packer(t, "fmt", "-check", "-diff", file); err != nil {
			t.Errorf("%s: %v\n%s", file, err, out)
		}
	}
}

func TestPackerScriptsAreShell(t *testing.T) {
	files, err := filepath.Glob("packer/scripts/*.sh")
	if err != nil || len(files) == 0 {
		t.Fatalf("%q, %v", files, err)
	}
	for _, file := range files {
		if out, err := exec.CommandContext(t.Context(), "sh", "-n", file).CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		if info, err := os.Stat(file); err != nil || info.Mode()&0o111 == 0 {
			t.Errorf("%s cannot be run, %v", file, err)
		}
	}
}
