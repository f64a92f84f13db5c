// Package wire is what the clients of key management services share: the
// errors their callers tell apart, credential files confined to their
// directory, and an HTTP client bounded in time and size.
//
// Data path: package kms makes an Env and hands it to each provider package,
// which builds requests, has Client carry them and reads the answers.
//
// Trust: settings and annotations come from sealed secrets and, unsigned, from
// images; answers come from the network. All of it is hostile. Credential files
// were placed by the owner and are trusted, but read with a cap. A provider must
// make sure itself that no setting chooses where a credential is sent.
package wire
