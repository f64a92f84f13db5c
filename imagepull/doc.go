// Package imagepull turns an image reference into a container root file
// system inside the confidential VM: resolve, check the policy, then per layer
// fetch, verify, decrypt, inflate and unpack, then mount, then describe the
// result in an OCI config.json.
//
// Data path: kata-agent asks the data hub's ImagePullService, cdh/server calls
// Puller.Pull. Below are registry (names, credentials, HTTP), policy (who may
// have signed), layer (one layer from bytes to files) and store (where layers
// live and how they become a rootfs). pull.go reads top to bottom as the
// pipeline.
//
// Trust: registry, mirrors, proxies and network are hostile. Every byte hangs
// on a digest: manifest on the reference or index, config on the manifest,
// layers on the manifest, diffIDs on the config. The policy decides before a
// byte of a layer is applied, on every pull, cached layers or not. Nothing is
// mounted, cached or returned before every check has passed, and a pull that
// fails leaves nothing behind.
//
// It does not run containers, resolve users, extend measurements (cdh/server
// does) or keep policies and credentials beyond one pull.
package imagepull
