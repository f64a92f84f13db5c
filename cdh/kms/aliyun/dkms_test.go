package aliyun

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// schema holds the messages of dkms_api: names and types of fields in order of
// their numbers. "s" is a string, "y" bytes, "b" bool, "i" int32, "*" repeated
// strings.
var schema = map[string]string{
	"EncryptRequest":         "s KeyId, y Plaintext, s Algorithm, y Aad, y Iv, s PaddingMode",
	"EncryptResponse":        "s KeyId, y CiphertextBlob, y Iv, s RequestId, s Algorithm, s PaddingMode",
	"DecryptRequest":         "y CiphertextBlob, s KeyId, s Algorithm, y Aad, y Iv, s PaddingMode",
	"DecryptResponse":        "s KeyId, y Plaintext, s RequestId, s Algorithm, s PaddingMode",
	"GetSecretValueRequest":  "s SecretName, s VersionStage, s VersionId, b FetchExtendedConfig",
	"GetSecretValueResponse": "s SecretName, s SecretType, s SecretData, s SecretDataType, * VersionStages, s VersionId, s CreateTime, s RequestId, s LastRotationDate, s NextRotationDate, s ExtendedConfig, s AutomaticRotation, s RotationInterval",
	"Error":                  "i StatusCode, s ErrorCode, s ErrorMessage, s RequestId",
}

// descriptors are the schema as the protobuf library knows it, so that what
// reads and writes in tests shares no code with what is tested.
var descriptors = sync.OnceValue(func() protoreflect.MessageDescriptors {
	types := map[string]descriptorpb.FieldDescriptorProto_Type{
		"s": descriptorpb.FieldDescriptorProto_TYPE_STRING, "*": descriptorpb.FieldDescriptorProto_TYPE_STRING,
		"y": descriptorpb.FieldDescriptorProto_TYPE_BYTES, "b": descriptorpb.FieldDescriptorProto_TYPE_BOOL,
		"i": descriptorpb.FieldDescriptorProto_TYPE_INT32,
	}
	file := &descriptorpb.FileDescriptorProto{Name: proto.String("t.proto"), Package: proto.String("dkms_api"), Syntax: proto.String("proto3")}
	for name, list := range schema {
		m := &descriptorpb.DescriptorProto{Name: proto.String(name)}
		for i, f := range strings.Split(list, ", ") {
			kind, field, _ := strings.Cut(f, " ")
			label := descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL
			if kind == "*" {
				label = descriptorpb.FieldDescriptorProto_LABEL_REPEATED
			}
			m.Field = append(m.Field, &descriptorpb.FieldDescriptorProto{
				Name: proto.String(field), Number: proto.Int32(int32(i + 1)), Type: types[kind].Enum(), Label: label.Enum(),
			})
		}
		file.MessageType = append(file.MessageType, m)
	}
	d, err := protodesc.NewFile(file, nil)
	if err != nil {
		panic(err)
	}
	return d.Messages()
})

// write encodes a message; values are strings, bytes, bools or int32.
func write(name string, values map[string]any) []byte {
	d := descriptors().ByName(protoreflect.Name(name))
	m := dynamicpb.NewMessage(d)
	for k, v := range values {
		m.Set(d.Fields().ByName(protoreflect.Name(k)), protoreflect.ValueOf(v))
	}
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}

// read decodes a message; a field nobody knows is an error.
func read(name string, raw []byte) (map[string]any, error) {
	m := dynamicpb.NewMessage(descriptors().ByName(protoreflect.Name(name)))
	if err := proto.Unmarshal(raw, m); err != nil {
		return nil, err
	}
	if len(m.GetUnknown()) > 0 {
		return nil, fmt.Errorf("unknown fields %x", m.GetUnknown())
	}
	out := map[string]any{}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		out[string(f.Name())] = v.Interface()
		return true
	})
	return out, nil
}

// dkms is a KMS instance with one client, one key and one secret. Its
// "encryption" puts the iv before the bits turned around.
type dkms struct {
	t      testing.TB
	public *rsa.PublicKey
	// answer replaces the answer when it returns true.
	answer func(w http.ResponseWriter, n int) bool

	mu   sync.Mutex
	n    int
	last map[string]any // the last request
}

const dkmsIV = "twelve bytes"

func turned(b []byte) []byte {
	out := bytes.Clone(b)
	for i := range out {
		out[i] ^= 0xff
	}
	return out
}

