"""Our bundles and the OpenSSF tool's, each verified by the other; the tool is really run.

A local key stands in for the token: what is tested is what is signed and how it is written down.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

import model_site as site
from greatseal.oms.bundle import MEDIA_TYPE
from greatseal.oms.errors import ModelDiffers, SignerUntrusted
from greatseal.oms.listing import IgnoredPaths
from greatseal.oms.manifest import build_manifest
from greatseal.oms.verify import Trust, verify_model

ROOT = site.Authority.root()
MIDDLE = ROOT.intermediate()


def upstream(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def upstream_accepts(*arguments: str | Path) -> None:
    ran = upstream("verify", *arguments)
    assert ran.returncode == 0, ran.stderr
    assert "Verification succeeded" in ran.stdout


def upstream_refuses(*arguments: str | Path) -> str:
    ran = upstream("verify", *arguments)
    assert ran.returncode != 0, ran.stdout
    return ran.stderr


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return site.make_model(tmp_path / "llama")


@pytest.fixture
def pem(tmp_path: Path):
    """Writes bytes to a file of its own."""

    def write(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


def chain_of(key: ec.EllipticCurvePrivateKey) -> tuple[x509.Certificate, ...]:
    assert MIDDLE.certificate is not None
    return (MIDDLE.leaf(key), MIDDLE.certificate)


class TestOursByUpstream:
    @pytest.mark.parametrize("curve", ["P-256", "P-384", "P-521"])
    def test_key(self, model: Path, pem, curve: str):
        key = site.new_key(curve)
        signature = site.sign_locally(model, key)
        upstream_accepts("key", model, "--signature", signature, "--public_key", pem("k.pem", site.public_pem(key)))

    @pytest.mark.parametrize("curve", ["P-256", "P-384", "P-521"])
    def test_certificate(self, model: Path, pem, curve: str):
        key = site.new_key(curve)
        signature = site.sign_locally(model, key, chain_of(key))
        root = pem("root.pem", site.certificate_pem(ROOT.certificate))
        upstream_accepts("certificate", model, "--signature", signature, "--certificate_chain", root)

    def test_signature_beside_the_model_and_paths_left_out(self, model: Path, pem, tmp_path: Path):
        key = site.new_key()
        (model / "cache/deep").mkdir(parents=True)
        (model / "cache/deep/x").write_bytes(b"1")
        payload = build_manifest(model, IgnoredPaths.of(["cache"])).payload()
        signature = pem("beside.sig", site.bundle_of(payload, key))
        (model / "cache/deep/x").write_bytes(b"2")
        upstream_accepts("key", model, "--signature", signature, "--public_key", pem("k.pem", site.public_pem(key)))

    def test_a_changed_file_is_noticed_there_too(self, model: Path, pem):
        key = site.new_key()
        signature = site.sign_locally(model, key)
        (model / "weights/.gitignore").write_bytes(b"*\n")
        public = pem("k.pem", site.public_pem(key))
        assert "weights/.gitignore" in upstream_refuses("key", model, "--signature", signature, "--public_key", public)

    def test_their_schema_types_read_it_with_no_field_lost(self, model: Path):
        """The classes that generated code of the Sigstore bundle gives: unknown fields are errors there."""
        from sigstore_models.bundle import v1

        key = site.new_key()
        for chain in ((), chain_of(key)):
            data = json.loads(site.sign_locally(model, key, chain).read_bytes())
            assert json.loads(v1.Bundle.from_dict(data).to_json()) == data


class TestUpstreamsByUs:
    @pytest.mark.parametrize("curve", ["P-256", "P-384", "P-521"])
    def test_key(self, model: Path, pem, curve: str):
        key = site.new_key(curve)
        self.sign("key", model, "--private_key", pem("k.key", site.private_pem(key)))
        verified = verify_model(model, model / "model.sig", Trust.in_key(site.public_pem(key)))
        assert (verified.name, verified.files) == ("llama", len(site.FILES))
        (model / "a-b").write_bytes(b"changed")
        with pytest.raises(ModelDiffers):
            verify_model(model, model / "model.sig", Trust.in_key(site.public_pem(key)))

    @pytest.mark.parametrize("curve", ["P-256", "P-384"])
    def test_certificate(self, model: Path, pem, curve: str):
        key = site.new_key(curve)
        self.sign_with_certificate(model, pem, key, chain_of(key))
        trust = Trust.in_roots([ROOT.certificate])
        assert verify_model(model, model / "model.sig", trust).signer == "CN=Model Release"
        with pytest.raises(SignerUntrusted):
            verify_model(model, model / "model.sig", Trust.in_roots([site.Authority.root().certificate]))

    def test_a_chain_that_includes_its_root(self, model: Path, pem):
        key = site.new_key()
        self.sign_with_certificate(model, pem, key, (*chain_of(key), ROOT.certificate))
        assert verify_model(model, model / "model.sig", Trust.in_roots([ROOT.certificate]))

    def test_an_expired_leaf_and_one_without_the_usage_are_refused_by_name(self, model: Path, pem):
        key = site.new_key()
        trust = Trust.in_roots([ROOT.certificate])
        self.sign_with_certificate(model, pem, key, (MIDDLE.leaf(key, ends=timedelta(hours=-1)), MIDDLE.certificate))
        with pytest.raises(SignerUntrusted, match="expired on"):
            verify_model(model, model / "model.sig", trust)
        self.sign_with_certificate(model, pem, key, (MIDDLE.leaf(key, purposes=None), MIDDLE.certificate))
        with pytest.raises(SignerUntrusted, match="codeSigning"):
            verify_model(model, model / "model.sig", trust)

    def test_paths_left_out(self, model: Path, pem):
        key = site.new_key()
        (model / "notes").write_bytes(b"1")
        self.sign("key", model, "--private_key", pem("k.key", site.private_pem(key)), "--ignore-paths", model / "notes")
        (model / "notes").write_bytes(b"2")
        assert "notes" in verify_model(model, model / "model.sig", Trust.in_key(site.public_pem(key))).ignored

    def test_what_they_sign_of_the_same_model_has_the_same_digests(self, model: Path, pem):
        key = site.new_key()
        self.sign("key", model, "--private_key", pem("k.key", site.private_pem(key)))
        bundle = json.loads((model / "model.sig").read_bytes())
        assert bundle["mediaType"] == MEDIA_TYPE
        theirs = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))["predicate"]["resources"]
        ours = build_manifest(model, IgnoredPaths.of(["model.sig"])).resources
        assert {each["name"]: each["digest"] for each in theirs} == dict(ours)
        # Where a/b stands beside a-b the orders differ, which is why ours is asked for by the string.
        assert [each["name"] for each in theirs] != [each.name for each in ours]

    def sign_with_certificate(
        self, model: Path, pem, key: ec.EllipticCurvePrivateKey, chain: Sequence[x509.Certificate]
    ) -> None:
        self.sign(
            "certificate",
            model,
            "--private_key",
            pem("k.key", site.private_pem(key)),
            "--signing_certificate",
            pem("leaf.pem", site.certificate_pem(chain[0])),
            "--certificate_chain",
            pem("chain.pem", site.certificate_pem(*chain[1:])),
        )

    def sign(self, method: str, model: Path, *arguments: str | Path) -> None:
        ran = upstream("sign", method, model, "--signature", model / "model.sig", *arguments)
        assert ran.returncode == 0, ran.stderr
