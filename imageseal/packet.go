package imageseal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/containers/ocicrypt/blockcipher"

	"github.com/sealpod/sealpod/podvm"
)

// Annotations of an encrypted layer.
// Source: containers/ocicrypt encryption.go and keywrap/keyprovider at v1.3.2.
const (
	keysPrefix        = "org.opencontainers.image.enc.keys."
	keysAnnotation    = keysPrefix + "provider.attestation-agent"
	pubOptsAnnotation = "org.opencontainers.image.enc.pubopts"
)

// kekSize is the length of a key-encryption key in bytes (AES-256).
const kekSize = 32

// wrapType is how a packet is encrypted: AES-256-GCM, 12-byte iv, no
// additional data, tag appended.
const wrapType = "A256GCM"

// Packets says which form of key packet a layer carries.
type Packets int

const (
	// PacketsV2 writes the current form alone.
	PacketsV2 Packets = iota
	// PacketsV1 writes the old form alone, for guests before 2023.
	PacketsV1
	// PacketsBoth writes the current form and then the old one.
	PacketsBoth
)

// packetV1 and packetV2 are the JSON text of a key packet.
// Source: guest-components confidential-data-hub/hub/src/image at 8246e5e.
type packetV1 struct {
	KID         string `json:"kid"`
	WrappedData []byte `json:"wrapped_data"`
	IV          []byte `json:"iv"`
	WrapType    string `json:"wrap_type"`
}

type packetV2 struct {
	Version          string   `json:"version"`
	Provider         string   `json:"provider"`
	KID              string   `json:"kid"`
	WrappedData      []byte   `json:"wrapped_data"`
	ProviderSettings struct{} `json:"provider_settings"`
	Annotations      struct{} `json:"annotations"`
	IV               []byte   `json:"iv"`
	WrapType         string   `json:"wrap_type"`
}

// wrap encrypts the private options of a layer for the key kid and returns the
// annotation: the base64 of each packet, separated by commas. Each packet has
// an iv of its own.
func wrap(private *blockcipher.PrivateLayerBlockCipherOptions, kid string, kek podvm.Secret, forms Packets) (string, error) {
	plain, err := json.Marshal(private)
	if err != nil {
		return "", fmt.Errorf("encoding the layer key: %w", err)
	}
	defer clear(plain)
	var packets []any
	if forms != PacketsV1 {
		data, iv, err := seal(kek, plain)
		if err != nil {
			return "", err
		}
		packets = append(packets, packetV2{Version: "0.1.0", Provider: "kbs", KID: kid, WrappedData: data, IV: iv, WrapType: wrapType})
	}
	if forms != PacketsV2 {
		data, iv, err := seal(kek, plain)
		if err != nil {
			return "", err
		}
		packets = append(packets, packetV1{KID: kid, WrappedData: data, IV: iv, WrapType: wrapType})
	}
	var out []string
	for _, p := range packets {
		text, err := json.Marshal(p)
		if err != nil {
			return "", fmt.Errorf("encoding the key packet: %w", err)
		}
		out = append(out, base64.StdEncoding.EncodeToString(text))
	}
	return strings.Join(out, ","), nil
}

func seal(kek podvm.Secret, plain []byte) (ciphertext, iv []byte, err error) {
	if len(kek) != kekSize {
		return nil, nil, fmt.Errorf("the key-encryption key has %d bytes, want %d", len(kek), kekSize)
	}
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, nil, fmt.Errorf("setting up AES: %w", err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return nil, nil, fmt.Errorf("setting up GCM: %w", err)
	}
	iv = make([]byte, gcm.NonceSize())
	_, _ = rand.Read(iv) // never fails: crypto/rand ends the program instead
	return gcm.Seal(nil, iv, plain, nil), iv, nil
}

// PacketInfo is what a key packet says in clear.
type PacketInfo struct {
	// Scheme is the part of the annotation's name after "enc.keys.", such as
	// "provider.attestation-agent" or "jwe".
	Scheme string `json:"scheme"`
	// Provider, KeyID and WrapType are empty for schemes that are not packets
	// of the attestation agent.
	Provider string `json:"provider,omitempty"`
	KeyID    string `json:"keyId,omitempty"`
	WrapType string `json:"wrapType,omitempty"`
}

// readPackets lists the key packets in the annotations of a layer.
func readPackets(annotations map[string]string) []PacketInfo {
	var out []PacketInfo
	for _, name := range sorted(annotations) {
		scheme, ok := strings.CutPrefix(name, keysPrefix)
		if !ok {
			continue
		}
		for packet := range strings.SplitSeq(annotations[name], ",") {
			info := PacketInfo{Scheme: podvm.Printable(scheme, 64)}
			if p, err := readPacket(packet); err == nil {
				info.Provider = podvm.Printable(p.Provider, 64)
				info.KeyID = podvm.Printable(p.KID, 512)
				info.WrapType = podvm.Printable(p.WrapType, 32)
			}
			out = append(out, info)
		}
	}
	return out
}

// readPacket decodes one packet of either form; in the old one the provider
// and the version are what the current one defaults to.
func readPacket(packet string) (packetV2, error) {
	p := packetV2{Version: "0.1.0", Provider: "kbs"}
	if len(packet) > 64<<10 {
		return p, podvm.ErrTooLarge
	}
	text, err := base64.StdEncoding.DecodeString(packet)
	if err != nil {
		return p, fmt.Errorf("decoding the packet: %w", err)
	}
	// The two open-ended members have no business here and any shape there.
	var open struct {
		packetV2
		ProviderSettings json.RawMessage `json:"provider_settings"`
		Annotations      json.RawMessage `json:"annotations"`
	}
	open.packetV2 = p
	if err := json.Unmarshal(text, &open); err != nil {
		return p, fmt.Errorf("reading the packet: %w", err)
	}
	if open.KID == "" {
		return p, errors.New("the packet names no key")
	}
	return open.packetV2, nil
}
