package userdata

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"

	"github.com/sealpod/sealpod/attester/initdata"
	"github.com/sealpod/sealpod/podvm"
)

// What Provision writes. All but policyFile and digestFile may be set by
// write_files, and those in fromInitData by init data.
const (
	dir           = "/run/peerpod"
	agentFile     = dir + "/aa.toml"
	hubFile       = dir + "/cdh.toml"
	policyFile    = dir + "/policy.rego"
	forwarderFile = dir + "/apf.json"
	authFile      = dir + "/auth.json"
	initDataFile  = dir + "/initdata"
	digestFile    = dir + "/initdata.digest"
	scratchFile   = dir + "/scratch-space.marker"
)

// fromUserData is what write_files may name, as it stands there.
func fromUserData() []string {
	return []string{agentFile, hubFile, forwarderFile, authFile, initDataFile, scratchFile}
}

// fromInitData is where the content of a key of init data goes. A key is
// compared as it stands there: "sub/../cdh.toml" is not "cdh.toml".
func fromInitData() map[string]string {
	return map[string]string{"aa.toml": agentFile, "cdh.toml": hubFile, "policy.rego": policyFile}
}

// dummy is the init data of a VM that the host gave none. Its digest is what a
// relying party knows such VMs by, so it must not change:
// adb48cc14fea9403d3d51f3b5f5068fd4d80445a14e94f1b3d5dbabaad66478d.
// Source: cloud-api-adaptor src/cloud-api-adaptor/pkg/userdata/provision.go at
// fbdde756.
const dummy = "algorithm = \"sha256\"\nversion = \"0.1.0\"\n\n[data]\n\"aa.toml\" = '''\n'''"

// ErrUnmeasured says that the configuration is not part of the init data where
// it must be.
var ErrUnmeasured = errors.New("configuration that is not part of the init data")

// plan is what is to be written, complete and valid.
type plan struct {
	files    map[string][]byte // by path
	initData *initdata.Document
}

// makePlan decides what is to be written for the entries of write_files; none is
// what others wrote the files for. Init data wins, since it is measured.
//
// Errors: initdata.ErrInitData, ErrUnmeasured, those of reading files.
func makePlan(c Config, entries []writeFile, source string) (*plan, error) {
	files := map[string][]byte{}
	for _, e := range entries {
		if !slices.Contains(fromUserData(), e.path) {
			c.Log.Warn("A file is not allowed in write_files and is left out", "path", podvm.Printable(e.path, 256), "line", e.line)
			continue
		}
		files[e.path] = []byte(e.content)
	}
	doc, err := takeInitData(c, files)
	if err != nil {
		return nil, err
	}
	to := fromInitData()
	for _, key := range slices.Sorted(maps.Keys(doc.Data)) {
		if path, ok := to[key]; ok {
			if len(files[path]) > 0 {
				c.Log.Warn("A file of write_files gives way to that of the init data", "path", path)
			}
			files[path] = []byte(doc.Data[key])
			continue
		}
		c.Log.Warn("A key is not allowed in init data and is left out", "key", podvm.Printable(key, 256))
	}
	if err := checkMeasured(c, files, doc, source); err != nil {
		return nil, err
	}
	if _, ok := files[agentFile]; !ok && !exists(c.Host, agentFile) {
		// Its existence is what starts the attestation agent, and all after it.
		c.Log.Info("Nobody configures the attestation agent, it gets an empty file", "path", agentFile)
		files[agentFile] = nil
	}
	files[digestFile] = []byte(hex.EncodeToString(doc.Digest()))
	return &plan{files: files, initData: doc}, nil
}

// takeInitData returns the init data of files, or of the machine, or else the
// dummy, which it adds to files.
func takeInitData(c Config, files map[string][]byte) (*initdata.Document, error) {
	encoded, ok := files[initDataFile]
	if !ok {
		var err error
		encoded, err = podvm.ReadFileMax(c.Host.Path(initDataFile), initdata.MaxEncodedBytes)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			c.Log.Info("There is no init data, an empty one takes its place")
			if encoded, err = initdata.Encode([]byte(dummy)); err != nil {
				return nil, err
			}
			files[initDataFile] = encoded
		case err != nil:
			return nil, fmt.Errorf("reading init data: %w", err)
		}
	}
	text, err := initdata.Decode(encoded)
	if err != nil {
		return nil, fmt.Errorf("decoding init data: %w", err)
	}
	doc, err := initdata.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("reading init data: %w", err)
	}
	return doc, nil
}

// checkMeasured tells of the configuration of attestation agent and data hub that
// init data does not have: the host may change it and nobody sees. Files that
// were there before count when others than this program write them.
func checkMeasured(c Config, files map[string][]byte, doc *initdata.Document, source string) error {
	for _, key := range []string{"aa.toml", "cdh.toml"} {
		if _, ok := doc.Data[key]; ok {
			continue
		}
		path := fromInitData()[key]
		size := int64(len(files[path]))
		if st, err := os.Stat(c.Host.Path(path)); source == None && err == nil {
			size = st.Size()
		}
		switch {
		case size == 0:
		case c.MeasuredOnly:
			return fmt.Errorf("%w: %s", ErrUnmeasured, path)
		default:
			c.Log.Warn("A file is not part of the init data: the host may change it and no evidence shows that", "path", path)
		}
	}
	return nil
}

func exists(host podvm.Host, path string) bool {
	_, err := os.Stat(host.Path(path))
	return err == nil
}

// logged is the plan for the log: names and lengths.
func (p *plan) logged() slog.Value {
	var attrs []slog.Attr
	for _, path := range slices.Sorted(maps.Keys(p.files)) {
		attrs = append(attrs, slog.Int(path[len(dir)+1:], len(p.files[path])))
	}
	return slog.GroupValue(attrs...)
}
