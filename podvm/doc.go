// Package podvm is the leaf every other package may lean on: where things are
// in a pod VM (paths, sockets, kernel command line), how a daemon reads its
// configuration, logs, and listens, and how secrets are kept out of both.
//
// Data path: boot writes the files named here, systemd starts an applet,
// the applet calls this package before anything else.
//
// Trust: configuration files and the kernel command line come from the host or
// its operator. They are size-capped and parsed strictly as far as upstream
// compatibility allows; what they ask for is checked by the package they
// configure.
package podvm
