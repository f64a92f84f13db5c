package vtpm

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealpod/sealpod/podvm"
)

// What quoting tells apart.
var (
	// ErrKey says that a handle has no key that can attest.
	ErrKey = errors.New("no attestation key")
	// ErrChanging says that PCRs were extended again and again meanwhile.
	ErrChanging = errors.New("the PCRs keep changing")
)

// quoteTries is how often a quote is made when somebody else extends a PCR
// between it and the reading of the PCRs.
const quoteTries = 5

// Quote is a quote over all PCRs, and their values at that moment.
type Quote struct {
	Key     *rsa.PublicKey // whose private part signed
	Message []byte         // TPMS_ATTEST
	// Signature is the bare RSASSA signature over SHA-256 of Message;
	// FullSignature the same as TPMT_SIGNATURE.
	Signature, FullSignature []byte
	PCRs                     [PCRCount][]byte // 32 bytes each
}

// AttestationKey returns the public part of the key at a persistent handle.
// Errors: ErrKey when there is none, or it is not a restricted RSA signing key
// for RSASSA with SHA-256.
func (c *Conn) AttestationKey(handle uint32) (*rsa.PublicKey, error) {
	key, _, err := c.key(handle)
	return key, err
}

// key also returns what the TPM calls the key.
func (c *Conn) key(handle uint32) (*rsa.PublicKey, tpm2.TPM2BName, error) {
	out, err := tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(handle)}.Execute(c)
	if errors.Is(err, tpm2.TPMRCHandle) || errors.Is(err, tpm2.TPMRCValue) {
		err = fmt.Errorf("%w: %w", ErrKey, err)
	}
	var key *rsa.PublicKey
	if err == nil {
		key, err = attestationKey(out)
	}
	if err != nil {
		return nil, tpm2.TPM2BName{}, fmt.Errorf("reading the key at %#x: %w", handle, err)
	}
	return key, out.Name, nil
}

func attestationKey(out *tpm2.ReadPublicResponse) (*rsa.PublicKey, error) {
	public, err := out.OutPublic.Contents()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAnswer, err)
	}
	a := public.ObjectAttributes
	if public.Type != tpm2.TPMAlgRSA || !a.Restricted || !a.SignEncrypt || a.Decrypt {
		return nil, fmt.Errorf("%w: not a restricted RSA signing key", ErrKey)
	}
	parms, err := public.Parameters.RSADetail()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAnswer, err)
	}
	unique, err := public.Unique.RSA()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAnswer, err)
	}
	if scheme, err := parms.Scheme.Details.RSASSA(); err != nil || parms.Scheme.Scheme != tpm2.TPMAlgRSASSA || scheme.HashAlg != tpm2.TPMAlgSHA256 {
		return nil, fmt.Errorf("%w: its scheme is not RSASSA with SHA-256", ErrKey)
	}
	key := &rsa.PublicKey{N: new(big.Int).SetBytes(unique.Buffer), E: int(parms.Exponent)}
	if key.E == 0 {
		key.E = 65537 // part 2, TPMS_RSA_PARMS
	}
	if n := key.N.BitLen(); n < 2048 || n > 4096 || key.E < 3 {
		return nil, fmt.Errorf("%w: an RSA key of %d bits", ErrKey, n)
	}
	return key, nil
}

// Quote signs data and all PCRs with the key at a persistent handle, and
// returns PCR values that agree with the quote. How long data may be depends on
// the TPM: 2 bytes more than its longest digest.
//
// Errors: ErrKey as of AttestationKey, ErrChanging, ErrAnswer.
func (c *Conn) Quote(handle uint32, data []byte) (Quote, error) {
	key, name, err := c.key(handle)
	if err != nil {
		return Quote{}, err
	}
	signer := tpm2.AuthHandle{Handle: tpm2.TPMHandle(handle), Name: name, Auth: tpm2.PasswordAuth(nil)}
	for range quoteTries {
		q, digest, err := c.quote(signer, data)
		if errors.Is(err, tpm2.TPMRCSize) {
			err = podvm.Explain(err, fmt.Sprintf("this TPM does not take %d bytes of report data", len(data)))
		}
		if err != nil {
			return Quote{}, fmt.Errorf("quoting: %w", err)
		}
		q.Key = key
		if q.PCRs, err = c.readAllPCRs(); err != nil {
			return Quote{}, err
		}
		sum := sha256.Sum256(bytes.Join(q.PCRs[:], nil))
		if bytes.Equal(sum[:], digest) {
			return q, nil
		}
	}
	return Quote{}, podvm.Explain(fmt.Errorf("quoting: %w: %d times", ErrChanging, quoteTries), "the TPM's PCRs keep changing; try again")
}

// quote returns a quote and the digest of PCRs in it.
func (c *Conn) quote(signer tpm2.AuthHandle, data []byte) (q Quote, digest []byte, err error) {
	out, err := tpm2.Quote{
		SignHandle:     signer,
		QualifyingData: tpm2.TPM2BData{Buffer: data},
		InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, // the key's own
		PCRSelect:      selection(allPCRs),
	}.Execute(c)
	if err != nil {
		return Quote{}, nil, err
	}
	if digest, err = quoted(out, data); err != nil {
		return Quote{}, nil, err
	}
	sig, err := out.Signature.Signature.RSASSA()
	if err != nil || out.Signature.SigAlg != tpm2.TPMAlgRSASSA || sig.Hash != tpm2.TPMAlgSHA256 {
		return Quote{}, nil, fmt.Errorf("%w: the signature is not RSASSA with SHA-256", ErrAnswer)
	}
	return Quote{
		Message: out.Quoted.Bytes(), Signature: sig.Sig.Buffer, FullSignature: tpm2.Marshal(out.Signature),
	}, digest, nil
}

// quoted checks that the TPM quoted what it was asked for, and returns the
// digest of the PCRs.
func quoted(out *tpm2.QuoteResponse, data []byte) ([]byte, error) {
	attest, err := out.Quoted.Contents()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAnswer, err)
	}
	if attest.Magic != tpm2.TPMGeneratedValue || attest.Type != tpm2.TPMSTAttestQuote || !bytes.Equal(attest.ExtraData.Buffer, data) {
		return nil, fmt.Errorf("%w: not a quote over the report data", ErrAnswer)
	}
	info, err := attest.Attested.Quote()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAnswer, err)
	}
	if mask, ok := selected(info.PCRSelect); !ok || mask != allPCRs {
		return nil, fmt.Errorf("%w: not a quote over PCRs 0 to 23 of the SHA-256 bank", ErrAnswer)
	}
	return info.PCRDigest.Buffer, nil
}
