package aws

import (
	"errors"

	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
	"github.com/sealpod/sealpod/podvm"
)

// CredentialFile is the name of the credential file, a JSON object with
// access_key_id, secret_access_key and perhaps session_token, which may be null.
// Source: guest-components confidential-data-hub/kms/src/plugins/aws/credential.rs
// at 8246e5e.
const CredentialFile = "credential.json"

// credential is an IAM access key.
type credential struct {
	id      string
	secret  podvm.Secret
	session podvm.Secret // of temporary credentials, empty otherwise
}

func (c *credential) wipe() {
	c.secret.Wipe()
	c.session.Wipe()
}

// readCredential reads the credential file. Errors: wire.ErrCredential.
func readCredential(files wire.Files) (*credential, error) {
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

func parseCredential(raw []byte) (*credential, error) {
	o, err := strict.Parse(raw)
	if err != nil {
		return nil, err
	}
	c := &credential{}
	if c.id, err = o.Text("access_key_id"); err != nil {
		return nil, err
	}
	if c.secret, err = wire.HeaderText(o, "secret_access_key"); err != nil {
		return nil, err
	}
	if o.Has("session_token") {
		if c.session, err = wire.HeaderText(o, "session_token"); err != nil {
			return nil, err
		}
	}
	if !wire.Visible([]byte(c.id)) || c.id == "" || len(c.secret) == 0 {
		return nil, errors.New("an access key with nothing or other than visible ASCII in it")
	}
	return c, nil
}
