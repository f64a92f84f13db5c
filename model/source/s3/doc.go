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
// It signs (package sigv4) and parses itself, which costs the guest binary 0.2 MB
// beside net/http, which is there anyway. Measured instead of it, as binaries of
// their own: minio-go +1 MB and 2.7 ms of initialization at every start of any
// applet, AWS's SDK for Go v2 +8 MB and 2.0 ms, gocloud.dev +30 MB and 8.4 ms with
// the other clouds' SDKs. Two operations, ListObjectsV2 and GetObject, do not need
// them.
package s3
