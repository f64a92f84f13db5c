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
	// TopDigest when the reference is not an index. A signedBy signature may
	// bind to either, a sigstoreSigned one to TopDigest alone.
	PlatformDigest string
	// Layers are those of the platform's manifest, base first, as the pull is
	// going to treat them.
	Layers []Layer
}

// Layer is what sealpodEncrypted wants to know of a layer.
type Layer struct {
	Digest    string // of the blob
	Encrypted bool   // the pull fails unless the layer decrypts
}

// name returns host/repository.
func (i Image) name() string { return i.Registry + "/" + i.Repository }

// String returns host/repository[:tag][@digest] as requested.
func (i Image) String() string {
	return reference{repo: i.name(), tag: i.Tag, digest: i.Digest}.String()
}

// Signature is one layer of a cosign signature manifest, as the registry gave
// it. Nothing about it is trusted.
type Signature struct {
	Payload     []byte            // the layer blob: simple-signing JSON
	Base64Sig   string            // annotation dev.cosignproject.cosign/signature
	Annotations map[string]string // the layer's annotations; never interpreted here
}

// Document is a signature that is one piece: a Sigstore bundle, or an OpenPGP
// message of a lookaside store. Nothing about it is trusted.
type Document struct {
	Raw    []byte
	Origin string // where it came from, for people
}

// Sources fetches what a decision needs. Each function is called only when a
// requirement asks for it, all but Key at most once per Check. A function that
// is nil has nothing to offer.
type Sources struct {
	// Signatures returns the signatures stored under the `.sig` tag of
	// Image.TopDigest, none and no error when there is no such tag.
	Signatures func(ctx context.Context) ([]Signature, error)
	// Bundles returns the Sigstore bundles attached to Image.TopDigest, none
	// and no error when there are none.
	Bundles func(ctx context.Context) ([]Document, error)
	// Lookaside returns the simple-signing messages stored for
	// Image.PlatformDigest and Image.TopDigest outside of the registry, none
	// and no error when there are none.
	Lookaside func(ctx context.Context) ([]Document, error)
	// Key returns the public key (PEM) or key ring (OpenPGP) at a kbs:// or
	// file:// URI or bare path.
	Key func(ctx context.Context, uri string) ([]byte, error)
}

// Check decides whether img may be used. All requirements of the most specific
// scope must allow it; the first that does not ends the search. The returned
// Decision is filled in either way.
//
// Errors: ErrRejected, with a podvm.Cause that starts with "Image policy
// rejected: Denied by policy" and names reason and scope; the error of a
// source that failed stays in the chain. A done context is returned as such
// and is not ErrRejected.
func (p *Policy) Check(ctx context.Context, img Image, src Sources) (Decision, error) {
	return p.decide(ctx, img, src, false)
}

// Explain is Check for people: it goes on after a requirement that denies, so
// that Decision.Steps tells of all of them. The verdict and the error are those
// of Check.
func (p *Policy) Explain(ctx context.Context, img Image, src Sources) (Decision, error) {
	return p.decide(ctx, img, src, true)
}

func (p *Policy) decide(ctx context.Context, img Image, src Sources, all bool) (Decision, error) {
	scope, reqs := p.lookup(img)
	d := Decision{Scope: scope}
	src = src.once()
	var refused error
	for _, r := range reqs {
		step := Step{Requirement: r.kind()}
		err := r.allows(ctx, img, src, &step)
		if ctx.Err() != nil {
			return d, fmt.Errorf("checking the policy for %s: %w", img, context.Cause(ctx))
		}
		step.finish(err)
		d.add(step)
		if err != nil && refused == nil {
			refused = fmt.Errorf("checking %s against %s: %w: %s: %w", img, scope, ErrRejected, r.kind(), err)
			refused = podvm.Explain(refused, fmt.Sprintf("%s: %s (rule %s, %s)", deniedText, step.Reason, podvm.Printable(scope, 200), r.kind()))
		}
		if err != nil && !all {
			break
		}
	}
	d.Allowed = refused == nil
	return d, refused
}

// once returns sources that fetch signatures a single time for all requirements.
func (s Sources) once() Sources {
	s.Signatures, s.Bundles, s.Lookaside = once(s.Signatures), once(s.Bundles), once(s.Lookaside)
	if s.Key == nil {
		s.Key = func(context.Context, string) ([]byte, error) { return nil, errors.New("no source of keys") }
	}
	return s
}

func once[T any](fetch func(context.Context) ([]T, error)) func(context.Context) ([]T, error) {
	var list []T
	var err error
	return func(ctx context.Context) ([]T, error) {
		if fetch != nil {
			list, err = fetch(ctx)
			fetch = nil
		}
		return list, err
	}
}
