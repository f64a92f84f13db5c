// Package s3 reads models from Amazon S3 and from what speaks its protocol:
// MinIO, Ceph, OpenShift Data Foundation, versitygw and many more.
//
// Data path: the storage initializer lists a bucket with it and hands it to
// package fetch, whose workers read ranges of objects, each held to the entity
// tag that was listed. Requests go through package httpsrc.
//
// Trust: the store and the network are hostile: listings are capped and their
// keys must be clean paths; XML knows no entities, and every page is bounded.
// The secret key signs and is never sent.
//
// It signs (package sigv4) and parses itself, which costs the guest binary 143,360
// bytes and no module, since net/http is there anyway. Measured in place of it, as
// programs of their own over one with net/http: minio-go +1.6 MB and 2.7 ms of
// initialization, which every start of any applet pays, AWS's SDK for Go v2 +4.3
// MB and 2.0 ms, gocloud.dev with its three clouds +41 MB and 8.4 ms; in the guest
// binary minio-go was +0.9 MB. Two operations, ListObjectsV2 and GetObject, do not
// need them.
package s3
