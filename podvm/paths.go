package podvm

// Agreed places in a pod VM. They are part of the contract with kata-agent,
// cloud-api-adaptor and systemd units; none may change without them.
// Source: guest-components ttrpc-aa and ttrpc-cdh defaults at 8246e5e,
// cloud-api-adaptor podvm/files at fbdde75.
const (
	// AASocket is where the attestation agent listens.
	AASocket = "/run/confidential-containers/attestation-agent/attestation-agent.sock"
	// CDHSocket is where the confidential data hub listens.
	CDHSocket = "/run/confidential-containers/cdh.sock"
	// RESTAddr is where api-server-rest listens; containers rely on it.
	RESTAddr = "127.0.0.1:8006"
	// CDHRunDir holds what the data hub writes for other programs.
	CDHRunDir = "/run/confidential-containers/cdh"
	// CDHResourceDir is the only directory config credentials may be written to.
	CDHResourceDir = "/run/confidential-containers/cdh/kbs"
	// ImageWorkDir is the default root of the image store.
	ImageWorkDir = "/run/kata-containers/image/"
	// OfflineKeysFile and OfflineResourcesFile feed the offline_fs_kbc.
	OfflineKeysFile      = "/etc/aa-offline_fs_kbc-keys.json"
	OfflineResourcesFile = "/etc/aa-offline_fs_kbc-resources.json"
)
