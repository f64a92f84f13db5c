package layer

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/containers/ocicrypt/blockcipher"
	"github.com/opencontainers/go-digest"

	"github.com/sealpod/sealpod/podvm"
)

// Annotations of an encrypted layer.
// Source: containers/ocicrypt v1.3.2 encryption.go, keywrap/*.
const (
	pubOptsAnnotation = "org.opencontainers.image.enc.pubopts"
	keysPrefix        = "org.opencontainers.image.enc.keys."
	providerPrefix    = keysPrefix + "provider."
)

const (
	symKeyLen = 32 // AES-256, and the HMAC-SHA256 key at the same time
	nonceLen  = 16 // initial 128-bit big-endian counter block
	hmacLen   = 32

	maxOptions = 64 << 10 // decoded JSON of public or private options
	maxPackets = 64       // wrapped keys tried for one layer
)

// Unwrapper opens one wrapped key. packet is the decoded content of an
// annotation org.opencontainers.image.enc.keys.*; the result is the private
// layer options JSON, owned and wiped by the caller.
type Unwrapper interface {
	UnwrapKey(ctx context.Context, packet []byte) (podvm.Secret, error)
}

// Unwrappers open the wrapped keys of the schemes they are named after; nil
// means that keys of that scheme are passed over.
type Unwrappers struct {
	Provider Unwrapper // provider.<name>, whatever the name
	JWE      Unwrapper // jwe; see OpenJWE
}

// Key opens one encrypted layer. It prints as "[redacted]". It is not safe to
// Wipe it while Apply uses it; several Apply may share it.
type Key struct {
	symKey podvm.Secret // symKeyLen bytes
	nonce  podvm.Secret // nonceLen bytes
	hmac   []byte       // hmacLen bytes, public
	plain  digest.Digest
}

// Wipe overwrites the key. A nil Key is fine.
func (k *Key) Wipe() {
	if k != nil {
		k.symKey.Wipe()
		k.nonce.Wipe()
	}
}

// Format implements fmt.Formatter for every verb.
func (k *Key) Format(f fmt.State, verb rune) { podvm.Secret(nil).Format(f, verb) }

// MarshalText implements encoding.TextMarshaler, which encoding/json uses too.
func (k *Key) MarshalText() ([]byte, error) { return podvm.Secret(nil).MarshalText() }

// LogValue implements slog.LogValuer.
func (k *Key) LogValue() slog.Value { return podvm.Secret(nil).LogValue() }

// UnwrapKey returns the key of an encrypted layer, and a nil Key for a layer
// whose media type is not encrypted. Every packet of every provider
// annotation, by annotation name and then in order, is offered to u.Provider,
// then every packet of the jwe annotation to u.JWE, until one yields usable
// private options. Providers are not told apart by name: upstream's guest has
// one too and ignores the name.
//
// Errors: ErrMediaType; ErrDecrypt with the text kata expects as public cause
// when no packet opens, the layer is wrapped for other schemes only (pgp, pkcs7
// and pkcs11 are owner-side), or its public options are unusable; the context's
// error when ctx ends.
// Source: guest-components ocicrypt-rs/src/encryption.rs at 8246e5e.
func UnwrapKey(ctx context.Context, spec Spec, u Unwrappers) (*Key, error) {
	f, err := formatOf(spec.MediaType)
	if err != nil {
		return nil, err
	}
	if !f.encrypted {
		return nil, nil
	}
	hmac, err := parsePublic(spec.Annotations[pubOptsAnnotation])
	if err != nil {
		return nil, undecryptable(fmt.Errorf("reading annotation %s: %w", pubOptsAnnotation, err), "its public options are unusable")
	}
	packets, err := packets(spec.Annotations, u)
	if err != nil {
		return nil, err
	}
	var failed []error
	for _, packet := range packets {
		key, err := open(ctx, packet)
		if err == nil {
			key.hmac = hmac
			return key, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("unwrapping the layer key: %w", context.Cause(ctx))
		}
		failed = append(failed, err)
	}
	err = errors.Join(failed...)
	return nil, undecryptable(fmt.Errorf("unwrapping the layer key, %d packets tried: %w", len(packets), err), podvm.Cause(err))
}

// undecryptable makes err an ErrDecrypt whose public cause is kata's text,
// followed by why when that is known to be safe to tell.
func undecryptable(err error, why string) error {
	text := decryptText
	if why != "" {
		text += ": " + why
	}
	return podvm.Explain(fmt.Errorf("%w: %w", ErrDecrypt, err), text)
}

