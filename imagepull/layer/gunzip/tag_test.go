//go:build !sealpod_libgzip

package gunzip

import (
	"os/exec"
	"testing"
)

// TestTheLibraryBehindTheTag runs the tests of this package with the library's
// decoder: the same streams are accepted, with the same bytes and errors.
func TestTheLibraryBehindTheTag(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-tags", "sealpod_libgzip", ".").CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
