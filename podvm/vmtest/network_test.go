package vmtest

import "testing"

func TestForwarded(t *testing.T) {
	const table = "Hub -1 (net):\r\n" +
		"  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n" +
		"  TCP[ESTABLISHED]   21       127.0.0.1 40001       10.0.2.15    80     0     0\r\n" +
		"  TCP[HOST_FORWARD]  12       127.0.0.1 40443       10.0.2.15   443     0     0\r\n" +
		"  UDP[HOST_FORWARD]  13       127.0.0.1 40053       10.0.2.15    53     0     0\r\n"
	if got, err := forwarded(table, 443); err != nil || got != "127.0.0.1:40443" {
		t.Errorf("port 443 is at %q, %v", got, err)
	}
	for _, port := range []int{80, 53, 44, 40443} {
		if got, err := forwarded(table, port); err == nil {
			t.Errorf("port %d is at %q", port, got)
		}
	}
}
