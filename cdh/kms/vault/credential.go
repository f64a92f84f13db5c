package vault

import (
	"errors"
	"fmt"

	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
	"github.com/sealpod/sealpod/podvm"
)

// CredentialFile is the name of the credential file, a JSON object with
// "address", and either "token" or "role_id" and "secret_id" of an AppRole. More
// members that may be there: "ca", PEM certificates to trust beside the
// system's; "namespace" and "approle_mount" ("approle") of the login.
const CredentialFile = "credential.json"

type credential struct {
	address   string
	token     podvm.Secret // empty with an AppRole
	role      string
	secret    podvm.Secret // empty when the role asks for none
	roleMount string
	namespace string // of the login, "" for none
	ca        string
}

func (c *credential) wipe() {
	c.token.Wipe()
	c.secret.Wipe()
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
	if c.address, err = o.Text("address"); err != nil {
		return nil, err
	}
	if c.address, err = canonical(c.address); err != nil {
		return nil, fmt.Errorf("member \"address\": %w", err)
	}
	for name, to := range map[string]*string{"role_id": &c.role, "ca": &c.ca, "namespace": &c.namespace, "approle_mount": &c.roleMount} {
		if *to, err = o.TextOr(name, ""); err != nil {
			return nil, err
		}
	}
	for name, to := range map[string]*podvm.Secret{"token": &c.token, "secret_id": &c.secret} {
		if *to, err = secretOr(o, name); err != nil {
			return nil, err
		}
	}
	if c.roleMount == "" {
		c.roleMount = "approle"
	}
	switch {
	case (len(c.token) > 0) == (c.role != ""):
		return nil, errors.New("want either a token or a role_id")
	case !isPath(c.roleMount) || c.namespace != "" && !isPath(c.namespace):
		return nil, errors.New("approle_mount or namespace is not a path")
	}
	return c, nil
}

// secretOr returns a member of visible ASCII, or nothing.
func secretOr(o wire.Object, name string) (podvm.Secret, error) {
	if _, ok := o[name]; !ok {
		return nil, nil
	}
	return wire.HeaderText(o, name)
}
