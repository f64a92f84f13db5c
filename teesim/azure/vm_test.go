package azure

import (
	"bytes"
	"testing"
)

func TestBoot(t *testing.T) {
	m := boot(t, Options{})
	g := dial(t, m)
	if err := ping(g); err != nil {
		t.Fatal(err)
	}
	r := readReport(t, g)
	if !bytes.HasPrefix(r, []byte("HCLA")) {
		t.Errorf("%x", r[:40])
	}
	if err := writeReportData(g, bytes.Repeat([]byte{0xab}, 48)); err != nil {
		t.Fatal(err)
	}
	r2 := readReport(t, g)
	t.Logf("%s", r2[hclDataOffset:])
}