func (s *dkms) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	if s.answer != nil && s.answer(w, s.n) {
		return
	}
	body, err := io.ReadAll(r.Body)
	if err == nil {
		err = s.check(r, body)
	}
	api := r.Header.Get("x-kms-apiname")
	if err == nil {
		s.last, err = read(api+"Request", body)
	}
	if err != nil {
		s.refuse(w, 403, "Forbidden.Signature", err.Error())
		return
	}
	req := s.last
	switch {
	case api == "GetSecretValue" && req["SecretName"] == "db" && req["FetchExtendedConfig"] == true:
		_, _ = w.Write(write("GetSecretValueResponse", map[string]any{
			"SecretName": "db", "SecretData": fmt.Sprint("s3cret/", req["VersionStage"], "/", req["VersionId"]), "SecretDataType": "text", "RequestId": "r",
		}))
	case api == "Encrypt" && req["KeyId"] == "key-1" && req["Algorithm"] == "AES_GCM" && req["Iv"] == nil:
		_, _ = w.Write(write("EncryptResponse", map[string]any{"KeyId": "key-1", "CiphertextBlob": turned(req["Plaintext"].([]byte)), "Iv": []byte(dkmsIV)}))
	case api == "Decrypt" && req["KeyId"] == "key-1" && req["Algorithm"] == "AES_GCM" && string(req["Iv"].([]byte)) == dkmsIV && req["Aad"] == nil:
		_, _ = w.Write(write("DecryptResponse", map[string]any{"KeyId": "key-1", "Plaintext": turned(req["CiphertextBlob"].([]byte)), "RequestId": "r"}))
	default:
		s.refuse(w, 404, "Forbidden.ResourceNotFound", "no such resource")
	}
}

func (s *dkms) refuse(w http.ResponseWriter, status int, code, text string) {
	w.Header().Set("Content-Type", "application/x-protobuf")
	w.WriteHeader(status)
	_, _ = w.Write(write("Error", map[string]any{"StatusCode": int32(status), "ErrorCode": code, "ErrorMessage": text, "RequestId": "r-1"}))
}

// check verifies a request by what was received, as the service documents it.
func (s *dkms) check(r *http.Request, body []byte) error {
	h := r.Header
	sum := sha256.Sum256(body)
	date, err := time.Parse("Mon, 02 Jan 2006 15:04:05 GMT", h.Get("Date"))
	switch {
	case r.Method != "POST" || r.URL.Path != "/" || r.URL.RawQuery != "" || r.Host != "kst-abc123.cryptoservice.kms.aliyuncs.com":
		return fmt.Errorf("%s %s at %s", r.Method, r.URL, r.Host)
	case h.Get("Content-Sha256") != fmt.Sprintf("%X", sum):
		return fmt.Errorf("hash %s", h.Get("Content-Sha256"))
	case h.Get("Accept") != "application/x-protobuf" || h.Get("Content-Type") != "application/x-protobuf":
		return fmt.Errorf("types %v", h)
	case err != nil || time.Since(date).Abs() > 15*time.Minute:
		return fmt.Errorf("date %s: %v", h.Get("Date"), err)
	case h.Get("x-kms-apiversion") != "dkms-gcs-0.2" || h.Get("x-kms-signaturemethod") != "RSA_PKCS1_SHA_256" || h.Get("x-kms-acccesskeyid") != "KAAP.0123":
		return fmt.Errorf("headers %v", h)
	}
	lines := []string{"POST", h.Get("Content-Sha256"), h.Get("Content-Type"), h.Get("Date")}
	for _, name := range slices.Sorted(maps.Keys(h)) {
		if low := strings.ToLower(name); strings.HasPrefix(low, "x-kms-") {
			lines = append(lines, low+":"+strings.TrimSpace(h.Get(name)))
		}
	}
	digest := sha256.Sum256([]byte(strings.Join(append(lines, "/"), "\n")))
	text, bearer := strings.CutPrefix(h.Get("Authorization"), "Bearer ")
	signature, err := base64.StdEncoding.Strict().DecodeString(text)
	if !bearer || err != nil {
		return fmt.Errorf("authorization %q", h.Get("Authorization"))
	}
	return rsa.VerifyPKCS1v15(s.public, crypto.SHA256, digest[:], signature)
}
