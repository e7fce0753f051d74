"""A signature verifies with its key, its algorithm and its digest, and with nothing else."""

from __future__ import annotations

import hashlib
from itertools import permutations

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from hypothesis import given
from hypothesis import strategies as st

from greatseal.algorithms import Algorithm
from greatseal.signatures import (
    PublicKey,
    algorithms_of,
    check_key_fits,
    load_public_key,
    spki_der,
    spki_sha256,
    verify_digest,
    verify_message,
)
from greatseal.verification import PublicKeyInvalid, SignatureInvalid
from sample_log import new_key, sign_digest

DIGESTED = [algorithm for algorithm in Algorithm if not algorithm.is_pure]
_FAMILIES = {algorithm.family: new_key(algorithm) for algorithm in DIGESTED}
KEYS = {algorithm: _FAMILIES[algorithm.family] for algorithm in DIGESTED}


def digest_for(algorithm: Algorithm, content: bytes = b"content") -> bytes:
    return hashlib.new(algorithm.hash_name, content).digest()


def pem_of(key: object) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize("algorithm", DIGESTED)
class TestEachAlgorithm:
    def test_verifies_what_its_key_signed(self, algorithm: Algorithm):
        key, digest = KEYS[algorithm], digest_for(algorithm)
        verify_digest(key.public_key(), algorithm, digest, sign_digest(key, algorithm, digest))

    def test_refuses_another_digest(self, algorithm: Algorithm):
        key = KEYS[algorithm]
        signature = sign_digest(key, algorithm, digest_for(algorithm))
        with pytest.raises(SignatureInvalid):
            verify_digest(key.public_key(), algorithm, digest_for(algorithm, b"other"), signature)

    def test_refuses_another_key(self, algorithm: Algorithm):
        digest = digest_for(algorithm)
        with pytest.raises(SignatureInvalid):
            verify_digest(
                new_key(algorithm).public_key(), algorithm, digest, sign_digest(KEYS[algorithm], algorithm, digest)
            )

    @pytest.mark.parametrize("size", [0, 10, 20, 31, 33, 63, 65, 128])
    def test_refuses_a_digest_of_another_length(self, algorithm: Algorithm, size: int):
        with pytest.raises(SignatureInvalid, match="signs a digest of"):
            verify_digest(KEYS[algorithm].public_key(), algorithm, b"\0" * size, b"signature")

    def test_refuses_changed_and_cut_signatures(self, algorithm: Algorithm):
        key, digest = KEYS[algorithm], digest_for(algorithm)
        signature = sign_digest(key, algorithm, digest)
        flipped = signature[:-1] + bytes([signature[-1] ^ 1])
        for wrong in (b"", signature[:-1], signature + b"\0", flipped, b"\0" * len(signature)):
            with pytest.raises(SignatureInvalid):
                verify_digest(key.public_key(), algorithm, digest, wrong)

    def test_refuses_keys_of_every_other_kind(self, algorithm: Algorithm):
        digest = digest_for(algorithm)
        signature = sign_digest(KEYS[algorithm], algorithm, digest)
        for other, key in KEYS.items():
            if other.family != algorithm.family:
                with pytest.raises(PublicKeyInvalid, match="does not fit"):
                    verify_digest(key.public_key(), algorithm, digest, signature)


def test_the_schemes_of_one_rsa_key_are_not_each_other():
    rsa_algorithms = [algorithm for algorithm in DIGESTED if algorithm.family == "rsa"]
    for signed, verified in permutations(rsa_algorithms, 2):
        key, digest = KEYS[signed], digest_for(signed)
        with pytest.raises(SignatureInvalid):
            verify_digest(key.public_key(), verified, digest, sign_digest(key, signed, digest))


class TestEd25519:
    """RFC 8032: the message itself is signed."""

    KEY = ed25519.Ed25519PrivateKey.generate()

    def test_verifies_the_whole_message_and_nothing_else(self):
        signature = self.KEY.sign(b"message")
        verify_message(self.KEY.public_key(), Algorithm.ED25519, b"message", signature)
        for message, wrong in (
            (b"messagf", signature),
            (b"", signature),
            (b"message", signature[:-1]),
            (b"message", b""),
        ):
            with pytest.raises(SignatureInvalid):
                verify_message(self.KEY.public_key(), Algorithm.ED25519, message, wrong)

    def test_a_digest_is_not_enough_and_never_passes(self):
        digest = digest_for(Algorithm.ED25519)
        with pytest.raises(SignatureInvalid, match="whole messages"):
            verify_digest(self.KEY.public_key(), Algorithm.ED25519, digest, self.KEY.sign(digest))

    def test_its_key_fits_nothing_else(self):
        assert algorithms_of(self.KEY.public_key()) == (Algorithm.ED25519,)
        for algorithm in DIGESTED:
            with pytest.raises(PublicKeyInvalid, match="does not fit"):
                check_key_fits(self.KEY.public_key(), algorithm)
        with pytest.raises(PublicKeyInvalid, match="does not fit"):
            check_key_fits(KEYS[Algorithm.ECDSA_P256_SHA256].public_key(), Algorithm.ED25519)

    def test_the_vector_of_rfc_8032(self):
        # Section 7.1, test 2.
        public = ed25519.Ed25519PublicKey.from_public_bytes(
            bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
        )
        signature = bytes.fromhex(
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        )
        verify_message(public, Algorithm.ED25519, b"\x72", signature)


