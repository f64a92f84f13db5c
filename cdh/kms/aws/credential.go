package aws

import (
	"errors"

	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
	"github.com/sealpod/sealpod/podvm/sigv4"
)

// CredentialFile is the name of the credential file, a JSON object with
// access_key_id, secret_access_key and perhaps session_token, which may be null.
// Source: guest-components confidential-data-hub/kms/src/plugins/aws/credential.rs
// at 8246e5e.
const CredentialFile = "credential.json"

// readCredential reads the credential file. Errors: wire.ErrCredential.
func readCredential(files wire.Files) (*sigv4.Credential, error) {
	raw, err := files.Read(CredentialFile)
	if err != nil {
		return nil, err
	}
	defer raw.Wipe()
	c, err := parseCredential(raw)
	if err != nil {
		return nil, wire.Credential(CredentialFile, err)
	}
	return c, nil
}

func parseCredential(raw []byte) (*sigv4.Credential, error) {
	o, err := strict.Parse(raw)
	if err != nil {
		return nil, err
	}
	c := &sigv4.Credential{}
	if c.ID, err = o.Text("access_key_id"); err != nil {
		return nil, err
	}
	if c.Secret, err = wire.HeaderText(o, "secret_access_key"); err != nil {
		return nil, err
	}
	if o.Has("session_token") {
		if c.Session, err = wire.HeaderText(o, "session_token"); err != nil {
			return nil, err
		}
	}
	if !wire.Visible([]byte(c.ID)) || c.ID == "" || len(c.Secret) == 0 {
		return nil, errors.New("an access key with nothing or other than visible ASCII in it")
	}
	return c, nil
}
