// Package secret unseals sealed secrets, the text form in which the owner of a
// pod hands it secrets through a host that may not read them:
//
//	sealed.<header>.<payload>.<signature>
//
// a JWS in compact form (RFC 7515), each part base64url without padding. The
// payload either names a secret that a vault holds, or is an envelope: data
// under a data key that a key management service decrypts.
//
// Data path: kata-agent, or a volume mount, brings a sealed secret to the data
// hub; the key that signed it and the secret itself are fetched here, through
// package resource for a Key Broker Service and package kms for the others.
//
// Trust: the text comes from the host and is hostile. Nothing of its payload is
// read before the signature holds, unless SkipVerification is set: then whoever
// writes the pod's environment chooses what is fetched, and under A256CTR what
// comes out. Sizes are capped, base64 and JSON are read strictly.
//
// A signature says who sealed a secret, but for no pod, no variable and no time:
// the host may bring an old one, or one in the place of another. Which pods get
// what a secret names is for the key broker's policy to say. The text also says
// which key has signed it, so every key a guest may fetch as a P-256 JWK must be
// one whose owner may seal secrets for it.
//
// It seals nothing (package seal does, on the owner's side) and keeps neither
// keys nor secrets.
//
// Source: guest-components confidential-data-hub/hub/src/secret and
// confidential-data-hub/docs/SEALED_SECRET.md at 8246e5e.
package secret
