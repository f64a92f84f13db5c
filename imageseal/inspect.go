package imageseal

import (
	"context"
	"encoding/json"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sealpod/sealpod/podvm"
)

// InspectOptions says what Inspect looks at.
type InspectOptions struct {
	// Image is a registry reference or "oci:DIR[:TAG]".
	Image  string
	Access Access
	// Keys are PEM public keys by the name they are reported under. Every
	// signature is checked with each.
	Keys map[string][]byte
}

// Report says how an image is protected.
type Report struct {
	Image      string          `json:"image"` // as asked
	Digest     string          `json:"digest"`
	MediaType  string          `json:"mediaType"`
	Images     []ImageReport   `json:"images"`
	Signatures []SignatureInfo `json:"signatures"`
	// Bundle says that there is a Sigstore bundle under the referrers tag,
	// which is cosign 3's default and which guests do not read.
	Bundle bool `json:"sigstoreBundle"`
}

// ImageReport is the image of one platform.
type ImageReport struct {
	Platform string        `json:"platform"` // os/arch[/variant], "" when not known
	Digest   string        `json:"digest"`
	Layers   []LayerReport `json:"layers"`
}

// LayerReport is one layer, base first.
type LayerReport struct {
	MediaType string       `json:"mediaType"`
	Digest    string       `json:"digest"`
	SizeBytes int64        `json:"size"`
	Encrypted bool         `json:"encrypted"`
	Packets   []PacketInfo `json:"keys,omitempty"`
}

// SignatureInfo is one signature in the `.sig` tag.
type SignatureInfo struct {
	Identity string `json:"identity"` // what the payload claims, unverified
	Digest   string `json:"claims"`   // the digest the payload claims, unverified
	// VerifiedBy names the keys of InspectOptions with which a guest would
	// accept the image through this signature.
	VerifiedBy []string `json:"verifiedBy"`
}

// Inspect reports how an image is protected. It fetches manifests and
// signatures, no layers.
//
// Errors: ErrReference, ErrNotFound, ErrTooMany; policy.ErrInvalid for a key
// that guests cannot use.
func Inspect(ctx context.Context, o InspectOptions) (Report, error) {
	p, err := parsePlace(o.Image, o.Access)
	if err != nil {
		return Report{}, err
	}
	for _, name := range sorted(o.Keys) {
		if _, err := keyPolicy(o.Keys[name], ""); err != nil {
			return Report{}, fmt.Errorf("reading the key %s: %w", name, err)
		}
	}
	r, err := inspect(ctx, p, o)
	if err != nil {
		return Report{}, fmt.Errorf("inspecting %s: %w", o.Image, err)
	}
	return r, nil
}

func inspect(ctx context.Context, p place, o InspectOptions) (Report, error) {
	e, err := p.open(ctx)
	if err != nil {
		return Report{}, err
	}
	digest, err := e.digest()
	if err != nil {
		return Report{}, fmt.Errorf("naming the image: %w", err)
	}
	mediaType, err := e.mediaType()
	if err != nil {
		return Report{}, fmt.Errorf("naming the image: %w", err)
	}
	r := Report{Image: o.Image, Digest: digest.String(), MediaType: string(mediaType), Signatures: []SignatureInfo{}}
	if r.Images, err = reportImages(e); err != nil {
		return Report{}, err
	}
	sigs, err := p.openTag(ctx, signatureTag(digest))
	if err != nil {
		return Report{}, err
	}
	if sigs != nil {
		if r.Signatures, err = reportSignatures(ctx, sigs, digest, o.Keys); err != nil {
			return Report{}, err
		}
	}
	if len(r.Signatures) == 0 {
		if r.Bundle, err = p.hasTag(ctx, digest.Algorithm+"-"+digest.Hex); err != nil {
			return Report{}, err
		}
	}
	return r, nil
}

func reportImages(e entity) ([]ImageReport, error) {
	if e.image != nil {
		ir, err := reportImage(e.image)
		if err != nil {
			return nil, err
		}
		if cfg, err := e.image.ConfigFile(); err == nil && cfg.OS != "" {
			ir.Platform = podvm.Printable(platformName(&v1.Platform{OS: cfg.OS, Architecture: cfg.Architecture, Variant: cfg.Variant}), 64)
		}
		return []ImageReport{ir}, nil
	}
	m, err := e.index.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("parsing the index: %w", err)
	}
	var out []ImageReport
	for _, d := range m.Manifests {
		if !d.MediaType.IsImage() {
			continue
		}
		img, err := e.index.Image(d.Digest)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", d.Digest, err)
		}
		ir, err := reportImage(img)
		if err != nil {
			return nil, err
		}
		if d.Platform != nil {
			ir.Platform = podvm.Printable(platformName(d.Platform), 64)
		}
		out = append(out, ir)
	}
	return out, nil
}

func reportImage(img v1.Image) (ImageReport, error) {
	digest, err := img.Digest()
	if err != nil {
		return ImageReport{}, fmt.Errorf("naming the image: %w", err)
	}
	raw, err := img.RawManifest()
	if err != nil {
		return ImageReport{}, fmt.Errorf("reading the manifest %s: %w", digest, err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return ImageReport{}, fmt.Errorf("parsing the manifest %s: %w", digest, err)
	}
	r := ImageReport{Digest: digest.String()}
	for _, l := range m.Layers {
		r.Layers = append(r.Layers, LayerReport{
			MediaType: podvm.Printable(l.MediaType, 128), Digest: podvm.Printable(l.Digest.String(), 160),
			SizeBytes: l.Size, Encrypted: isEncrypted(l.MediaType), Packets: readPackets(l.Annotations),
		})
	}
	return r, nil
}

func reportSignatures(ctx context.Context, img v1.Image, digest v1.Hash, keys map[string][]byte) ([]SignatureInfo, error) {
	sigs, err := readSignatures(img)
	if err != nil {
		return nil, err
	}
	out := []SignatureInfo{}
	for _, s := range sigs {
		info := SignatureInfo{VerifiedBy: []string{}}
		info.Identity, info.Digest = claims(s.Payload)
		for _, keyName := range sorted(keys) {
			if verifyAs(ctx, keys[keyName], digest, "", s) == nil {
				info.VerifiedBy = append(info.VerifiedBy, keyName)
			}
		}
		out = append(out, info)
	}
	return out, nil
}
