package server

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sealpod/sealpod/cdh/internal/cdhtest"
	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
	"github.com/sealpod/sealpod/podvm/metrics"
)

// serveMetrics serves metrics and status of the hub and returns the socket.
func (w *world) serveMetrics(t *testing.T) string {
	t.Helper()
	daemon := filepath.Join(t.TempDir(), "cdh.sock")
	s := metrics.Listen(t.Context(), "", daemon, w.hub.count.set, w.hub.status, cdhtest.Quiet)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return metrics.Socket(daemon)
}

func askStatus(t *testing.T, path string) Status {
	t.Helper()
	var s Status
	if err := metrics.Status(t.Context(), path, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// A pull is seen at the socket while the registry still holds its second layer
// back, and remembered when it has ended.
func TestPullIsSeenAtTheStatusSocket(t *testing.T) {
	w := newWorld(t)
	reg := w.useRegistry(t)
	first := registrytest.Files(t, map[string]string{"a": strings.Repeat("x", 1000)})
	second := registrytest.Files(t, map[string]string{"b": "y"})
	want := reg.Push(t, "app", "1", registrytest.NewImage(first, second))
	reached, goOn := make(chan struct{}), make(chan struct{})
	reg.Hook(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, registrytest.Digest(second.Blob)) {
			close(reached)
			<-goOn
		}
		return false
	})
	path := w.serveMetrics(t)
	if s := askStatus(t, path); s.Daemon != "confidential-data-hub" || s.KBC != "cc_kbc" || s.Version == "" || s.Pulls == nil || s.Last == nil {
		t.Errorf("before: %+v", s)
	}
	name := reg.Host + "/app:1"
	done := make(chan *status.Status, 1)
	go func() { _, st := w.pull(name, t.TempDir()+"/c"); done <- st }()
	<-reached
	s := askStatus(t, path)
	if len(s.Pulls) != 1 || s.Pulls[0].Image != name || s.Pulls[0].Phase != "layers" || s.Pulls[0].Layers != 2 ||
		s.Pulls[0].TotalBytes != int64(len(first.Blob)+len(second.Blob)) || s.Pulls[0].Percent == 100 || s.Pulls[0].Result != "" {
		t.Errorf("during: %+v", s)
	}
	if text := w.hub.count.set.Text(); !strings.Contains(text, "\nsealpod_image_pulls_running 1\n") {
		t.Error(text)
	}
	close(goOn)
	if st := <-done; st.Code() != codes.OK {
		t.Fatal(st)
	}
	s = askStatus(t, path)
	if len(s.Pulls) != 0 || len(s.Last) != 1 || s.Last[0].Digest != want || s.Last[0].Result != "ok" || s.Last[0].Percent != 100 {
		t.Errorf("after: %+v", s)
	}
	text := w.hub.count.set.Text()
	for _, line := range []string{
		"sealpod_image_pulls_running 0", `sealpod_image_pulls_total{result="ok"} 1`, `sealpod_image_pulls_total{result="denied"} 0`,
		fmt.Sprintf("sealpod_image_pull_fetched_bytes_total %d", len(first.Blob)+len(second.Blob)),
		`sealpod_image_pull_layers_total{source="registry"} 2`, `sealpod_image_pull_layers_total{source="store"} 0`,
		`sealpod_cdh_requests_total{method="PullImage",result="ok"} 1`,
	} {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("no %q in\n%s", line, text)
		}
	}
}

// Whoever may pull may pull what does not exist, under any name. That fills
// neither the metrics nor the status.
func TestNamesOfImagesDoNotFillTheMetrics(t *testing.T) {
	w := newWorld(t)
	reg := w.useRegistry(t)
	before := strings.Count(w.hub.count.set.Text(), "\n")
	for i := range 3 * maxLast {
		if _, st := w.pull(fmt.Sprintf("%s/stranger-%d:1", reg.Host, i), t.TempDir()); st.Code() == codes.OK {
			t.Fatal("pulled what is not there")
		}
	}
	text := w.hub.count.set.Text()
	if n := strings.Count(text, "\n"); n != before {
		t.Errorf("%d lines became %d", before, n)
	}
	if strings.Contains(text, "stranger") || !strings.Contains(text, fmt.Sprintf("{result=\"not_found\"} %d\n", 3*maxLast)) {
		t.Error(text)
	}
	s := askStatus(t, w.serveMetrics(t))
	if len(s.Last) != maxLast || !strings.HasSuffix(s.Last[0].Image, fmt.Sprintf("/stranger-%d:1", 3*maxLast-1)) || s.Last[0].Result != "not_found" ||
		!strings.Contains(s.Last[0].Cause, "Failed to pull image") {
		t.Errorf("%d pulls remembered, the last %+v", len(s.Last), s.Last[0])
	}
}

func TestRequestsAreCounted(t *testing.T) {
	w := newWorld(t)
	for _, u := range []string{uri, uri, "kbs:///no/such/key"} {
		_, _ = w.get(u)
	}
	_, _ = w.unwrap("x")
	text := w.hub.count.set.Text()
	for _, line := range []string{
		`{method="GetResource",result="ok"} 2`, `{method="GetResource",result="failed"} 1`, `{method="UnWrapKey",result="failed"} 1`,
	} {
		if !strings.Contains(text, "sealpod_cdh_requests_total"+line+"\n") {
			t.Errorf("no %q in\n%s", line, text)
		}
	}
}
