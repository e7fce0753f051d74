"""Signing a model through a client: what is asked, what is written, and what is refused before either.

The client here signs with a local key instead of a token behind a daemon, and counts how often.
The whole way, through a real daemon, is in tests/e2e.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

import model_site as site
from greatseal.algorithms import Algorithm
from greatseal.messages import PublicKey, Signature
from greatseal.oms.errors import CertificateUnusable, KeyUnusable, ModelDiffers, ModelRefused, SignatureMismatch
from greatseal.oms.method import Method
from greatseal.oms.sign import RECEIPT_MEDIA_TYPE, SignedModelFile, sign_model
from greatseal.oms.verify import Trust, verify_model

ROOT = site.Authority.root()
MIDDLE = ROOT.intermediate()
KEY = site.new_key()
TRUST = Trust.in_key(site.public_pem(KEY))


@dataclass(frozen=True)
class Receipt:
    """As much of a receipt as is written to a file."""

    request_id: str

    def to_json(self) -> bytes:
        return json.dumps({"mediaType": RECEIPT_MEDIA_TYPE, "for": self.request_id}).encode()


class LocalClient:
    """A client whose token is a local key."""

    def __init__(
        self,
        key: Any = KEY,
        chain: Sequence[x509.Certificate] = (),
        algorithms: Sequence[Algorithm] = tuple(Algorithm),
        signing_key: ec.EllipticCurvePrivateKey | None = None,
    ) -> None:
        self.signed: list[bytes] = []
        self._key = signing_key or key
        pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        der = tuple(each.public_bytes(serialization.Encoding.DER) for each in chain)
        public = PublicKey("keys/release/versions/1", pem.decode(), tuple(algorithms), der)
        self.keys = SimpleNamespace(public_key=lambda _name: public)

    def sign_statement(
        self, key: str, payload: bytes, *, payload_type: str, algorithm: Algorithm, request_id: str = ""
    ) -> Signature:
        self.signed.append(payload)
        signature = site.sign_payload(payload, self._key, payload_type)
        return Signature(key + "/versions/1", algorithm, signature, b"", Receipt(request_id), False, request_id)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return site.make_model(tmp_path / "llama")


def everything(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def refused(model: Path, client: LocalClient, why: str, error: type[Exception] = ModelRefused, **options: Any) -> None:
    """Nothing was signed and nothing was written, and the error says why."""
    before = everything(model.parent)
    with pytest.raises(error, match=why):
        sign_model(client, model, **options)
    assert client.signed == []
    assert everything(model.parent) == before


class TestSigned:
    @pytest.mark.parametrize("curve", ["P-256", "P-384", "P-521"])
    def test_a_model_verifies_by_the_key_that_signed_it(self, model: Path, curve: str):
        key = site.new_key(curve)
        signed = sign_model(LocalClient(key), model)
        assert (signed.signature_path, signed.method, signed.files) == (
            model / "model.sig",
            Method.KEY,
            len(site.FILES),
        )
        assert signed.released.algorithm.value.startswith(f"ecdsa-{curve.lower().replace('-', '')}")
        assert verify_model(model, signed.signature_path, Trust.in_key(site.public_pem(key))).root == signed.root

    def test_certificates_go_into_the_file_where_the_key_has_some_and_the_root_stays_out(self, model: Path):
        chain = (MIDDLE.leaf(KEY), MIDDLE.certificate, ROOT.certificate)
        signed = sign_model(LocalClient(chain=chain), model)
        assert signed.method is Method.CERTIFICATE
        material = json.loads(signed.signature_path.read_bytes())["verificationMaterial"]
        assert len(material["x509CertificateChain"]["certificates"]) == 2
        assert (
            verify_model(model, signed.signature_path, Trust.in_roots([ROOT.certificate])).signer == "CN=Model Release"
        )

    def test_the_key_method_may_be_chosen_for_a_key_with_certificates(self, model: Path):
        signed = sign_model(LocalClient(chain=(MIDDLE.leaf(KEY),)), model, method=Method.KEY)
        assert "publicKey" in json.loads(signed.signature_path.read_bytes())["verificationMaterial"]

    def test_the_same_model_is_the_same_payload_when_it_is_signed_again(self, model: Path):
        client = LocalClient()
        first = sign_model(client, model, receipt=model / "model.receipt").signature_path.read_bytes()
        second = sign_model(client, model, receipt=model / "model.receipt").signature_path.read_bytes()
        assert client.signed[0] == client.signed[1]
        assert json.loads(first)["dsseEnvelope"]["payload"] == json.loads(second)["dsseEnvelope"]["payload"]

    def test_a_receipt_inside_the_model_does_not_stand_in_its_way(self, model: Path):
        signed = sign_model(LocalClient(), model, receipt=model / "model.receipt", signature=model / "release.sig")
        assert signed.receipt_path == model / "model.receipt"
        assert verify_model(model, signed.signature_path, TRUST).files == len(site.FILES)
        assert not list(model.glob(".*.sig*"))

    def test_outputs_beside_the_model_are_not_in_its_statement(self, model: Path, tmp_path: Path):
        client = LocalClient()
        signed = sign_model(client, model, receipt=tmp_path / "r.json", signature=tmp_path / "m.sig")
        ignored = json.loads(client.signed[0])["predicate"]["serialization"]["ignore_paths"]
        assert ignored == [".git", ".gitattributes", ".github", ".gitignore"]
        assert verify_model(model, signed.signature_path, TRUST)

    def test_what_the_user_leaves_out_is_not_signed(self, model: Path):
        signed = sign_model(LocalClient(), model, ignore=["weights"])
        (model / "weights/00001.bin").unlink()
        assert verify_model(model, signed.signature_path, TRUST).files == len(site.FILES) - 2

    def test_the_signature_file_is_readable_as_the_umask_says(self, model: Path):
        signed: SignedModelFile = sign_model(LocalClient(), model)
        (model / "other").write_bytes(b"")
        assert signed.signature_path.stat().st_mode == (model / "other").stat().st_mode


class TestRefused:
    def test_a_signature_by_another_key_than_the_daemon_named_is_not_written(self, model: Path):
        before = everything(model)
        with pytest.raises(SignatureMismatch):
            sign_model(LocalClient(signing_key=site.new_key()), model, receipt=model.parent / "r.json")
        assert everything(model) == before
        assert not (model.parent / "r.json").exists()

    @pytest.mark.parametrize("output", ["signature", "receipt"])
    def test_a_file_of_another_kind_is_not_replaced(self, model: Path, output: str):
        refused(model, LocalClient(), f"that is no {output}", **{output: model / "config.json"})

    def test_signature_and_receipt_are_two_files(self, model: Path):
        refused(model, LocalClient(), "both", signature=model / "x", receipt=model / "weights/../x")

    @pytest.mark.parametrize("output", ["signature", "receipt"])
    def test_a_place_that_cannot_be_written_is_found_before_signing(self, model: Path, output: str):
        refused(model, LocalClient(), "no directory", **{output: model.parent / "nowhere/x.sig"})
        refused(model, LocalClient(), "is a directory", **{output: model / "weights"})

    def test_a_link_in_the_place_of_the_signature_file_is_refused(self, model: Path):
        (model / "model.sig").symlink_to(model.parent / "elsewhere")
        refused(model, LocalClient(), "no symbolic link")

    def test_a_link_in_the_model_is_refused_by_name(self, model: Path):
        (model / "weights/l").symlink_to("00001.bin")
        refused(model, LocalClient(), "'weights/l' is a symbolic link")

    def test_a_pattern_is_not_a_path(self, model: Path):
        refused(model, LocalClient(), "patterns are not expanded", ignore=["*.bin"])
        (model / "[x]").write_bytes(b"")
        assert sign_model(LocalClient(), model, ignore=["[x]"])

    @pytest.mark.parametrize(
        "client,why",
        [
            (lambda: LocalClient(rsa.generate_private_key(public_exponent=65537, key_size=2048)), "no RSA"),
            (lambda: LocalClient(ec.generate_private_key(ec.SECP256K1())), "P-256, P-384 and P-521"),
            (lambda: LocalClient(algorithms=[Algorithm.ECDSA_P384_SHA384]), "does not offer ecdsa-p256-sha256"),
        ],
        ids=["RSA", "secp256k1", "not offered"],
    )
    def test_a_key_that_cannot_sign_models_is_named_before_anything(
        self, model: Path, client: Callable[[], LocalClient], why: str
    ):
        refused(model, client(), why, KeyUnusable)

    @pytest.mark.parametrize(
        "leaf,why",
        [
            (lambda: MIDDLE.leaf(KEY, ends=timedelta(hours=-1)), "expired on"),
            (lambda: MIDDLE.leaf(KEY, begins=timedelta(hours=1)), "not valid before"),
            (lambda: MIDDLE.leaf(KEY, purposes=None), "codeSigning"),
            (lambda: MIDDLE.leaf(site.new_key()), "of another key"),
        ],
        ids=["expired", "not yet valid", "no purpose", "another key's"],
    )
    def test_a_certificate_that_cannot_sign_models_is_named_before_anything(
        self, model: Path, leaf: Callable[[], x509.Certificate], why: str
    ):
        refused(model, LocalClient(chain=[leaf()]), why, CertificateUnusable)

    def test_certificates_that_are_asked_for_and_not_there(self, model: Path):
        refused(model, LocalClient(), "no certificate chain", KeyUnusable, method=Method.CERTIFICATE)

    def test_a_model_that_is_not_there_is_named(self, model: Path):
        refused(model.parent / "nothing", LocalClient(), "no model at")

    def test_a_file_added_after_signing_is_noticed(self, model: Path):
        signed = sign_model(LocalClient(), model)
        (model / "weights/late.bin").write_bytes(b"")
        with pytest.raises(ModelDiffers, match=r"late\.bin"):
            verify_model(model, signed.signature_path, TRUST)
