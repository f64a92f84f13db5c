package aliyun

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"

	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
	"github.com/sealpod/sealpod/podvm"
)

// metadata is the name of the metadata service for people.
const metadata = "the ECS metadata service"

// stsToken logs in with a file that holds "AK:SK:STS".
type stsToken struct {
	files  wire.Files
	name   string
	region string
}

func newSTSToken(env wire.Env, settings wire.Object) (*regional, error) {
	region, err := regionID(settings)
	if err != nil {
		return nil, err
	}
	path, err := settings.Text("token_path")
	if err != nil {
		return nil, err
	}
	files, name := tokenFile(env, path)
	if files == nil {
		return nil, fmt.Errorf(`member "token_path": want a file below %s`, podvm.CDHResourceDir)
	}
	return &regional{env: env, login: (&stsToken{files, name, region}).login}, nil
}

// tokenFile returns where to read the token at path, and its name there: below
// the directory of this provider, where a relative path starts, or anywhere
// below the one that credentials are placed in. Upstream takes any path; with
// settings nobody signed that would send parts of any file to the service. nil
// stands for a path elsewhere.
func tokenFile(env wire.Env, path string) (wire.Files, string) {
	own := wire.CredentialDir(env.Host, "aliyun")
	name, all := strings.CutPrefix(path, podvm.CDHResourceDir+"/")
	files := env.Files
	if all {
		files = wire.Dir(env.Host.Path(podvm.CDHResourceDir))
	} else if strings.HasPrefix(path, "/") {
		name, _ = strings.CutPrefix(env.Host.Path(path), string(own)+"/")
	}
	if !fs.ValidPath(name) || name == "." {
		return nil, ""
	}
	return files, name
}

func (s *stsToken) login(context.Context) (login, error) {
	raw, err := s.files.Read(s.name)
	if err != nil {
		return login{}, err
	}
	defer raw.Wipe()
	l, err := parseToken(raw)
	if err != nil {
		return login{}, wire.Credential(s.name, err)
	}
	l.region = s.region
	return l, nil
}

// parseToken reads "AK:SK:STS". Upstream keeps white space at the end, with
// which the service refuses every token.
func parseToken(raw []byte) (login, error) {
	parts := strings.Split(strings.TrimRight(string(raw), " \t\r\n"), ":")
	if len(parts) != 3 {
		return login{}, errors.New("want AK:SK:STS")
	}
	l := login{id: parts[0], secret: podvm.Secret(parts[1]), token: parts[2]}
	return l, l.check()
}

// ecsRole logs in with the RAM role of the machine.
type ecsRole struct{ env wire.Env }

func (e *ecsRole) login(ctx context.Context) (login, error) {
	role, region, err := e.role()
	if err != nil {
		return login{}, err
	}
	resp, err := e.env.HTTP.Direct().Do(ctx, wire.Request{
		Service: metadata,
		Method:  http.MethodGet,
		URL:     e.env.Host.ECSMetadataURL("/latest/meta-data/ram/security-credentials/" + role),
	})
	if err != nil {
		return login{}, fmt.Errorf("asking for the credential of a RAM role: %w", err)
	}
	defer resp.Body.Wipe()
	if resp.Status != http.StatusOK {
		return login{}, fmt.Errorf("asking for the credential of a RAM role: %w", refused(metadata, resp.Status, "", ""))
	}
	l, err := parseSession(resp.Body)
	if err != nil {
		return login{}, wire.Malformed(metadata, err)
	}
	l.region = region
	return l, nil
}

// role reads the credential file of this kind.
func (e *ecsRole) role() (role, region string, err error) {
	const name = "ecsRamRole.json"
	raw, err := e.env.Files.Read(name)
	if err != nil {
		return "", "", err
	}
	o, err := strict.Parse(raw)
	if err == nil {
		role, err = o.Text("ecs_ram_role_name")
	}
	if err == nil && !isName(role) {
		err = errors.New(`member "ecs_ram_role_name" is not the name of a role`)
	}
	if err == nil {
		region, err = regionID(o)
	}
	if err != nil {
		return "", "", wire.Credential(name, err)
	}
	return role, region, nil
}

// parseSession reads the answer of the metadata service.
func parseSession(raw []byte) (login, error) {
	o, err := strict.Parse(raw)
	if err != nil {
		return login{}, err
	}
	var part [3]string
	for i, name := range []string{"AccessKeyId", "AccessKeySecret", "SecurityToken"} {
		if part[i], err = o.Text(name); err != nil {
			return login{}, err
		}
	}
	l := login{id: part[0], secret: podvm.Secret(part[1]), token: part[2]}
	return l, l.check()
}
