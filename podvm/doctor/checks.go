package doctor

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"time"

	aaserver "github.com/sealpod/sealpod/attester/server"
	"github.com/sealpod/sealpod/forwarder"
	"github.com/sealpod/sealpod/podvm"
)

// Config says what to look at. See Default.
type Config struct {
	// Host is the machine below the daemons. As with them, the paths that follow
	// are not below its root.
	Host podvm.Host
	// Configuration files; "" is none, and where there is no such file the daemon
	// runs without.
	AgentConfig, HubConfig, ForwarderConfig string
	// Sockets of the daemons and of kata-agent.
	AgentSocket, HubSocket, KataSocket string
	REST                               string // HOST:PORT of api-server-rest, in Namespace
	ForwarderMetrics                   string // socket
	Namespace                          string // file of the pod's network namespace
	Images                             string // directory of the image store
}

// Default is a pod VM as the units start it.
func Default(host podvm.Host) Config {
	return Config{
		Host:        host,
		AgentConfig: "/run/peerpod/aa.toml", HubConfig: "/run/peerpod/cdh.toml", ForwarderConfig: forwarder.DefaultFile,
		AgentSocket: podvm.AASocket, HubSocket: podvm.CDHSocket, KataSocket: "/run/kata-containers/agent.sock",
		REST: podvm.RESTAddr, ForwarderMetrics: forwarderMetrics,
		Namespace: "/run/netns/podns", Images: podvm.ImageWorkDir,
	}
}

// Checks returns all checks, in the order in which one thing rests on another.
func Checks(c Config) []Check {
	d := &doctor{c, slog.New(slog.DiscardHandler)}
	return []Check{
		{"tee", 10 * time.Second, d.tee},
		{"clock", 10 * time.Second, d.clock},
		{"space", 5 * time.Second, d.space},
		{"config", 5 * time.Second, d.config},
		{"dns", 10 * time.Second, d.dns},
		{"ca", 5 * time.Second, d.ca},
		{"sockets", 10 * time.Second, d.sockets},
		{"netns", 5 * time.Second, d.netns},
		{"kbs", 75 * time.Second, d.kbs},
		{"initdata", 10 * time.Second, d.initdata},
	}
}

// doctor holds what checks share. They run at once, so it does not change.
type doctor struct {
	Config
	log *slog.Logger // of what is called, and says by itself what is found
}

// peerPod reports whether this is a pod VM of cloud-api-adaptor, and not only some
// of its daemons.
func (d *doctor) peerPod() bool { return d.file(d.ForwarderConfig) != "" }

// file is where a configuration is, "" if there is none: the daemon takes the KBS
// from its environment or the kernel command line then.
func (d *doctor) file(path string) string {
	if path == "" {
		return ""
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	return path
}

// agentConfig is the attestation agent's.
func (d *doctor) agentConfig() (aaserver.Config, []podvm.UnknownKey, error) {
	return aaserver.LoadConfig(d.file(d.AgentConfig), d.settings())
}

// settings is the host that the daemons read their configuration with: its files
// and kernel command line are the real ones even when they serve a simulation.
func (d *doctor) settings() podvm.Host { return podvm.Host{LookupEnv: d.Host.LookupEnv} }
