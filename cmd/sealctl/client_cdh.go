package main

import (
	"encoding/base64"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/api/datahub"
	"github.com/sealpod/sealpod/api/keyprovider"
	"github.com/sealpod/sealpod/cdh/volume"
	"github.com/sealpod/sealpod/podvm"
)

// hubClient is "sealctl client cdh", with all calls of the data hub but WrapKey,
// which no data hub carries out.
func hubClient() *cobra.Command {
	var f clientFlags
	return f.root(hubDaemon, &cobra.Command{
		Use:   "cdh CALL",
		Short: "Call the confidential data hub",
		Long: `Calls the confidential data hub. Resources, secrets and keys are printed as
base64. Paths in a call are those of the pod VM.`,
		Example: `  sealctl client cdh get-resource --resource-uri kbs:///default/key/1
  sealctl client cdh unseal-secret --secret-path sealed.txt | base64 -d
  sealctl client cdh unwrap-key --annotation-path request.json
  sealctl client cdh secure-mount --storage-path volume.json
  sealctl client cdh pull-image --image-url registry.example/app:1 --bundle-path /run/app`,
	}, f.unsealSecret(), f.unwrapKey(), f.getResource(), f.secureMount(), f.pullImage())
}

func (f *clientFlags) getResource() *cobra.Command {
	var uri string
	cmd := &cobra.Command{
		Use: "get-resource", Short: "Print a resource of the KBS as base64",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := required(cmd, "resource-uri"); err != nil {
				return err
			}
			out := &datahub.GetResourceResponse{}
			defer func() { clear(out.GetResource()) }()
			return f.do(cmd, rpcCall{
				service: "api.GetResourceService", method: "GetResource", timeout: callTimeout,
				in: &datahub.GetResourceRequest{ResourcePath: uri}, out: out,
				text: func() (string, error) { return base64.StdEncoding.EncodeToString(out.GetResource()), nil },
			})
		},
	}
	cmd.Flags().StringVarP(&uri, "resource-uri", "r", "", "the resource, `kbs:///REPOSITORY/TYPE/TAG`")
	return cmd
}

func (f *clientFlags) unsealSecret() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use: "unseal-secret", Short: "Print what a sealed secret holds as base64",
		RunE: func(cmd *cobra.Command, _ []string) error {
			sealed, err := fileFlag(cmd, "secret-path", path)
			if err != nil {
				return err
			}
			out := &datahub.UnsealSecretOutput{}
			defer func() { clear(out.GetPlaintext()) }()
			err = f.do(cmd, rpcCall{
				service: "api.SealedSecretService", method: "UnsealSecret", timeout: callTimeout,
				in: &datahub.UnsealSecretInput{Secret: sealed}, out: out,
				text: func() (string, error) { return base64.StdEncoding.EncodeToString(out.GetPlaintext()), nil },
			})
			if n := len(sealed); err != nil && n > 0 && sealed[n-1] == '\n' {
				return fmt.Errorf("%w\nhint: %s ends in a line end, which belongs to no sealed secret", err, path)
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&path, "secret-path", "s", "", "`file` with the sealed secret, sent as it is")
	return cmd
}

func (f *clientFlags) unwrapKey() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use: "unwrap-key", Short: "Print the response to a key provider request as base64",
		Long: `Sends a request of ocicrypt's key provider protocol: a JSON object of op,
keywrapparams and keyunwrapparams, with the annotation packet in the latter. For a
bare packet there is sealpod cdh-oneshot.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			request, err := fileFlag(cmd, "annotation-path", path)
			if err != nil {
				return err
			}
			out := &keyprovider.KeyProviderKeyWrapProtocolOutput{}
			defer func() { clear(out.GetKeyProviderKeyWrapProtocolOutput()) }()
			return f.do(cmd, rpcCall{
				service: "keyprovider.KeyProviderService", method: "UnWrapKey", timeout: callTimeout,
				in: &keyprovider.KeyProviderKeyWrapProtocolInput{KeyProviderKeyWrapProtocolInput: request}, out: out,
				text: func() (string, error) {
					return base64.StdEncoding.EncodeToString(out.GetKeyProviderKeyWrapProtocolOutput()), nil
				},
			})
		},
	}
	cmd.Flags().StringVarP(&path, "annotation-path", "a", "", "`file` with the request, sent as it is")
	return cmd
}

func (f *clientFlags) secureMount() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use: "secure-mount", Short: "Open an encrypted volume in the pod VM",
		Long: `Opens a volume that a JSON file describes: volume_type and mount_point, texts,
options, an object of texts, and flags, an array of texts.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := required(cmd, "storage-path"); err != nil {
				return err
			}
			in, err := volume.ReadFile(path)
			if err != nil {
				return err
			}
			said := "mount succeeded!"
			if f.overGRPC() {
				said = "mount succeed." // upstream's tools differ
			}
			return f.do(cmd, rpcCall{
				service: "api.SecureMountService", method: "SecureMount", timeout: callTimeout,
				in: in, out: &datahub.SecureMountResponse{}, text: func() (string, error) { return said, nil },
			})
		},
	}
	cmd.Flags().StringVarP(&path, "storage-path", "s", "", "JSON `file` that describes the volume")
	return cmd
}

func (f *clientFlags) pullImage() *cobra.Command {
	in := &datahub.ImagePullRequest{}
	cmd := &cobra.Command{
		Use: "pull-image", Short: "Have an image pulled and a bundle made of it",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := required(cmd, "image-url", "bundle-path"); err != nil {
				return err
			}
			out := &datahub.ImagePullResponse{}
			return f.do(cmd, rpcCall{
				service: "api.ImagePullService", method: "PullImage", timeout: pullTimeout, in: in, out: out,
				text: func() (string, error) { return "Image pulled: " + podvm.Printable(out.GetManifestDigest(), 200), nil },
			})
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&in.ImageUrl, "image-url", "i", "", "the image, `REGISTRY/NAME:TAG` or @DIGEST")
	fl.StringVarP(&in.BundlePath, "bundle-path", "b", "", "the `directory` to make rootfs in, in the pod VM")
	return cmd
}

// fileFlag reads the file of a flag that has to be there.
func fileFlag(cmd *cobra.Command, name, path string) ([]byte, error) {
	if err := required(cmd, name); err != nil {
		return nil, err
	}
	return podvm.ReadFileMax(path, maxMessage)
}
