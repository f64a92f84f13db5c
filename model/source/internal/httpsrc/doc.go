// Package httpsrc carries the requests of sources that speak HTTP: documents,
// such as listings, and ranges of objects, several at once.
//
// Data path: the packages beside it, one for each kind of store, make requests
// of it; what comes back goes to package fetch as it arrives. A body is read
// into the buffer of its reader, without a copy between where it is large.
//
// Each connection carries one request at a time (HTTP/1.1) and is used again:
// workers that share one HTTP/2 connection would share its flow control.
//
// Trust: servers, and whoever is between, answer anything. Documents, headers,
// redirects, waits and the rate of a body are bounded; a range must be the one
// that was asked for, of an object that did not change; credentials go to the
// host they are for. Who the server is, TLS alone says.
package httpsrc
