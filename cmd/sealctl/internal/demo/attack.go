package demo

import (
	"context"
	"fmt"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// attack is something the pod must refuse.
type attack struct {
	id, title string
	want      string // the reason must contain this
	prepare   func(ctx context.Context) (ref string, err error)
}

func (o *owner) attacks() []attack {
	return []attack{
		{
			"unsigned", "An image nobody signed", "Image policy rejected: Denied by policy",
			func(ctx context.Context) (string, error) {
				ref, _, err := o.buildImage(ctx, "unsigned")
				return ref, err
			},
		},
		{
			"tampered", "A layer the registry changed one bit of", "digest",
			func(ctx context.Context) (string, error) {
				s, err := o.seal(ctx, "tampered", "demo/kek/tampered")
				if err != nil {
					return "", err
				}
				// The public layer: of an encrypted one the pod would say no
				// more than that it cannot be decrypted.
				digest, err := layerDigest(ctx, s.ref, 0)
				o.reg.tamper.Store(&digest)
				return s.ref, err
			},
		},
		{
			"denied-key", "A workload whose key the policy does not release", "denied",
			func(ctx context.Context) (string, error) {
				s, err := o.seal(ctx, "stranger", strangersKEK)
				return s.ref, err
			},
		},
	}
}

// seal builds, encrypts and signs an image of its own.
func (o *owner) seal(ctx context.Context, repo, kek string) (sealedImage, error) {
	source, _, err := o.buildImage(ctx, repo)
	if err != nil {
		return sealedImage{}, err
	}
	s, err := o.encrypt(ctx, source, repo, kek, false)
	if err != nil {
		return s, err
	}
	return s, o.sign(ctx, s.ref)
}

// layerDigest returns the digest of layer n of the image at ref.
func layerDigest(ctx context.Context, ref string, n int) (string, error) {
	r, err := name.ParseReference(ref)
	if err != nil {
		return "", err
	}
	img, err := remote.Image(r, remote.WithContext(ctx))
	if err != nil {
		return "", err
	}
	m, err := img.Manifest()
	if err != nil {
		return "", err
	}
	return m.Layers[n].Digest.String(), nil
}

// readiness sums up how the daemons started.
func (p *pod) readiness() (text string, facts map[string]string) {
	facts = map[string]string{}
	var lines []string
	for _, proc := range p.procs {
		d := p.ready[proc.name]
		kb := proc.memoryKB("VmRSS")
		lines = append(lines, fmt.Sprintf("%-22s ready after %3.0f ms, %2d MB resident", proc.name, ms(d), kb/1024))
		facts[proc.name] = fmt.Sprintf("%.1f ms, %d KiB", ms(d), kb)
	}
	return strings.Join(lines, "\n"), facts
}
