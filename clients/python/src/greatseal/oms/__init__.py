"""OpenSSF Model Signing (OMS): models listed, hashed, signed through the daemon, and verified offline.

- listing: which files make up a model
- hashing: their SHA-256, on all cores, of one moment
- chunks: a large file, read ahead where that helps
- digest_cache: digests of files that have not changed, where a user asks for it
- manifest: the statement that is signed, byte for byte
- bundle: the signature file
- certificates: which certificates may sign
- verify: a model against its signature file
- sign: a model through a client
"""
