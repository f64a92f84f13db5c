package aliyun

import (
	"bytes"
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

// What is written here, the protobuf library reads, and the other way round.
func TestMessagesAreThoseOfTheSchema(t *testing.T) {
	for name, tt := range map[string]struct {
		wrote message
		want  map[string]any
	}{
		"EncryptRequest":        {encryptRequest("k", []byte{1, 0}), map[string]any{"KeyId": "k", "Plaintext": []byte{1, 0}, "Algorithm": "AES_GCM"}},
		"DecryptRequest":        {decryptRequest("k", []byte{2}, []byte{3}), map[string]any{"KeyId": "k", "CiphertextBlob": []byte{2}, "Iv": []byte{3}, "Algorithm": "AES_GCM"}},
		"GetSecretValueRequest": {secretRequest("s", "", "v"), map[string]any{"SecretName": "s", "VersionId": "v", "FetchExtendedConfig": true}},
	} {
		got, err := read(name, tt.wrote)
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
		if again := write(name, tt.want); len(again) != len(tt.wrote) {
			t.Errorf("%s: %x, want %x", name, tt.wrote, again)
		}
	}
	if s, err := plaintext(write("DecryptResponse", map[string]any{"KeyId": "k", "Plaintext": []byte{0}, "PaddingMode": "p"})); err != nil || !bytes.Equal(s, []byte{0}) {
		t.Errorf("%x, %v", []byte(s), err)
	}
	if s, err := secretText(write("GetSecretValueResponse", map[string]any{"SecretData": "d", "RotationInterval": "r"})); err != nil || string(s) != "d" {
		t.Errorf("%s, %v", []byte(s), err)
	}
	if code, text := serviceError(write("Error", map[string]any{"StatusCode": int32(-1), "ErrorCode": "c", "ErrorMessage": "m"})); code != "c" || text != "m" {
		t.Errorf("%s, %s", code, text)
	}
}

func TestLastFieldCounts(t *testing.T) {
	raw := append(write("DecryptResponse", map[string]any{"Plaintext": []byte("a")}), write("DecryptResponse", map[string]any{"Plaintext": []byte("b")})...)
	if s, err := plaintext(raw); err != nil || string(s) != "b" {
		t.Errorf("%s, %v", []byte(s), err)
	}
}

// What is returned is a copy: the caller wipes the answer.
func TestPlaintextOutlivesTheAnswer(t *testing.T) {
	raw := write("DecryptResponse", map[string]any{"Plaintext": []byte("key")})
	s, err := plaintext(raw)
	clear(raw)
	if err != nil || string(s) != "key" {
		t.Errorf("%s, %v", []byte(s), err)
	}
}

// Nothing is accepted that the protobuf library refuses.
func FuzzMessage(f *testing.F) {
	f.Add(write("DecryptResponse", map[string]any{"KeyId": "k", "Plaintext": []byte("p"), "RequestId": "r"}))
	f.Add(write("GetSecretValueResponse", map[string]any{"SecretData": "d"}))
	f.Add(write("Error", map[string]any{"StatusCode": int32(400), "ErrorCode": "c", "ErrorMessage": "m"}))
	f.Add([]byte{0x1b, 0x12, 1, 'x', 0x1c})
	f.Fuzz(func(t *testing.T, raw []byte) {
		kept := bytes.Clone(raw)
		wellFormed := proto.Unmarshal(raw, &emptypb.Empty{}) == nil
		s, err := plaintext(raw)
		if err == nil && (!wellFormed || len(s) == 0) || err != nil && s != nil {
			t.Fatalf("%q beside %v, well-formed %v", []byte(s), err, wellFormed)
		}
		if s, err := secretText(raw); err == nil && (!wellFormed || len(s) == 0) || err != nil && s != nil {
			t.Fatalf("%q beside %v", []byte(s), err)
		}
		serviceError(raw)
		if !bytes.Equal(raw, kept) {
			t.Fatal("the answer was changed")
		}
	})
}
