package model

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/sealpod/sealpod/model/fetch"
	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/model/source/settings"
	"github.com/sealpod/sealpod/podvm"
)

// Limits.
const (
	maxPairs = 256
	// mounted is where KServe mounts models; what starts so is there already.
	mounted = "/mnt/models"
	// perFile is how many ranges are fetched at once for each file that
	// S3_MAX_FILE_CONCURRENCY allows.
	perFile = 4
)

// request is what a run is asked for, and what it holds while it does it.
type request struct {
	Config
	env     *settings.Env
	sources []input
	allow   Patterns // empty: everything
	ignore  Patterns
	strict  bool // only what is authenticated
	workers int

	keyID string // "" if none is named
	// confidential says that files may be encrypted, under keyID, in one of the
	// ways that are recognized by the file.
	confidential bool
	// demo is the file that openssl has encrypted, "" without the Red Hat demo.
	demo        string
	demoArchive bool

	key    podvm.Secret
	wipe   []func()
	opened []*fetch.Folder
}

// readRequest reads arguments and environment. Errors: source.ErrUsage.
func readRequest(args []string, cfg Config) (*request, error) {
	if len(args) < 2 || len(args)%2 != 0 || len(args) > 2*maxPairs {
		return nil, settings.Usage("%d arguments: want pairs of a source and a folder", len(args))
	}
	env, err := settings.Load(cfg.Host, cfg.Log)
	if err != nil {
		return nil, err
	}
	r := &request{Config: cfg, env: env, strict: env.True("MODEL_STRICT")}
	if v := env.Host.Getenv("MODEL_STRICT"); !r.strict && v != "" && !strings.EqualFold(v, "false") {
		return nil, settings.Usage("MODEL_STRICT is %q: want true or false", podvm.Printable(v, 32))
	}
	for i := 0; i < len(args); i += 2 {
		in := input{address: args[i], nothing: strings.HasPrefix(args[i], mounted)}
		if in.address == "" || args[i+1] == "" {
			return nil, settings.Usage("an empty argument: want pairs of a source and a folder")
		}
		if in.dest, err = filepath.Abs(args[i+1]); err != nil {
			return nil, fmt.Errorf("finding the folder: %w", err)
		}
		in.dest = cfg.Host.Path(in.dest)
		r.sources = append(r.sources, in)
	}
	if r.allow, err = ParsePatterns(env.Host.Getenv("STORAGE_ALLOW_PATTERNS")); err == nil {
		r.ignore, err = ParsePatterns(env.Host.Getenv("STORAGE_IGNORE_PATTERNS"))
	}
	if err != nil {
		return nil, err
	}
	files, err := env.Number("S3_MAX_FILE_CONCURRENCY", 4, 1, 1000)
	if err != nil {
		return nil, err
	}
	r.workers = min(perFile*files, maxWorkers(cfg.Host))
	return r, r.readKey()
}

// readKey reads which key there is, and for what.
func (r *request) readKey() error {
	get := r.env.Host.Getenv
	r.keyID = get("CONFIDENTIAL_RESOURCE_ID")
	enabled := r.env.True("CONFIDENTIAL_ENABLED")
	if enabled && r.keyID == "" {
		return settings.Usage("CONFIDENTIAL_ENABLED is true and CONFIDENTIAL_RESOURCE_ID is not set")
	}
	// Who names a key and does not say that it is not to be used has use for it.
	r.confidential = enabled || r.keyID != "" && get("CONFIDENTIAL_ENABLED") == ""
	if !r.env.True("MODEL_ENCRYPTED") {
		return nil
	}
	name, format, tag := get("MODEL_NAME"), get("MODEL_FORMAT"), get("MODEL_DECRYPTION_KEY")
	if name == "" {
		name = "model"
	}
	if format == "" {
		format = "onnx"
	}
	switch {
	case r.keyID != "":
		return settings.Usage("MODEL_ENCRYPTED and CONFIDENTIAL_RESOURCE_ID are two ways to encrypt a model: set one")
	case tag == "":
		return settings.Usage("MODEL_ENCRYPTED is true and MODEL_DECRYPTION_KEY is not set")
	}
	r.demo, r.demoArchive = name+"."+format, format == "tar.gz"
	if err := sealed.CheckPath(r.demo); err != nil {
		return settings.Usage("MODEL_NAME and MODEL_FORMAT make no name of a file: %v", err)
	}
	r.keyID = "kbs:///default/" + strings.TrimPrefix(tag, "/")
	return nil
}

// wantsKey tells whether a key is needed, once the sources are listed.
func (r *request) wantsKey() bool {
	if r.confidential || r.demo != "" {
		return true
	}
	for _, in := range r.sources {
		if in.manifest != nil {
			return r.keyID != ""
		}
	}
	return false
}

// wanted tells whether the patterns let a path through.
func (r *request) wanted(path string) bool {
	return (len(r.allow) == 0 || r.allow.Match(path)) && !r.ignore.Match(path)
}

// findManifest notes the manifest of a sealed model.
func (in *input) findManifest() {
	for i := range in.objects {
		if in.objects[i].Path == sealed.ManifestObject {
			in.manifest = &in.objects[i]
		}
	}
}
