package policy

import (
	"errors"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/podvm"
)

func TestEncrypted(t *testing.T) {
	yes, no := Layer{Digest: digestA, Encrypted: true}, Layer{Digest: digestB}
	other := Layer{Digest: "sha256:" + strings.Repeat("c", 64), Encrypted: true}
	all, two := `{"type":"sealpodEncrypted"}`, `{"type":"sealpodEncrypted","minimum":2}`
	for name, tt := range map[string]struct {
		rule   string
		layers []Layer
		want   string // "" when allowed
	}{
		"all":                        {all, []Layer{yes, yes}, ""},
		"all but one":                {all, []Layer{yes, no, yes}, "layer " + digestB + " is not encrypted"},
		"none there":                 {all, nil, "the image has no layers"},
		"at least two":               {two, []Layer{no, yes, other}, ""},
		"at least two, one repeated": {two, []Layer{yes, no, yes}, "1 of 3 layers are encrypted, the rule wants at least 2"},
		"at least two, one there":    {two, []Layer{no, yes}, "1 of 2 layers are encrypted, the rule wants at least 2"},
		"at least two, none at all":  {two, nil, "0 of 0 layers"},
		"two requirements, all hold": {two + "," + all, []Layer{yes, other}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			img := testImage
			img.Layers = tt.layers
			d, err := parsed(t, `{"default":[`+tt.rule+`],"transports":{}}`).Check(t.Context(), img, untouchable(t))
			if (tt.want == "") != d.Allowed || errors.Is(err, ErrRejected) == d.Allowed || !strings.Contains(podvm.Cause(err), tt.want) {
				t.Errorf("Check = %+v, %v", d, err)
			}
		})
	}
}