@pytest.mark.parametrize("algorithm", DIGESTED)
def test_a_message_is_hashed_as_the_algorithm_wants_it(algorithm: Algorithm):
    key = KEYS[algorithm]
    signature = sign_digest(key, algorithm, digest_for(algorithm))
    verify_message(key.public_key(), algorithm, b"content", signature)
    with pytest.raises(SignatureInvalid):
        verify_message(key.public_key(), algorithm, b"other", signature)


@pytest.mark.parametrize("salt", [0, 20, 48])
def test_pss_takes_a_salt_of_32_bytes_only(salt: int):
    key, digest = KEYS[Algorithm.RSA_PSS_SHA256], digest_for(Algorithm.RSA_PSS_SHA256)
    assert isinstance(key, rsa.RSAPrivateKey)
    signature = key.sign(digest, padding.PSS(padding.MGF1(hashes.SHA256()), salt), Prehashed(hashes.SHA256()))
    with pytest.raises(SignatureInvalid):
        verify_digest(key.public_key(), Algorithm.RSA_PSS_SHA256, digest, signature)


def test_der_is_read_strictly():
    algorithm = Algorithm.ECDSA_P256_SHA256
    key, digest = KEYS[algorithm], digest_for(algorithm)
    signature = sign_digest(key, algorithm, digest)
    # The same numbers with a length in long form (BER, not DER).
    long_form = signature[:1] + b"\x81" + signature[1:]
    with pytest.raises(SignatureInvalid):
        verify_digest(key.public_key(), algorithm, digest, long_form)


class TestReadingKeys:
    def test_pem_and_der_give_the_same_key(self):
        for key in KEYS.values():
            public = key.public_key()
            assert spki_sha256(load_public_key(pem_of(public))) == spki_sha256(load_public_key(spki_der(public)))
            assert spki_sha256(public) == hashlib.sha256(spki_der(public)).hexdigest() == spki_sha256(spki_der(public))

    def test_a_key_says_what_it_fits(self):
        assert algorithms_of(KEYS[Algorithm.ECDSA_P384_SHA384].public_key()) == (Algorithm.ECDSA_P384_SHA384,)
        fitting = algorithms_of(KEYS[Algorithm.RSA_PSS_SHA256].public_key())
        assert len(fitting) == 6
        assert fitting[0] is Algorithm.RSA_PKCS1_SHA256
        check_key_fits(KEYS[Algorithm.ECDSA_P256_SHA256].public_key(), Algorithm.ECDSA_P256_SHA256)

    @pytest.mark.parametrize(
        "public",
        [
            ec.generate_private_key(ec.SECP256K1()).public_key(),
            ed448.Ed448PrivateKey.generate().public_key(),
            rsa.RSAPublicNumbers(65537, (1 << 1023) + 1).public_key(),
            rsa.RSAPublicNumbers(65537, (1 << 2046) + 1).public_key(),
            rsa.RSAPublicNumbers(65537, (1 << 4096) + 1).public_key(),
        ],
        ids=["secp256k1", "Ed448", "RSA-1024", "RSA-2047", "RSA-4097"],
    )
    def test_keys_of_other_kinds_and_sizes_are_refused(self, public: PublicKey):
        with pytest.raises(PublicKeyInvalid, match="not supported"):
            load_public_key(pem_of(public))

    @pytest.mark.parametrize("bits", [2048, 3072, 4096])
    def test_moduli_within_the_bounds_are_read(self, bits: int):
        public = rsa.RSAPublicNumbers(65537, (1 << (bits - 1)) + 1).public_key()
        assert load_public_key(pem_of(public)).key_size == bits

    @pytest.mark.parametrize(
        "data",
        [b"", b"key", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", b"\x30" * 20_000],
    )
    def test_what_is_no_key_is_refused(self, data: bytes):
        with pytest.raises(PublicKeyInvalid):
            load_public_key(data)

    def test_an_oversized_text_is_refused(self):
        pem = pem_of(KEYS[Algorithm.ECDSA_P256_SHA256].public_key())
        with pytest.raises(PublicKeyInvalid, match="over the limit"):
            load_public_key(b"comment\n" * 2100 + pem)

    @given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda tail: b"-----BEGIN " + tail))
    def test_no_bytes_raise_anything_else(self, data: bytes):
        with pytest.raises(PublicKeyInvalid):
            load_public_key(data)
