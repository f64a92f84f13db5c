package aliyun

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"software.sslmate.com/src/go-pkcs12"

	"github.com/sealpod/sealpod/cdh/internal/strict"
)

// maxIterations bounds what the key derivation of a PKCS#12 file may cost before
// its password is known to be right. Alibaba's files have 2048.
const maxIterations = 1 << 20

// clientKey is an identity at a KMS instance: RSA, made by Alibaba Cloud.
type clientKey struct {
	id  string
	key *rsa.PrivateKey
}

// parseClientKey reads a client key file, {"KeyId": …, "PrivateKeyData": base64
// of PKCS#12}, with the file of its password. Error texts hold nothing of either.
func parseClientKey(file, passwordFile []byte) (*clientKey, error) {
	o, err := strict.Parse(file)
	if err != nil {
		return nil, fmt.Errorf("reading the client key file: %w", err)
	}
	id, err := o.Text("KeyId")
	if err != nil {
		return nil, fmt.Errorf("reading the client key file: %w", err)
	}
	if !isName(id) {
		return nil, errors.New("reading the client key file: KeyId is not a key id")
	}
	der, err := o.Bytes("PrivateKeyData")
	if err != nil {
		return nil, fmt.Errorf("reading the client key file: %w", err)
	}
	defer clear(der)
	password, err := parsePassword(passwordFile)
	if err != nil {
		return nil, fmt.Errorf("reading the password of the client key: %w", err)
	}
	key, err := openPKCS12(der, password)
	if err != nil {
		return nil, fmt.Errorf("opening the PKCS#12 data of the client key: %w", err)
	}
	return &clientKey{id, key}, nil
}

// parsePassword reads a password file: text whose white space at the end does not
// count, as upstream takes it, or {"ClientKeyPassword": …}, which is what Alibaba
// Cloud's console gives out and upstream's example holds.
func parsePassword(file []byte) (string, error) {
	if o, err := strict.Parse(file); err == nil {
		return o.Text("ClientKeyPassword")
	}
	if !utf8.Valid(file) {
		return "", errors.New("not UTF-8")
	}
	return strings.TrimRightFunc(string(file), unicode.IsSpace), nil
}

// openPKCS12 returns the RSA key in der. Beside what OpenSSL writes today, the
// library reads the RC2 and triple DES that Alibaba Cloud uses.
func openPKCS12(der []byte, password string) (*rsa.PrivateKey, error) {
	if err := checkMAC(der); err != nil {
		return nil, err
	}
	key, _, _, err := pkcs12.DecodeChain(der, password)
	if errors.Is(err, pkcs12.ErrIncorrectPassword) {
		return nil, errPassword
	}
	if err != nil {
		return nil, err
	}
	private, ok := key.(*rsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("holds a %T, not an RSA key", key)
	}
	return private, nil
}

var (
	errPassword = errors.New("the password is wrong")
	// oidPBMAC1 is a MAC whose costs are hidden in its parameters, RFC 9579.
	oidPBMAC1 = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 14}
)

// checkMAC refuses data without a MAC, or with one that would take long to
// check; everything behind the MAC was made by who knows the password.
// Source: RFC 7292 §4 (PFX, MacData).
func checkMAC(der []byte) error {
	var pfx struct {
		Version  int
		AuthSafe asn1.RawValue
		MAC      struct {
			Info struct {
				Algorithm pkix.AlgorithmIdentifier
				Digest    []byte
			}
			Salt       []byte
			Iterations int `asn1:"optional,default:1"`
		}
	}
	if _, err := asn1.Unmarshal(der, &pfx); err != nil {
		return errors.New("not PKCS#12 with a password")
	}
	if n := pfx.MAC.Iterations; n < 1 || n > maxIterations || pfx.MAC.Info.Algorithm.Algorithm.Equal(oidPBMAC1) {
		return errors.New("its MAC is of a kind that is not used here")
	}
	return nil
}

// Headers of a request to a KMS instance.
// Source: guest-components
// confidential-data-hub/kms/src/plugins/aliyun/client/client_key_client/mod.rs at
// 8246e5e.
const (
	contentType     = "application/x-protobuf"
	apiVersion      = "dkms-gcs-0.2"
	signatureMethod = "RSA_PKCS1_SHA_256"
)

// header signs a request for api with this body and returns its header.
//
// The string to sign has a line each for the method, the SHA-256 of the body in
// capitals, the content type, the date and every x-kms-* header in order, and
// ends with the path, "/". That "acccesskeyid" has three c is the protocol's.
func (k *clientKey) header(api string, body []byte, now time.Time) (http.Header, error) {
	sum := sha256.Sum256(body)
	hash := strings.ToUpper(hex.EncodeToString(sum[:]))
	date := now.UTC().Format(http.TimeFormat)
	kms := []struct{ name, value string }{ // in order
		{"x-kms-acccesskeyid", k.id},
		{"x-kms-apiname", api},
		{"x-kms-apiversion", apiVersion},
		{"x-kms-signaturemethod", signatureMethod},
	}
	h := http.Header{}
	var b strings.Builder
	fmt.Fprintf(&b, "POST\n%s\n%s\n%s\n", hash, contentType, date)
	for _, f := range kms {
		fmt.Fprintf(&b, "%s:%s\n", f.name, f.value)
		h.Set(f.name, f.value)
	}
	b.WriteString("/")
	digest := sha256.Sum256([]byte(b.String()))
	signature, err := rsa.SignPKCS1v15(rand.Reader, k.key, crypto.SHA256, digest[:])
	if err != nil {
		return nil, fmt.Errorf("signing with the client key: %w", err)
	}
	h.Set("Accept", contentType)
	h.Set("Content-Type", contentType)
	h.Set("Content-Sha256", hash)
	h.Set("Date", date)
	h.Set("Authorization", "Bearer "+base64.StdEncoding.EncodeToString(signature))
	return h, nil
}
