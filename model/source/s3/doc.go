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
// It signs (package sigv4) and parses itself, which costs the guest binary 147,456
// bytes and no module. Measured in its place in the same binary: minio-go v7 +0.86
// MB, the AWS SDK for Go v2 (service/s3 with config) +8.6 MB. Initialization, which
// every start of any applet pays, as programs of their own over one with net/http:
// this package 0.1 ms with all it imports, minio-go 1.1 ms, AWS's SDK 0.9 ms,
// gocloud.dev with its three clouds 5.4 ms and 41 MB. Two operations, ListObjectsV2
// and GetObject, do not need them.
package s3
