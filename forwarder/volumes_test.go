package forwarder

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/status"

	"github.com/sealpod/sealpod/api/agent"
	"github.com/sealpod/sealpod/forwarder/agenttest"
	"github.com/sealpod/sealpod/podvm"
)

// The owner's init data names the keys of cloud volumes; the worker node asks for a
// plain one.
func TestAVolumeThatTheOwnerDoesNotWant(t *testing.T) {
	l := newLab(t)
	t.Setenv(podvm.HostRootEnv, l.dir) // for cdh.toml
	path := filepath.Join(l.dir, hubFile)
	write := func(text string) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("[cloud_volumes]\nkeys = ['kbs:///default/volume/1']\n")
	a := agenttest.Start(t, agenttest.Config{Record: true})
	l.agent = a.Path()
	p := l.start(t)
	r := &agent.CreateContainerRequest{ContainerId: "c", OCI: &agent.Spec{
		Annotations: map[string]string{"io.confidentialcontainers.org.cloud_volumes": `{"vol-0":{"mount_point":"/data","lun":"0"}}`},
		Linux:       &agent.Linux{},
	}}
	_, err := agent.NewAgentServiceClient(l.adaptor(t)).CreateContainer(t.Context(), r)
	if !strings.Contains(status.Convert(err).Message(), "does not allow plain cloud volumes") || len(a.Calls()) > 0 {
		t.Errorf("%v, the agent got %d calls", err, len(a.Calls()))
	}
	p.stop()
	write("[cloud_volumes]\nkeys = ['volume/1']\n")
	l.fails(t, "is not kbs:///REPOSITORY/TYPE/TAG")
}
