// Package rest is api-server-rest: the HTTP port on which containers get
// secrets, tokens and evidence without speaking ttrpc.
//
// Data path: a container in the pod's network namespace sends plain HTTP to
// 127.0.0.1:8006; the request becomes one call to the data hub or to the
// attestation agent, the answer's bytes are the body.
//
// Trust: requests come from containers and are hostile. Only loopback peers are
// served, or, on a unix socket, whom its permissions let in. Headers, bodies,
// time and the number of requests at once are bounded. Paths reach the data hub
// as they were sent: nothing is decoded or cleaned on the way, so that there is
// one reading of a path only, the data hub's.
//
// openapi.json describes the interface; a test holds the two together.
//
// It decides nothing about access: whoever runs in the pod may ask, the KBS's
// policy answers.
package rest