// packet is a wrapped key and who may open it.
type packet struct {
	raw []byte
	by  Unwrapper
}

// packets decodes the annotations that u can do something with.
func packets(annotations map[string]string, u Unwrappers) ([]packet, error) {
	var providers, jwes []packet
	var others []string
	for _, name := range slices.Sorted(maps.Keys(annotations)) {
		scheme, ok := strings.CutPrefix(name, keysPrefix)
		if !ok {
			continue
		}
		list, by := &providers, u.Provider
		if !strings.HasPrefix(name, providerPrefix) {
			list, by = &jwes, u.JWE
			if scheme != "jwe" {
				by = nil
			}
		}
		if by == nil {
			others = append(others, podvm.Printable(scheme, 32))
			continue
		}
		for text := range strings.SplitSeq(annotations[name], ",") {
			if len(providers)+len(jwes) == maxPackets {
				return nil, undecryptable(fmt.Errorf("%w: more than %d wrapped keys", podvm.ErrTooLarge, maxPackets), "")
			}
			raw, err := base64.StdEncoding.DecodeString(text)
			if err != nil || len(raw) == 0 || len(raw) > maxOptions {
				return nil, undecryptable(fmt.Errorf("reading annotation %s: packet %d is not base64 of 1 to %d bytes",
					podvm.Printable(name, 128), len(*list), maxOptions), "a wrapped key is malformed")
			}
			*list = append(*list, packet{raw, by})
		}
	}
	if all := append(providers, jwes...); len(all) > 0 {
		return all, nil
	}
	have := "none is attached"
	if len(others) > 0 {
		have = "the layer has " + podvm.Printable(strings.Join(others, ", "), 128)
	}
	why := "only keys wrapped by provider.<name> (key provider protocol), and by jwe where decryption_keys is set, are supported, " + have
	return nil, undecryptable(errors.New(why), why)
}

func open(ctx context.Context, p packet) (*Key, error) {
	private, err := p.by.UnwrapKey(ctx, p.raw)
	if err != nil {
		return nil, err
	}
	defer private.Wipe()
	return parsePrivate(private)
}

// parsePublic reads the base64 JSON of the pubopts annotation and returns the
// HMAC over the ciphertext. Nothing else of it is used: a nonce in it would
// take precedence in other programs, but no encryptor writes one.
func parsePublic(text string) (hmac []byte, err error) {
	if text == "" {
		return nil, errors.New("not present")
	}
	if base64.StdEncoding.DecodedLen(len(text)) > maxOptions {
		return nil, fmt.Errorf("%w: more than %d bytes", podvm.ErrTooLarge, maxOptions)
	}
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("decoding base64: %w", err)
	}
	var pub blockcipher.PublicLayerBlockCipherOptions
	d := json.NewDecoder(strings.NewReader(string(raw)))
	d.DisallowUnknownFields()
	if err := d.Decode(&pub); err != nil {
		return nil, fmt.Errorf("decoding JSON: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("data after the JSON value")
	}
	if pub.CipherType != blockcipher.AES256CTR {
		return nil, fmt.Errorf("cipher %q: want %s", podvm.Printable(string(pub.CipherType), 64), blockcipher.AES256CTR)
	}
	if len(pub.Hmac) != hmacLen {
		return nil, fmt.Errorf("hmac of %d bytes: want %d", len(pub.Hmac), hmacLen)
	}
	return pub.Hmac, nil
}

// parsePrivate reads the private options JSON. No error of it quotes raw.
func parsePrivate(raw podvm.Secret) (*Key, error) {
	if len(raw) > maxOptions {
		return nil, fmt.Errorf("private layer options: %w: more than %d bytes", podvm.ErrTooLarge, maxOptions)
	}
	var private blockcipher.PrivateLayerBlockCipherOptions
	err := json.Unmarshal(raw, &private)
	key := &Key{symKey: private.SymmetricKey, nonce: private.CipherOptions["nonce"], plain: private.Digest}
	switch {
	case err != nil:
		err = errors.New("private layer options are not the expected JSON")
	case len(key.symKey) != symKeyLen:
		err = fmt.Errorf("private layer options: symkey of %d bytes: want %d", len(key.symKey), symKeyLen)
	case len(key.nonce) != nonceLen:
		err = fmt.Errorf("private layer options: cipheroptions.nonce of %d bytes: want %d", len(key.nonce), nonceLen)
	case key.plain != "" && key.plain.Validate() != nil:
		err = errors.New("private layer options: malformed digest")
	}
	if err != nil {
		key.Wipe()
		return nil, err
	}
	return key, nil
}
