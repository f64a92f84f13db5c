// Package kms decrypts with, and reads secrets of, key management services
// other than a Key Broker Service: aliyun and aws, which the programs Sealpod
// replaces know, and azure and vault, which they do not.
//
// Data path: the unsealing of secrets and the unwrapping of layer keys open a
// provider by name with settings from the document at hand, and have it decrypt
// a key or return a secret.
//
// Trust: documents and answers are hostile; see package wire. No setting leads a
// credential to another place than the credential is for. The plaintext is as
// trustworthy as the service and the channel to it.
//
// It knows no "kbs": callers ask package resource for that. There is no "ehsm",
// whose server nobody maintains.
//
// # What a document says
//
// A sealed secret of type "vault" names a secret, one of type "envelope" (and an
// annotation packet of an image) a key and what it encrypted. Beside those come
// the provider's name, in any case, provider_settings and annotations. Members a
// provider does not know are ignored.
//
//	aws      settings     {"region": "eu-west-1"}
//	         a key        key_id: id, ARN or alias of a KMS key
//	                      annotations {"encryption_context": {"purpose": "db"}}, which may be absent
//	         a secret     name: name or ARN in Secrets Manager; its text, or else its bytes
//	                      annotations {"version_id": "…", "version_stage": "AWSPREVIOUS"}, each may be absent
//
//	vault    settings     {"address": "https://vault.example:8200", "mount": "transit", "namespace": "team"}
//	                      each may be absent; the address must be the credential's
//	         a key        key_id: name of a transit key; the wrapped key is Vault's text vault:v1:…
//	                      annotations {"context": "base64"} for a derived key
//	         a secret     name: path in a KV engine, version 2, at mount ("secret")
//	                      annotations {"field": "password", "version": 3}; by default the field
//	                      "value" or the only one, of the last version
//
//	aliyun   settings     {"client_type": "client_key", "client_key_id": "KAAP.…", "kms_instance_id": "kst-…"}
//	                      {"client_type": "sts_token", "token_path": "…", "region_id": "cn-beijing"}
//	                      {"client_type": "ecs_ram_role"}
//	         a key        with client_key only; annotations {"iv": "base64"}
//	         a secret     name: name in KMS
//	                      annotations {"version_id": "…", "version_stage": "…"}, each may be absent
//
//	azure    settings     {"vault_url": "https://NAME.vault.azure.net", "client_type": "managed_identity"}
//	                      or "client_secret"; "client_id" chooses one of several identities
//	         a key        key_id: NAME/VERSION; annotations {"algorithm": "A256KW"}, by default RSA-OAEP-256
//	         a secret     name: NAME or NAME/VERSION
//
// # Credential files
//
// They are in /run/confidential-containers/cdh/kbs/kms-credential/PROVIDER, where
// the data hub's configuration ([[credentials]]) places resources of the KBS, or
// where the environment variable PROVIDER_IN_GUEST_KEY_PATH says, as in
// AWS_IN_GUEST_KEY_PATH. They are read for each call, so new ones take effect at
// once; a file has 64 KiB at most, and links that lead out of the directory are
// not followed.
//
//	aws      credential.json            {"access_key_id": "AKIA…", "secret_access_key": "…", "session_token": null}
//	vault    credential.json            {"address": "https://vault.example:8200", "token": "hvs.…"}, or in place of
//	                                    the token "role_id" and "secret_id" of an AppRole, with its "approle_mount"
//	                                    if not "approle" and its "namespace" if it has one, which that of the
//	                                    settings does not replace; "ca": PEM certificates to trust beside the
//	                                    system's
//	aliyun   clientKey_ID.json, password_ID.json, PrivateKmsCA_INSTANCE.pem; ecsRamRole.json; the file of
//	                                    token_path, AK:SK:STS, which may be anywhere below .../cdh/kbs
//	azure    credential.json            {"tenant_id": "…", "client_id": "…", "client_secret": "…"} with client_secret;
//	                                    outside the public cloud "authority", as in "login.chinacloudapi.cn"
//
// # The way to the services
//
// HTTPS_PROXY, HTTP_PROXY and NO_PROXY are honoured, but for metadata services.
// AWS_ENDPOINT_URL_KMS and AWS_ENDPOINT_URL_SECRETS_MANAGER replace the addresses
// made of a region, as with AWS's own programs; they must be https, or lead to this
// machine. A call takes 45 s at most, one try 15 s; broken connections, 429, 5xx
// and a service's own words for throttling are tried three times in all. Answers
// have 1 MiB at most. Redirects are not followed.
package kms
