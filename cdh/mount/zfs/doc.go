// Package zfs makes and opens encrypted ZFS datasets with the programs zpool and
// zfs.
//
// Data path: cdh/mount parses requests and finds device and key, this package
// does the rest.
//
// Trust: the device belongs to the host, and a pool can say of itself where its
// datasets are to be mounted. So a pool is imported without mounting anything,
// the one dataset asked for must be encrypted under its own key, and is mounted
// where the request says. ZFS authenticates what is encrypted; names and
// properties are not.
package zfs
