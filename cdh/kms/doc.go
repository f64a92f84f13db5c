// Package kms decrypts with, and reads secrets of, key management services
// other than a Key Broker Service: aliyun and aws, which the programs Sealpod
// replaces know, and azure and vault.
//
// Data path: the unsealing of secrets and the unwrapping of layer keys open a
// provider by name with settings from the document at hand, and have it decrypt
// a key or return a secret.
//
// Trust: documents and answers are hostile; see package wire. The plaintext is
// as trustworthy as the service and the channel to it.
//
// It knows no "kbs": callers ask package resource for that.
package kms
