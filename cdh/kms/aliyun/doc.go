// Package aliyun talks to the Key Management Service of Alibaba Cloud, in the
// three ways upstream's data hub knows.
//
// Data path: package kms opens it for documents whose provider is "aliyun".
// With client_type "client_key" it decrypts keys and reads secrets at a KMS
// instance of the owner: protobuf over HTTPS, signed with an RSA key whose
// PKCS#12 file, password and the CA of the instance are credential files.
// "sts_token" (a file AK:SK:STS) and "ecs_ram_role" (credentials from the
// machine's metadata service) read secrets at the endpoint of a region, which
// the RPC-style API with its HMAC-SHA1 signatures serves; these cannot decrypt.
//
// Trust: settings, annotations and answers are hostile. Host names are made of an
// instance or a region, in their own forms, and a suffix of Alibaba Cloud; files
// are read below the directories of credentials only. The metadata service
// belongs to the host, whose credentials open no more than the host gave them.
//
// The protobuf messages are written and read field by field: four requests and
// answers of which twelve fields matter need fewer lines than a generated file
// has, register nothing at start, and leave no copy of a plaintext behind but
// the one that is wiped.
//
// Source: guest-components confidential-data-hub/kms/src/plugins/aliyun at
// 8246e5e.
package aliyun
