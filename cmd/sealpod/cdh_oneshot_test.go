package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/cmd/internal/cli"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// A program in place of ossfs mounts what the caller can tell from nothing, so
// the whole way of a volume is gone once without a cloud.
func TestOneshotSecureMount(t *testing.T) {
	testenv.Root(t)
	host, point := podvm.Host{Root: t.TempDir()}, filepath.Join(t.TempDir(), "m")
	t.Setenv(podvm.HostRootEnv, host.Root)
	put := func(path, text string, mode os.FileMode) string {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	put(host.Path("/usr/local/bin/ossfs"), "#!/bin/sh\nexec mount -t tmpfs -o size=64k fake \"$2\"\n", 0o755)
	config := put(filepath.Join(t.TempDir(), "cdh.toml"), "[kbc]\nname = \"offline_fs_kbc\"\n[aa]\naa_socket = \"unix:///nonexistent/aa.sock\"\n", 0o600)
	volume := put(filepath.Join(t.TempDir(), "volume.json"), `{"volume_type":"alibaba-cloud-oss","flags":[],"mount_point":"`+point+`","options":{
		"akId":"id","akSecret":"secret","bucket":"bucket","otherOpts":"","path":"/","readonly":"","targetPath":"","url":"https://oss.example","volumeId":""}}`, 0o600)

	t.Cleanup(func() { _ = unix.Unmount(host.Path(point), unix.MNT_DETACH) })
	var out, errOut bytes.Buffer
	root := rootCommand()
	root.SetOut(&out)
	code := cli.Run(t.Context(), root, "sealpod", strings.Fields("cdh-oneshot -c "+config+" secure-mount -s "+volume), &errOut)
	if code != cli.ExitOK || out.String() != "mount path: "+point+"\n" {
		t.Fatalf("%d %q %q", code, out.String(), errOut.String())
	}
	var st unix.Statfs_t
	if err := unix.Statfs(host.Path(point), &st); err != nil || st.Type != unix.TMPFS_MAGIC || st.Blocks*uint64(st.Bsize) != 64<<10 {
		t.Errorf("%+v, %v", st, err)
	}
}
