package registrytest

import (
	"bytes"
	"encoding/base64"
	"io"
	"testing"

	"github.com/containers/ocicrypt/blockcipher"
	"github.com/opencontainers/go-digest"
)

// Encrypt returns l as ocicrypt encrypts it, whose wrapped key is packet, and the
// private options that a key provider finds in the packet.
func Encrypt(tb testing.TB, l Layer, packet string) (_ Layer, options []byte) {
	tb.Helper()
	h, err := blockcipher.NewLayerBlockCipherHandler()
	must(tb, err)
	r, finish, err := h.Encrypt(bytes.NewReader(l.Blob), blockcipher.AES256CTR)
	must(tb, err)
	blob, err := io.ReadAll(r)
	must(tb, err)
	opts, err := finish()
	must(tb, err)
	opts.Private.Digest = digest.Digest(Digest(l.Blob))
	return Layer{
		Blob: blob, DiffID: l.DiffID, MediaType: l.MediaType + "+encrypted",
		Annotations: map[string]string{
			"org.opencontainers.image.enc.pubopts":                         base64.StdEncoding.EncodeToString(JSON(tb, opts.Public)),
			"org.opencontainers.image.enc.keys.provider.attestation-agent": base64.StdEncoding.EncodeToString([]byte(packet)),
		},
	}, JSON(tb, opts.Private)
}
