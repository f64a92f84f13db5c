package main

import (
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
)

// TestMain lets scripts run this program under each of its names.
func TestMain(m *testing.M) {
	names := map[string]func(){"sealpod": main}
	for _, a := range applets() {
		names[a.Name()] = main
	}
	testscript.Main(m, names)
}

// TestScripts runs testdata/script/*.txtar: what a user types and sees.
func TestScripts(t *testing.T) {
	reg := registrytest.New(t)
	reg.Push(t, "app", "1", registrytest.NewImage(
		registrytest.Files(t, map[string]string{"etc/": "", "etc/name": "base"}),
		registrytest.Files(t, map[string]string{"etc/": "", "etc/name": "top"}),
	))
	secret, _ := registrytest.Encrypt(t, registrytest.Files(t, map[string]string{"models/w": "weights"}), "packet")
	reg.Push(t, "secret", "1", registrytest.NewImage(registrytest.Files(t, map[string]string{"models/config.json": "{}"}), secret))
	wire := wireServer(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("REGISTRY", reg.Host) // has app:1, and secret:1 with an encrypted layer
			env.Setenv("WIRESERVER", wire)
			env.Defer(func() { unmountBelow(t, env.WorkDir) })
			return nil
		},
	})
}

// unmountBelow takes away what a pull by root has mounted.
func unmountBelow(t *testing.T, dir string) {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		t.Error(err)
	}
	for _, m := range mounts {
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}
}
