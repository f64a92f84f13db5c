package model

import (
	"os"
	"regexp"
	"strings"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/source/azblob"
	"github.com/sealpod/sealpod/model/source/gcs"
	"github.com/sealpod/sealpod/model/source/hf"
	"github.com/sealpod/sealpod/model/source/local"
	"github.com/sealpod/sealpod/model/source/oci"
	"github.com/sealpod/sealpod/model/source/s3"
	"github.com/sealpod/sealpod/model/source/settings"
	"github.com/sealpod/sealpod/model/source/web"
	"github.com/sealpod/sealpod/podvm"
)

// kind is a kind of source. Its form is looked for at the start of an address.
type kind struct {
	form *regexp.Regexp
	open func(address string, env *settings.Env) (source.Source, error)
}

func form(expression string) *regexp.Regexp { return regexp.MustCompile("^(?:" + expression + ")") }

// kinds are all of them; the first that fits counts. A file that exists is one
// before all others, see open.
// Source: kserve python/storage/kserve_storage/kserve_storage.py at aaac4e2.
var kinds = []kind{
	{form(local.Prefix), as(local.New)},
	{form(s3.Prefix), as(s3.New)},
	{form(gcs.Prefix), as(gcs.New)},
	{form(hf.Prefix), as(hf.New)},
	{form(oci.Prefix), as(oci.New)},
	{form(`hdfs://|webhdfs://`), refuse("Hadoop (hdfs, webhdfs)")},
	{form(`modelscope://|ms://`), refuse("ModelScope")},
	{form(`git://|git\+|ssh://|https?://[^?#]+\.git(?:[/?#@]|$)`), refuse("git")},
	{form(azblob.Form), as(azblob.New)},
	{form(`https://[^/]+\.file\.core\.windows\.net/|https://[^/]+\.z[0-9]{1,2}\.file\.storage\.azure\.net/`), refuse("Azure Files")},
	{form(`pvc://`), refuse("a volume claim, which KServe mounts itself (pvc)")},
	{form(`https?://`), as(web.New)},
}

// as makes one type of the constructors' results.
func as[S source.Source](open func(string, *settings.Env) (S, error)) func(string, *settings.Env) (source.Source, error) {
	return func(address string, env *settings.Env) (source.Source, error) {
		s, err := open(address, env)
		if err != nil {
			return nil, err
		}
		return s, nil
	}
}

func refuse(what string) func(string, *settings.Env) (source.Source, error) {
	return func(address string, _ *settings.Env) (source.Source, error) {
		return nil, podvm.Explain(source.ErrUnsupported, "cannot fetch from "+what+": "+podvm.Printable(address, 200))
	}
}

// open returns the source at address. Errors: source.ErrUsage,
// source.ErrUnsupported, those of the local files.
func open(address string, env *settings.Env) (source.Source, error) {
	if strings.HasPrefix(address, "/") {
		if _, err := os.Stat(env.Host.Path(address)); err == nil {
			return as(local.New)(address, env)
		}
		return nil, podvm.Explain(source.ErrNotFound, "there is nothing at "+podvm.Printable(address, 200))
	}
	for _, k := range kinds {
		if k.form.MatchString(address) {
			return k.open(address, env)
		}
	}
	return nil, podvm.Explain(source.ErrUnsupported, "no kind of source is known that begins like "+podvm.Printable(address, 200))
}
