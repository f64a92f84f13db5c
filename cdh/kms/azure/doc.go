// Package azure talks to Azure Key Vault and to Managed HSMs. Upstream's data hub
// has no such provider.
//
// Data path: package kms opens it for documents whose provider is "azure".
// Settings are vault_url and client_type: "managed_identity" (the token comes
// from the machine's metadata service; client_id chooses one of several
// identities) or "client_secret" (the credential file, a JSON object with
// tenant_id, client_id and client_secret, logs in at Microsoft Entra; outside the
// public cloud it names the "authority" of its own). Decrypt unwraps with a key of
// the vault, named NAME/VERSION; the annotation "algorithm" is RSA-OAEP-256, the
// default, or A256KW for symmetric keys of an HSM. Secret reads a secret, named
// NAME or NAME/VERSION.
//
// The operation is unwrapkey and not decrypt: for RSA both do the same, and the
// right to unwrap is the smaller one (role "Key Vault Crypto Service Encryption
// User").
//
// Trust: settings, annotations and answers are hostile. The host of vault_url
// must be one label before a suffix of Key Vault, which also decides what a token
// is good for; the password of an application goes to the cloud its credential
// names only. So no setting sends a credential or a token elsewhere.
//
// It is plain REST, which costs the guest binary 36,864 bytes. Azure's SDK (azkeys
// 1.5.0, azsecrets 1.5.1, azidentity 1.15.0) would cost 1,327,104 and bring nine
// modules, and it looks for credentials in places nobody configured.
//
// Source: Azure Key Vault REST API reference 7.4; Microsoft identity platform,
// "OAuth 2.0 client credentials flow"; "How to use managed identities for Azure
// resources on an Azure VM to acquire an access token".
package azure
