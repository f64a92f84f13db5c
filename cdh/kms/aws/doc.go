// Package aws uses AWS Key Management Service to decrypt and AWS Secrets Manager
// to read secrets, with one set of IAM credentials the owner placed in the guest.
//
// Data path: package kms opens it; its requests are carried by package wire.
//
// Trust: settings, annotations, key ids and names are hostile. Of them only the
// region takes part in a host name, and only in AWS's own form; credentials are
// never sent, they sign. Answers are parsed strictly; TLS says who gave them.
//
// It signs and parses itself (Signature Version 4, JSON over POST) and does
// without AWS's SDK: with service/kms 1.62.6 and service/secretsmanager 1.50.12
// the guest binary would be 1,843,200 bytes and seven modules larger, with the
// SDK's signer alone 98,304 bytes and two modules; all of this package costs
// 57,344. It looks for no credentials
// in environment, profiles or instance metadata.
package aws
