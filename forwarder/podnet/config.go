package podnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/sealpod/sealpod/podvm"
)

// ErrConfig says that the pod network's configuration is not usable.
var ErrConfig = errors.New("invalid pod network configuration")

// Bounds of a configuration: far above what container network plugins make,
// low enough for a table in the kernel.
const (
	maxConfigBytes = 1 << 20
	maxPodIPs      = 16
	maxRoutes      = 1024
	maxNeighbors   = 1024
)

// Defaults of cloud-api-adaptor for numbers that are 0 or missing. Source:
// src/cloud-api-adaptor/pkg/podnetwork/tunneler/vxlan at fbdde756.
const (
	defaultPort   = 4789
	defaultIDBase = 555000
	maxID         = 1<<24 - 1 // of a VXLAN network identifier, RFC 7348 section 5
)

// Config is the object "pod-network" of apf.json. Keys match in any case,
// unknown ones are ignored. Decoding checks each value for itself,
// [Config.Validate] what they mean together.
// Source: cloud-api-adaptor src/cloud-api-adaptor/pkg/podnetwork/tunneler at
// fbdde756, which is IPv4 only.
type Config struct {
	// PodIPs are the pod's addresses with the length of their subnet: podip,
	// then those of pod-ips, a list upstream does not have, for dual stack.
	PodIPs []netip.Prefix
	// PodHWAddr is the tunnel device's MAC address; nil lets the kernel choose.
	PodHWAddr net.HardwareAddr
	// Interface is the tunnel device's name in the pod's namespace.
	Interface string
	// WorkerIP is the far end of the tunnel.
	WorkerIP netip.Addr
	// TunnelType is "vxlan".
	TunnelType string
	// Routes and Neighbors are those of the pod's interface on the worker.
	Routes    []Route
	Neighbors []Neighbor
	// MTU is that of the pod's interface on the worker; 0 is no bound.
	MTU int
	// VXLANPort is the tunnel's UDP port and VXLANID its network identifier
	// of 24 bits, defaults applied.
	VXLANPort, VXLANID int
	// Dedicated puts the tunnel on a network interface of its own.
	Dedicated bool
	// ExternalNetViaPodVM lends the pod a second network interface of the VM,
	// by which everything leaves that has no other route.
	ExternalNetViaPodVM bool
}

// Route is one route of the pod.
type Route struct {
	// Dst is the destination; a default route has length 0.
	Dst netip.Prefix
	// Gateway is not valid for a route without one.
	Gateway netip.Addr
	// Dev is "" or the name of the tunnel device.
	Dev      string
	Protocol Protocol
	Scope    Scope
}

// Neighbor is one entry of the pod's neighbour table.
type Neighbor struct {
	IP     netip.Addr
	HWAddr net.HardwareAddr
	// Dev is "" or the name of the tunnel device.
	Dev   string
	State State
}

// wireConfig is Config as it is written.
type wireConfig struct {
	PodIP               string         `json:"podip"`
	PodIPs              []string       `json:"pod-ips"`
	PodHWAddr           string         `json:"pod-hw-addr"`
	Interface           string         `json:"interface"`
	WorkerIP            string         `json:"worker-node-ip"`
	TunnelType          string         `json:"tunnel-type"`
	Routes              []wireRoute    `json:"routes"`
	Neighbors           []wireNeighbor `json:"neighbors"`
	MTU                 int            `json:"mtu"`
	Index               int            `json:"index"`
	VXLANPort           int            `json:"vxlan-port"`
	VXLANID             int            `json:"vxlan-id"`
	Dedicated           bool           `json:"dedicated"`
	ExternalNetViaPodVM bool           `json:"external-net-via-pod-vm"`
}

type wireRoute struct {
	Dst      string `json:"dst"`
	GW       string `json:"gw"`
	Dev      string `json:"dev"`
	Protocol string `json:"protocol"`
	Scope    string `json:"scope"`
}

type wireNeighbor struct {
	IP     string `json:"ip"`
	HWAddr string `json:"hw-addr"`
	Dev    string `json:"dev"`
	State  string `json:"state"`
}

// UnmarshalJSON implements json.Unmarshaler. Errors name the field and wrap
// ErrConfig.
func (c *Config) UnmarshalJSON(b []byte) error {
	if len(b) > maxConfigBytes {
		return fmt.Errorf("%w: %w: more than %d bytes", ErrConfig, podvm.ErrTooLarge, maxConfigBytes)
	}
	var w wireConfig
	if err := json.Unmarshal(b, &w); err != nil {
		return fmt.Errorf("%w: %s", ErrConfig, podvm.Printable(err.Error(), 512))
	}
	if len(w.PodIPs) > maxPodIPs || len(w.Routes) > maxRoutes || len(w.Neighbors) > maxNeighbors {
		return fmt.Errorf("%w: more than %d pod-ips, %d routes or %d neighbors", ErrConfig, maxPodIPs, maxRoutes, maxNeighbors)
	}
	decoded, err := w.config()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	*c = decoded
	return nil
}

func (w wireConfig) config() (Config, error) {
	c := Config{
		Interface: w.Interface, TunnelType: w.TunnelType, MTU: w.MTU, VXLANPort: w.VXLANPort, VXLANID: w.VXLANID,
		Dedicated: w.Dedicated, ExternalNetViaPodVM: w.ExternalNetViaPodVM,
	}
	if c.VXLANPort == 0 {
		c.VXLANPort = defaultPort
	}
	if c.VXLANID == 0 && w.Index >= 0 && w.Index < maxID {
		c.VXLANID = defaultIDBase + w.Index
	}
	var f fields
	worker := f.prefix("worker-node-ip", w.WorkerIP)
	c.WorkerIP = worker.Addr()
	c.PodHWAddr = f.mac("pod-hw-addr", w.PodHWAddr)
	for _, s := range append([]string{w.PodIP}, w.PodIPs...) {
		if p := f.prefix("podip", s); p.IsValid() {
			c.PodIPs = append(c.PodIPs, p)
		}
	}
	for i, r := range w.Routes {
		at := fmt.Sprintf("routes[%d].", i)
		out := Route{
			Dst: f.prefix(at+"dst", r.Dst).Masked(), Gateway: f.addr(at+"gw", r.GW), Dev: r.Dev,
			Protocol: oneOf(&f, at+"protocol", r.Protocol, protocols), Scope: oneOf(&f, at+"scope", r.Scope, scopes),
		}
		if !out.Dst.IsValid() { // everything, of the gateway's family
			out.Dst = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
			if out.Gateway.Is6() {
				out.Dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			}
		}
		c.Routes = append(c.Routes, out)
	}
	for i, n := range w.Neighbors {
		at := fmt.Sprintf("neighbors[%d].", i)
		c.Neighbors = append(c.Neighbors, Neighbor{
			IP: f.addr(at+"ip", n.IP), HWAddr: f.mac(at+"hw-addr", n.HWAddr), Dev: n.Dev, State: oneOf(&f, at+"state", n.State, states),
		})
	}
	return c, f.err
}
