package registrytest

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sealpod/sealpod/podvm/testenv"
)

// Debian runs Debian's docker-registry on the loopback network for the length
// of the test and returns its host:port. It speaks plain HTTP and has no
// referrers API. Each config is added to its configuration, as YAML at the top
// level.
func Debian(t testing.TB, config ...string) string {
	t.Helper()
	program := testenv.Tool(t, "docker-registry")
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	addr := l.Addr().String()
	must(t, l.Close())
	dir := t.TempDir()
	file := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: %s\nhttp:\n  addr: %s\n", filepath.Join(dir, "data"), addr)
	text += strings.Join(config, "\n")
	must(t, os.WriteFile(file, []byte(text), 0o600))
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, program, "serve", file)
	must(t, cmd.Start())
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // killed, so it reports that
	})
	deadline, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(deadline, http.MethodGet, "http://"+addr+"/v2/", nil)
		must(t, err)
		if resp, err := http.DefaultClient.Do(req); err == nil {
			_ = resp.Body.Close()
			http.DefaultClient.CloseIdleConnections()
			return addr
		}
		select {
		case <-deadline.Done():
			t.Fatal("the registry does not answer")
		case <-tick.C:
		}
	}
}
