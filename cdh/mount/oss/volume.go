package oss

import (
	"bytes"
	"net/url"
	"slices"
	"strings"
	"unicode"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/tool"
)

// Volume is what one request asks for. Credentials that begin with "sealed."
// are unsealed.
// Source: guest-components
// confidential-data-hub/hub/src/storage/volume_type/aliyun/mod.rs at 8246e5e.
type Volume struct {
	Bucket, Path, URL      string
	AccessKeyID, SecretKey string
	Encrypted              string // "gocryptfs", anything else is not encrypted
	Password               string // of gocryptfs
	Options                string // further ones of ossfs, split at white space
	MountPoint             string // absolute, as Host has it
	Digest                 string // tells two requests apart; part of a file name
}

// Check refuses what a program would read as something else than meant.
//
// Errors: tool.ErrOption.
func (v *Volume) Check() error {
	if len(v.Bucket) < 3 || len(v.Bucket) > 63 || strings.Trim(v.Bucket, "abcdefghijklmnopqrstuvwxyz0123456789-.") != "" || v.Bucket[0] == '-' {
		return tool.Option("bucket %q is not the name of one", podvm.Printable(v.Bucket, 64))
	}
	if !plain(v.Path) {
		return tool.Option("path has characters that are not text")
	}
	u, err := url.Parse(v.URL)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || !plain(v.URL) || strings.ContainsAny(v.URL, ", ") {
		return tool.Option("url is not that of an object store") // it is not quoted, it could hold a credential
	}
	if !credential([]byte(v.AccessKeyID)) || !credential([]byte(v.SecretKey)) {
		return tool.Option("akId or akSecret is empty, or has characters that credentials do not have")
	}
	if v.Encrypted == "gocryptfs" && (v.Password == "" || !plain(v.Password)) {
		return tool.Option("encPasswd is empty or has line ends")
	}
	_, err = ossfsOptions(v.Options)
	return err
}

func plain(s string) bool { return !strings.ContainsFunc(s, unicode.IsControl) }

// credential admits what fits in a line of bucket:id:secret.
func credential(s []byte) bool {
	return len(s) > 0 && !bytes.ContainsFunc(s, unicode.IsControl) && !bytes.ContainsAny(s, ": ")
}

// refusedOptions of ossfs replace what the request says elsewhere, load code,
// or read and write files of the pod VM.
var refusedOptions = []string{
	"url", "passwd_file", "credlib", "credlib_opts", "logfile", "ahbe_conf", "mime", "ssl_client_cert", "bucket",
	"use_sse", "load_sse_c", "fsname", "subtype",
	"use_cache", "del_cache", "tmpdir", "set_check_cache_sigusr1", "dev", "suid", "host", "servicepath", "public_bucket", "ram_role", "iam_role", "ecs", "ibm_iam_auth",
}

// ossfsOptions splits the caller's options at white space, as upstream does, and
// returns each as one argument -oNAME[=VALUE].
func ossfsOptions(text string) ([]string, error) {
	var args []string
	words := strings.Fields(text)
	for i := 0; i < len(words); i++ {
		list, ok := strings.CutPrefix(words[i], "-o")
		if ok && list == "" && i+1 < len(words) {
			i++
			list = words[i]
		}
		if !ok || list == "" || !plain(list) {
			return nil, tool.Option("otherOpts: %q is not supported, only options after -o are", podvm.Printable(words[i], 64))
		}
		for _, o := range strings.Split(list, ",") {
			name, _, _ := strings.Cut(o, "=")
			if strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" || name == "" || slices.Contains(refusedOptions, name) {
				return nil, tool.Option("otherOpts: the option %q is not supported", podvm.Printable(name, 64))
			}
			args = append(args, "-o"+o)
		}
	}
	return args, nil
}
