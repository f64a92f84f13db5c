package azure

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// What the guest finds in the TPM. Source: az-cvm-vtpm 0.8.1 src/vtpm.
const (
	hclIndex        = tpm2.TPMHandle(0x01400001)
	reportDataIndex = tpm2.TPMHandle(0x01400002)
	akHandle        = tpm2.TPMHandle(0x81000003)
	// ekHandle is where TCG's provisioning guidance 2.0 §7.8 has it.
	ekHandle = tpm2.TPMHandle(0x81010001)
)

// defaultExponent is that of RSA keys, which the TPM itself gives as 0.
const defaultExponent = 65537

// hclSize is that of the index of the HCL report, the longest that libtpms
// takes: TPM2_PT_NV_INDEX_MAX of libtpms 0.9 is 2048.
const hclSize = 2048

// provision does what happens to a TPM before the guest runs: it makes the keys
// and the index of the HCL report, measures the boot, and locks the platform
// hierarchy. It returns the attestation key and the index's password.
func provision(t transport.TPM, boot []measurement) (jwk, []byte, error) {
	modulus, err := makeKey(t, attestationKey, akHandle)
	if err != nil {
		return jwk{}, nil, fmt.Errorf("making the attestation key: %w", err)
	}
	if _, err := makeKey(t, tpm2.RSAEKTemplate, ekHandle); err != nil {
		return jwk{}, nil, fmt.Errorf("making the endorsement key: %w", err)
	}
	password := random()
	if err := defineHCLIndex(t, password); err != nil {
		return jwk{}, nil, fmt.Errorf("defining the HCL report's index: %w", err)
	}
	for _, m := range boot {
		if err := extend(t, m); err != nil {
			return jwk{}, nil, fmt.Errorf("extending PCR %d: %w", m.pcr, err)
		}
	}
	if err := lockPlatform(t); err != nil {
		return jwk{}, nil, fmt.Errorf("locking the platform hierarchy: %w", err)
	}
	return rsaJWK(attestationKeyID, defaultExponent, modulus), password, nil
}

// empty is a hierarchy or an object whose password is empty.
func empty(handle tpm2.TPMHandle) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: handle, Auth: tpm2.PasswordAuth(nil)}
}

// attestationKey signs only what the TPM itself attests, with RSASSA and SHA-256.
var attestationKey = tpm2.TPMTPublic{
	Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256,
	ObjectAttributes: tpm2.TPMAObject{
		FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true,
		NoDA: true, Restricted: true, SignEncrypt: true,
	},
	Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
		Scheme: tpm2.TPMTRSAScheme{
			Scheme:  tpm2.TPMAlgRSASSA,
			Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256}),
		},
		KeyBits: 2048,
	}),
}

// makeKey makes a key of the endorsement hierarchy, keeps it under a persistent
// handle, and returns its modulus.
func makeKey(t transport.TPM, template tpm2.TPMTPublic, handle tpm2.TPMHandle) ([]byte, error) {
	key, err := tpm2.CreatePrimary{
		PrimaryHandle: empty(tpm2.TPMRHEndorsement), InPublic: tpm2.New2B(template),
	}.Execute(t)
	if err != nil {
		return nil, err
	}
	public, err := key.OutPublic.Contents()
	if err != nil {
		return nil, err
	}
	rsa, err := public.Unique.RSA()
	if err != nil {
		return nil, err
	}
	if _, err := (tpm2.EvictControl{
		Auth:             empty(tpm2.TPMRHOwner),
		ObjectHandle:     tpm2.NamedHandle{Handle: key.ObjectHandle, Name: key.Name},
		PersistentHandle: handle,
	}).Execute(t); err != nil {
		return nil, err
	}
	_, err = tpm2.FlushContext{FlushHandle: key.ObjectHandle}.Execute(t)
	return rsa.Buffer, err
}

// defineHCLIndex makes an index that the owner may read, the password writes and
// the platform may remove. Attributes: openvmm vm/devices/tpm/tpm_protocol at
// 1488a37b, platform_akcert_attributes.
func defineHCLIndex(t transport.TPM, password []byte) error {
	_, err := tpm2.NVDefineSpace{
		AuthHandle: empty(tpm2.TPMRHPlatform),
		Auth:       tpm2.TPM2BAuth{Buffer: password},
		PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
			NVIndex: hclIndex, NameAlg: tpm2.TPMAlgSHA256, DataSize: hclSize,
			Attributes: tpm2.TPMANV{AuthRead: true, AuthWrite: true, OwnerRead: true, PlatformCreate: true, NoDA: true},
		}),
	}.Execute(t)
	return err
}

func extend(t transport.TPM, m measurement) error {
	_, err := tpm2.PCRExtend{
		PCRHandle: empty(tpm2.TPMHandle(m.pcr)),
		Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{
			{HashAlg: tpm2.TPMAlgSHA256, Digest: m.digest[:]},
		}},
	}.Execute(t)
	return err
}

// lockPlatform gives the platform hierarchy a password that nobody knows, and
// keeps the guest from clearing the TPM, which would take the keys away.
func lockPlatform(t transport.TPM) error {
	if err := disableClear(t); err != nil {
		return fmt.Errorf("disabling TPM2_Clear: %w", err)
	}
	_, err := tpm2.HierarchyChangeAuth{
		AuthHandle: empty(tpm2.TPMRHPlatform), NewAuth: tpm2.TPM2BAuth{Buffer: random()},
	}.Execute(t)
	return err
}

// random returns a password.
func random() []byte {
	b := make([]byte, sha256.Size)
	_, _ = rand.Read(b) // it never fails
	return b
}

// disableClear sends TPM2_ClearControl, which go-tpm does not have.
// Source: TPM 2.0 part 3 §24.7.
func disableClear(t transport.TPM) error {
	const command = "\x80\x02\x00\x00\x00\x1c\x00\x00\x01\x27" + // with an authorization, 28 bytes, ClearControl
		"\x40\x00\x00\x0c" + // the platform
		"\x00\x00\x00\x09\x40\x00\x00\x09\x00\x00\x00\x00\x00" + // its empty password
		"\x01" // disable
	out, err := t.Send([]byte(command))
	if err != nil {
		return err
	}
	if rc := tpm2.TPMRC(codeOf(out)); rc != tpm2.TPMRCSuccess {
		return rc
	}
	return nil
}
