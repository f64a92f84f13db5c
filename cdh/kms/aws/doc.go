// Package aws uses AWS Key Management Service to decrypt and AWS Secrets Manager
// to read secrets, with one set of IAM credentials the owner placed in the guest.
//
// Data path: package kms opens it; its requests are carried by package wire.
//
// Trust: settings, annotations, key ids and names are hostile. Of them only the
// region takes part in a host name, and only in AWS's own form; the secret key
// signs and is never sent. Answers are parsed strictly; TLS says who gave them.
//
// It signs (package sigv4) and parses itself (JSON over POST), which costs
// the guest binary 57,344 bytes. AWS's SDK, service/kms 1.62.6 with
// service/secretsmanager 1.50.12, would cost 1,843,200 and bring seven modules;
// its signer alone 98,304 and two. It looks for no credentials in environment,
// profiles or instance metadata.
package aws
