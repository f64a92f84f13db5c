// Package vault uses HashiCorp Vault: its transit engine to decrypt and its KV
// engine, version 2, for secrets. The programs Sealpod replaces do not know it.
//
// Data path: package kms opens it; its requests are carried by package wire.
//
// Trust: settings, annotations, key names and paths are hostile, and a token is
// worth as much as its policies. So the credential file says which server it is
// for, and settings that name another are refused; it alone says where in the
// server an AppRole logs in; and what becomes part of a path is held to forms that
// cannot leave their place in it.
//
// Logins of an AppRole are kept in memory until their lease ends. It revokes
// none, renews none and unwraps no wrapped responses.
package vault
