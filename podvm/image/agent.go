package image

import (
	"strings"

	"github.com/sealpod/sealpod/podvm/debian"
)

// agentPolicy is where the policy of kata-agent is that init data can replace.
const agentPolicy = "etc/kata-opa/allow-all.rego"

// agentFiles are what kata-agent and the libraries it uses read.
// Source: cloud-api-adaptor src/cloud-api-adaptor/podvm/files/etc at fbdde756.
func agentFiles() debian.Tree {
	var policy strings.Builder
	policy.WriteString("# Allows every request. Init data brings the policy that a pod has.\npackage agent_policy\n\n")
	for _, name := range strings.Fields(agentRequests) {
		policy.WriteString("default " + name + "Request := true\n")
	}
	policy.WriteString("default ReadContainerTerminationMessage := true\n")
	return debian.Tree{
		"etc/agent-config.toml": debian.File(0o644, []byte(`server_addr = "unix:///run/kata-containers/agent.sock"
guest_components_procs = "none"
`)),
		"etc/ocicrypt_config.json": debian.File(0o644, []byte(`{"key-providers": {"attestation-agent": {"ttrpc": "unix:///run/confidential-containers/cdh.sock"}}}
`)),
		agentPolicy:                        debian.File(0o644, []byte(policy.String())),
		"etc/kata-opa/default-policy.rego": debian.Link("/run/peerpod/policy.rego"),
	}
}

// agentRequests are the requests that a policy decides on.
// Source: kata-containers src/kata-opa/allow-all.rego at 7c6ba40c.
const agentRequests = `
AddARPNeighbors AddSwap CloseStdin CopyFile CreateContainer CreateSandbox DestroySandbox ExecProcess
GetMetrics GetOOMEvent GuestDetails ListInterfaces ListRoutes MemHotplugByProbe OnlineCPUMem
PauseContainer PullImage ReadStream RemoveContainer RemoveStaleVirtiofsShareMounts ReseedRandomDev
ResumeContainer SetGuestDateTime SetPolicy SignalProcess StartContainer StartTracing StatsContainer
StopTracing TtyWinResize UpdateContainer UpdateEphemeralMounts UpdateInterface UpdateRoutes
WaitProcess WriteStream
`
