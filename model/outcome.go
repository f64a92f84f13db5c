package model

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/sealpod/sealpod/imagepull/layer"
	"github.com/sealpod/sealpod/model/agefile"
	"github.com/sealpod/sealpod/model/jwe"
	"github.com/sealpod/sealpod/model/key"
	"github.com/sealpod/sealpod/model/openssl"
	"github.com/sealpod/sealpod/model/room"
	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/unpack"
	"github.com/sealpod/sealpod/podvm"
)

// Exit codes of the storage initializer.
const (
	ExitSource      = 1
	ExitUsage       = 2
	ExitRefused     = 3
	ExitIntegrity   = 4
	ExitSpace       = 5
	ExitUnreachable = 6
	ExitInterrupted = 130
)

// outcomes say what an error means and what to do about it. The first that fits
// counts, so who is to blame comes before what was noticed first.
var outcomes = []struct {
	err  error
	code int
	hint string
}{
	{context.Canceled, ExitInterrupted, "what is there is continued at the next start"},
	{key.ErrUsage, ExitUsage, "see CONFIDENTIAL_RESOURCE_ID and CDH_ADDR"},
	{key.ErrRefused, ExitRefused, "see the policy and the reference values of the relying party, and whether the key is there: sealctl kbs list-resources"},
	{key.ErrUnreachable, ExitUnreachable, "see whether api-server-rest and the confidential data hub run in this pod, and reach the relying party"},
	{sealed.ErrKey, ExitRefused, "see what the resource holds: sealctl model key makes it"},
	{layer.ErrDecrypt, ExitRefused, "see the policy of the relying party for the key that the image is encrypted with, and whether that key is there"},
	{room.ErrSpace, ExitSpace, "give the volume of the model more room; a pod VM's disk is often its memory"},
	{sealed.ErrPin, ExitIntegrity, "somebody put another version of the model there, or the key has to be replaced with sealctl model key"},
	{sealed.ErrManifest, ExitIntegrity, "the manifest was made by another program, or for a later version of this one"},
	{sealed.ErrIntegrity, ExitIntegrity, "the objects were changed, or the key is another model's: sealctl model verify tells"},
	{ErrUnauthenticated, ExitIntegrity, "seal the model with sealctl model seal, or leave MODEL_STRICT out"},
	{unpack.ErrArchive, ExitIntegrity, "make the archive anew, with files and folders only"},
	{jwe.ErrFormat, ExitIntegrity, "files that end in .jwe must be JWEs in compact form, with A256KW and A256GCM"},
	{agefile.ErrFormat, ExitIntegrity, "files that end in .age must be files of age, version 1, without armor"},
	{openssl.ErrFormat, ExitIntegrity, "make it with openssl enc -aes-256-cbc -pbkdf2 -kfile"},
	{source.ErrUsage, ExitUsage, "see the storage URI and the environment of the init container"},
	{source.ErrUnsupported, ExitUsage, "s3, gs, hf, https, oci, Azure blobs and files of this machine can be fetched"},
	{ErrDestination, ExitUsage, "mount a volume there that the user of the init container may write to"},
	{ErrCollision, ExitUsage, "give each source a folder of its own"},
	{source.ErrRefused, ExitSource, "see the credentials in the storage secret, and what they may read"},
	{source.ErrNotFound, ExitSource, "see the storage URI"},
	{source.ErrChanged, ExitSource, "wait until the upload is complete; the next start begins the changed objects anew"},
	{source.ErrListing, ExitSource, "see what else is stored there"},
	{source.ErrUnreachable, ExitSource, "see the endpoint, the network policy of the pod and its proxy"},
	{fs.ErrPermission, ExitUsage, "mount a volume there that the user of the init container may write to"},
	{syscall.EROFS, ExitUsage, "mount a volume there that the user of the init container may write to"},
	{fs.ErrExist, ExitUsage, "the folder has another model in it: empty it"},
}

// Outcome returns the exit code for an error of Run, and a line for people: the
// cause and a hint.
func Outcome(err error) (code int, line string) {
	cause := podvm.Cause(err)
	if cause == "" {
		cause = err.Error()
	}
	cause = podvm.Printable(strings.Join(strings.Fields(cause), " "), 700)
	for _, o := range outcomes {
		if errors.Is(err, o.err) {
			if o.code == ExitInterrupted {
				cause = "interrupted"
			} else if sentence := o.err.Error(); o.code != ExitUsage && !strings.Contains(cause, sentence) {
				cause = sentence + ": " + cause
			}
			return o.code, cause + "; hint: " + o.hint
		}
	}
	return ExitSource, cause
}

// terminationLog is where Kubernetes looks for why a container ended.
const terminationLog = "/dev/termination-log"

// Terminate leaves a line where Kubernetes looks for it, if there is such a place.
func Terminate(host podvm.Host, line string) error {
	f, err := os.OpenFile(host.Path(terminationLog), os.O_WRONLY|os.O_TRUNC, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("writing the termination log: %w", err)
	}
	_, err = f.WriteString(line + "\n")
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("writing the termination log: %w", err)
	}
	return nil
}
