// Package forwarder is the agent-protocol-forwarder: the one way from the worker
// node into a pod VM. It sets up the pod's network, listens on TCP with TLS, and
// lets the relay splice each connection with one of kata-agent.
//
// Data path: cloud-api-adaptor -> TLS -> listener here -> forwarder/relay (with
// the changes of forwarder/intercept) -> kata-agent; forwarder/podnet carries
// the pod's packets to the same worker node.
//
// Trust: the worker node, its network and apf.json are hostile. Who cannot show
// the client key gets a few seconds and one of few places; who can is limited
// to places, and to what the agent's policy allows. Nothing here reads what
// passes.
package forwarder
