package imagepull

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/sealpod/sealpod/imagepull/layer"
	"github.com/sealpod/sealpod/imagepull/policy"
	"github.com/sealpod/sealpod/imagepull/registry"
	"github.com/sealpod/sealpod/podvm"
)

// Report is what a pull of an image would meet. All of it is safe to show.
type Report struct {
	Image  string        `json:"image"`  // as asked for
	Places []PlaceReport `json:"places"` // in the order a pull tries them, up to the first that would do
}

// Pullable says whether a pull would get as far as fetching layers.
func (r Report) Pullable() bool {
	return len(r.Places) > 0 && r.Places[len(r.Places)-1].Problem == ""
}

// PlaceReport is one place the image may come from.
type PlaceReport struct {
	Reference string `json:"reference"`
	// Problem is why a pull would go on to the next place, "" when it would
	// not. The fields below are empty when it is that the image is not there.
	Problem   string        `json:"problem,omitempty"`
	Digest    string        `json:"digest,omitempty"`    // of the manifest for this machine, what Pull returns
	TopDigest string        `json:"topDigest,omitempty"` // of the index above it, or the same
	Layers    []LayerReport `json:"layers,omitempty"`    // base first
	Size      int64         `json:"size"`                // bytes of all layers as stored in the registry
	// Policy is nil when none is configured and every image is allowed.
	Policy *policy.Decision `json:"policy,omitempty"`
}

// LayerReport is one layer as the manifest describes it.
type LayerReport struct {
	Digest    string `json:"digest"`
	DiffID    string `json:"diffID"`
	MediaType string `json:"mediaType"`
	Size      int64  `json:"size"` // bytes in the registry
	Encrypted bool   `json:"encrypted"`
	Problem   string `json:"problem,omitempty"` // why the layer cannot be used, as far as its type says
}

// DryRun goes as far as a pull of image does before it fetches layers: names,
// credentials, manifest, configuration and policy, of which every requirement
// is looked at. It fetches no layer, asks for no layer key and writes nothing.
//
// That the image is missing or denied is in the report and no error. Errors are
// those of Pull for a reference or configuration that cannot be used, and the
// cause of ctx.
func (p *Puller) DryRun(ctx context.Context, image string) (Report, error) {
	log := p.deps.Log.With("image", podvm.Printable(image, 512), "dry", true)
	report := Report{Image: podvm.Printable(image, 512)}
	ref, err := registry.ParseReference(image)
	if err != nil {
		return report, err
	}
	set, err := p.settings(ctx, log)
	if err != nil {
		return report, err
	}
	candidates, err := set.rules.Candidates(ref)
	if err != nil {
		return report, err
	}
	for _, c := range candidates {
		one := &pulling{Puller: p, set: set, log: log.With("from", c.Reference.String())}
		place, err := one.look(ctx, c)
		if ctx.Err() != nil {
			return report, fmt.Errorf("looking at %s: %w", c.Reference, context.Cause(ctx))
		}
		if err != nil {
			place.Problem = safeCause(err)
			one.log.Debug("Place will not do", "err", err)
		}
		report.Places = append(report.Places, place)
		if err == nil {
			break
		}
	}
	return report, nil
}

// look examines one place. The report is as complete as it got with an error.
func (p *pulling) look(ctx context.Context, c registry.Candidate) (PlaceReport, error) {
	place := PlaceReport{Reference: c.Reference.String()}
	img, err := p.resolve(ctx, c)
	if err != nil {
		return place, err
	}
	place.Digest, place.TopDigest = img.Digest, img.TopDigest
	var unusable error
	for _, l := range img.Layers {
		secret, err := layer.Encrypted(l.MediaType)
		one := LayerReport{Digest: l.Digest, DiffID: l.DiffID, MediaType: podvm.Printable(l.MediaType, 128), Size: l.Size, Encrypted: secret}
		if err != nil {
			err = explainLayer(err, l.Digest)
			one.Problem = safeCause(err)
			if unusable == nil {
				unusable = err
			}
		}
		place.Layers = append(place.Layers, one)
		place.Size += min(l.Size, math.MaxInt64-place.Size) // the sizes are the registry's word
	}
	if p.set.policy == nil {
		return place, unusable
	}
	start := time.Now()
	decision, err := p.set.policy.Explain(ctx, policyImage(img), p.sources(img))
	p.log.Debug("Policy explained", "allowed", decision.Allowed, "dur", time.Since(start))
	place.Policy = &decision
	if err != nil {
		return place, err
	}
	return place, unusable
}

// String renders the report for a terminal.
func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "image %s\n", r.Image)
	for _, p := range r.Places {
		fmt.Fprintf(&b, "from %s\n", p.Reference)
		if p.Digest != "" {
			p.write(&b)
		}
		if p.Problem != "" {
			fmt.Fprintf(&b, "problem: %s\n", p.Problem)
		}
	}
	if len(r.Places) == 0 {
		b.WriteString("there is no place to pull it from\n")
	}
	return b.String()
}

func (p PlaceReport) write(b *strings.Builder) {
	fmt.Fprintf(b, "digest %s\n", p.Digest)
	if p.TopDigest != p.Digest {
		fmt.Fprintf(b, "index  %s\n", p.TopDigest)
	}
	for _, l := range p.Layers {
		how := "plain"
		if l.Encrypted {
			how = "encrypted"
		}
		fmt.Fprintf(b, "layer  %s %d bytes, %s, %s", l.Digest, l.Size, how, l.MediaType)
		if l.Problem != "" {
			fmt.Fprintf(b, ": %s", l.Problem)
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(b, "total  %d bytes in %d layers\n", p.Size, len(p.Layers))
	if p.Policy == nil {
		b.WriteString("no policy is configured, every image is allowed\n")
		return
	}
	b.WriteString(p.Policy.String())
}
