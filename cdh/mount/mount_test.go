package mount

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/hostrun"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// keys answers with what a map holds.
type keys map[string]string

func (k keys) Key(_ context.Context, source string) (podvm.Secret, error) {
	v, ok := k[source]
	if !ok {
		return nil, podvm.Explain(errors.New("no such key"), "the key is not there")
	}
	return podvm.Secret(v), nil
}

func newMounter(t *testing.T, root string, k keys) (*Mounter, *strings.Builder) {
	t.Helper()
	log := &strings.Builder{}
	env := map[string]string{"PATH": "/nowhere"}
	m, err := New(Config{Keys: k, Log: slog.New(slog.NewTextHandler(log, nil)), Host: podvm.Host{Root: root, LookupEnv: func(n string) (string, bool) { v, ok := env[n]; return v, ok }}})
	if err != nil {
		t.Fatal(err)
	}
	return m, log
}

// Where the data hub has the machine's /run and else mounts of its own, a mount
// elsewhere would succeed and be nobody's.
func TestMountPointsThatNobodyWouldSee(t *testing.T) {
	for point, refused := range map[string]bool{"/mnt/data": true, "/tmp/x": true, "/runaway": true, "/run": true, "/run/../mnt": true, "/run/kata-containers/image": false} {
		m, err := New(Config{Keys: keys{}, Host: podvm.Host{Root: t.TempDir(), LookupEnv: func(n string) (string, bool) { return "yes", n == hostrun.Env }}})
		if err != nil {
			t.Fatal(err)
		}
		err = m.Mount(t.Context(), Request{VolumeType: "other", MountPoint: point})
		if err == nil || strings.Contains(err.Error(), "/run") != refused {
			t.Errorf("%s: %v", point, err)
		}
	}
}
