package wire

import (
	"fmt"

	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/podvm"
)

// HeaderText returns a member that a header of HTTP can carry: a string of
// visible ASCII, which may be empty. The caller wipes it.
func HeaderText(o Object, name string) (podvm.Secret, error) {
	s, err := strict.SecretText(o[name])
	if err != nil {
		return nil, fmt.Errorf("member %q: %w", name, err)
	}
	if !Visible(s) {
		return nil, fmt.Errorf("member %q: other than visible ASCII in it", name)
	}
	return s, nil
}

// Visible tells whether s is visible ASCII, no space among it.
func Visible(s []byte) bool {
	for _, b := range s {
		if b <= ' ' || b > '~' {
			return false
		}
	}
	return true
}
