package secret

import (
	"fmt"
	"strings"

	"github.com/sealpod/sealpod/cdh/internal/datakey"
	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/podvm"
)

// Values of payload members.
const (
	version      = "0.1.0"
	kindVault    = "vault"
	kindEnvelope = "envelope"
	providerKBS  = "kbs"
)

// content is a payload. All members of its kind are required.
type content struct {
	kind                  string // kindVault or kindEnvelope
	provider              string // in lower case
	settings, annotations strict.Object

	name string // vault: a resource URI for kbs, else the service's own name

	// Envelope.
	keyID string // of the key that decrypts key, as the service names it
	key   []byte // the data key, encrypted by the service
	data  []byte // the secret, encrypted by the data key
	iv    []byte
	wrap  string // datakey.GCM or datakey.CTR
}

// parsePayload reads a payload. Members beyond those known are ignored, known
// ones must be there, once and not null. Errors: ErrParse, ErrVersion.
func parsePayload(raw []byte) (content, error) {
	o, err := strict.Parse(raw)
	if err != nil {
		return content{}, malformed(fmt.Errorf("payload: %w", err))
	}
	v, err := o.Text("version")
	if err != nil {
		return content{}, malformed(err)
	}
	if v != version { // first of all: another version may have other members
		v = podvm.Printable(v, 32)
		return content{}, podvm.Explain(fmt.Errorf("%w: %q", ErrVersion, v),
			fmt.Sprintf("the sealed secret is of version %q: this build knows %s", v, version))
	}
	c, err := readContent(o)
	if err != nil {
		return content{}, malformed(err)
	}
	return c, nil
}

func readContent(o strict.Object) (c content, err error) {
	if c.kind, err = o.Text("type"); err != nil {
		return c, err
	}
	switch c.kind {
	case kindVault:
		c.name, err = o.Text("name")
	case kindEnvelope:
		err = c.readEnvelope(o)
	default:
		err = fmt.Errorf("type %q: want %s or %s", podvm.Printable(c.kind, 32), kindVault, kindEnvelope)
	}
	if err != nil {
		return c, err
	}
	provider, err := o.Text("provider")
	if err != nil {
		return c, err
	}
	c.provider = strings.ToLower(provider)
	if c.settings, err = o.Object("provider_settings"); err != nil {
		return c, err
	}
	c.annotations, err = o.Object("annotations")
	return c, err
}

func (c *content) readEnvelope(o strict.Object) (err error) {
	if c.keyID, err = o.Text("key_id"); err != nil {
		return err
	}
	if c.wrap, err = o.Text("wrap_type"); err != nil {
		return err
	}
	if !datakey.Known(c.wrap) {
		return fmt.Errorf("wrap_type %q: want %s or %s", podvm.Printable(c.wrap, 32), datakey.GCM, datakey.CTR)
	}
	if c.key, err = o.Bytes("encrypted_key"); err != nil {
		return err
	}
	if c.data, err = o.Bytes("encrypted_data"); err != nil {
		return err
	}
	c.iv, err = o.Bytes("iv")
	return err
}
