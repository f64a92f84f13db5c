package policy

import (
	"context"
	"errors"
	"fmt"

	"github.com/sealpod/sealpod/podvm"
)

// ErrRejected says that the policy does not allow the image, or that what the
// policy asks for could not be obtained. Either way it must not be used.
var ErrRejected = errors.New("image rejected by policy")

// deniedText starts every refusal that leaves the process; kata's end-to-end
// tests look for it.
// Source: kata-containers tests/integration/kubernetes/k8s-guest-pull-image-signature.bats at 7c6ba40.
const deniedText = "Image policy rejected: Denied by policy"

// Image is what the policy is asked about.
type Image struct {
	Registry   string // host[:port]; Docker Hub is "docker.io"
	Repository string // path without the host, "library/nginx"
	Tag        string // as requested, "" when there was none
	Digest     string // as requested, "algo:hex", "" when there was none
	// TopDigest is the digest "algo:hex" of the manifest or index bytes that
	// the reference led to. Signatures bind to it.
	TopDigest string
	// PlatformDigest is the digest of the platform's manifest; the same as
	// TopDigest when the reference is not an index. Not used by sigstoreSigned.
	PlatformDigest string
}

// name returns host/repository.
func (i Image) name() string { return i.Registry + "/" + i.Repository }

// String returns host/repository[:tag][@digest] as requested.
func (i Image) String() string {
	s := i.name()
	if i.Tag != "" {
		s += ":" + i.Tag
	}
	if i.Digest != "" {
		s += "@" + i.Digest
	}
	return s
}

// Signature is one layer of a cosign signature manifest, as the registry gave
// it. Nothing about it is trusted.
type Signature struct {
	Payload     []byte            // the layer blob: simple-signing JSON
	Base64Sig   string            // annotation dev.cosignproject.cosign/signature
	Annotations map[string]string // the layer's annotations; never interpreted here
}

// Sources fetches what a decision needs. Each function is called only when a
// requirement asks for it; Signatures at most once per Check.
type Sources struct {
	// Signatures returns the signatures stored under the `.sig` tag of
	// Image.TopDigest, none and no error when there is no such tag.
	Signatures func(ctx context.Context) ([]Signature, error)
	// Key returns the PEM public key at a kbs:// or file:// URI or bare path.
	Key func(ctx context.Context, uri string) ([]byte, error)
}

// Decision explains a verdict.
type Decision struct {
	Allowed     bool
	Scope       string // the rule used: `default` or `transports.docker["…"]`
	Requirement string // type of the requirement that decided; the last one when allowed
	Key         string // the key that verified the signature, "" when none had to
	Reason      string // why it was denied, safe to show; "" when allowed
}

// Check decides whether img may be used. All requirements of the most specific
// scope must allow it. The returned Decision is filled in either way.
//
// Errors: ErrRejected, with a podvm.Cause that starts with "Image policy
// rejected: Denied by policy" and names reason and scope; the error of a
// source that failed stays in the chain. A done context is returned as such
// and is not ErrRejected.
func (p *Policy) Check(ctx context.Context, img Image, src Sources) (Decision, error) {
	scope, reqs := p.lookup(img)
	d := Decision{Scope: scope}
	src = src.once()
	for _, r := range reqs {
		d.Requirement = r.kind()
		key, err := r.allows(ctx, img, src)
		if ctx.Err() != nil {
			return d, fmt.Errorf("checking the policy for %s: %w", img, context.Cause(ctx))
		}
		if err != nil {
			d.Reason = reason(err)
			err = fmt.Errorf("checking %s against %s: %w: %s: %w", img, scope, ErrRejected, r.kind(), err)
			return d, podvm.Explain(err, fmt.Sprintf("%s: %s (rule %s, %s)", deniedText, d.Reason, podvm.Printable(scope, 200), r.kind()))
		}
		if key != "" {
			d.Key = key
		}
	}
	d.Allowed = true
	return d, nil
}

// once returns sources that fetch signatures a single time for all requirements.
func (s Sources) once() Sources {
	fetch := s.Signatures
	var sigs []Signature
	var err error
	done := false
	s.Signatures = func(ctx context.Context) ([]Signature, error) {
		if !done {
			done = true
			sigs, err = fetch(ctx)
		}
		return sigs, err
	}
	return s
}
