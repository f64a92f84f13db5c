package imageseal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/sigstore/cosign/v2/pkg/oci/static"
	"github.com/sigstore/sigstore/pkg/signature/payload"

	"github.com/sealpod/sealpod/imagepull/policy"
	"github.com/sealpod/sealpod/podvm"
)

// readSignatures reads the layers of a `.sig` image as a guest would. Layers
// of another media type, without a signature or beyond the size cap are left
// out; a blob that does not match its digest is an error.
func readSignatures(img v1.Image) ([]policy.Signature, error) {
	m, err := img.Manifest()
	if err != nil {
		return nil, fmt.Errorf("reading the signatures: %w", err)
	}
	if len(m.Layers) > policy.MaxSignatures {
		return nil, fmt.Errorf("%w: %d", ErrTooMany, len(m.Layers))
	}
	var out []policy.Signature
	for _, d := range m.Layers {
		if d.MediaType != signatureType || d.Annotations[static.SignatureAnnotationKey] == "" || d.Size > policy.MaxPayload {
			continue
		}
		body, err := readBlob(img, d)
		if err != nil {
			return nil, fmt.Errorf("reading the signature payload %s: %w", d.Digest, err)
		}
		out = append(out, policy.Signature{Payload: body, Base64Sig: d.Annotations[static.SignatureAnnotationKey], Annotations: d.Annotations})
	}
	return out, nil
}

func readBlob(img v1.Image, d v1.Descriptor) (body []byte, err error) {
	layer, err := img.LayerByDigest(d.Digest)
	if err != nil {
		return nil, err
	}
	r, err := layer.Compressed()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if body, err = podvm.ReadMax(r, policy.MaxPayload); err != nil {
		return nil, err
	}
	if hexDigest(body) != d.Digest.Hex {
		return nil, errors.New("the blob does not match its digest")
	}
	return body, nil
}

// verifyAs applies the guest's rules to sig: nil means that a policy with this
// public key alone, and signedIdentity set to identity unless that is "",
// accepts the image through this signature.
func verifyAs(ctx context.Context, publicPEM []byte, digest v1.Hash, identity string, sig policy.Signature) error {
	p, err := keyPolicy(publicPEM, identity)
	if err != nil {
		return err
	}
	_, err = p.Check(ctx, policy.Image{Registry: "registry", Repository: "image", TopDigest: digest.String(), PlatformDigest: digest.String()},
		policy.Sources{Signatures: func(context.Context) ([]policy.Signature, error) { return []policy.Signature{sig}, nil }})
	return err
}

// keyPolicy is the policy that wants a signature by one key.
func keyPolicy(publicPEM []byte, identity string) (*policy.Policy, error) {
	req := map[string]any{"type": "sigstoreSigned", "keyData": string(publicPEM)}
	if identity != "" {
		req["signedIdentity"] = map[string]any{"type": "exactRepository", "dockerRepository": identity}
	}
	doc, err := json.Marshal(map[string]any{"default": []any{req}, "transports": map[string]any{}})
	if err != nil {
		return nil, fmt.Errorf("writing a policy: %w", err)
	}
	return policy.Parse(doc)
}

// claims returns what a payload says of itself, without any check.
func claims(body []byte) (identity, digest string) {
	var p payload.SimpleContainerImage
	if err := json.Unmarshal(body, &p); err != nil {
		return "", ""
	}
	return podvm.Printable(p.Critical.Identity.DockerReference, 256), podvm.Printable(p.Critical.Image.DockerManifestDigest, 160)
}
