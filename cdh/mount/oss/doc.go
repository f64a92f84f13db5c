// Package oss mounts buckets of Alibaba Cloud's object storage with the program
// ossfs, and encrypted ones on top of it with gocryptfs.
//
// Data path: cdh/mount hands the options of a request over, this package checks
// them, unseals the credentials and runs the programs.
//
// Trust: the bucket belongs to the cloud; without gocryptfs what is in it is
// neither confidential nor authentic. Options of ossfs can load code and read
// files, so those that could are refused.
package oss
