package rpc

// RefusedToken is the request metadata key under which a GetToken call names a
// token that the KBS no longer takes: the hex SHA-256 of the JWT. An
// attestation agent that keeps tokens must not answer with that one. Upstream's
// agent keeps none and takes no notice of metadata.
const RefusedToken = "sealpod-refused-token"
