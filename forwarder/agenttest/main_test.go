package agenttest

import (
	"net"
	"testing"

	"github.com/containerd/ttrpc"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	Main()
	goleak.VerifyTestMain(m)
}

// client returns a client of the socket at path.
func client(t *testing.T, path string) *ttrpc.Client {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c := ttrpc.NewClient(conn)
	t.Cleanup(func() { c.Close() })
	return c
}
