"""What `import greatseal` gives, and what it costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import greatseal
import greatseal.errors
import greatseal.verification

EXPORTS = {
    "Algorithm", "AsyncClient", "Capability", "Checkpoint", "Client", "ConnectionRefused", "ConsistencyProof", "DaemonError",
    "DaemonFault", "DeadlineExceeded", "Denied", "DigestRequest", "Entry", "EntryFilter", "EntryPage", "Exhausted", "Grant", "GreatsealError",
    "InFlight", "InclusionProof", "InvalidRequest", "Key", "LogRegressed", "NotFound", "NotReady", "Profile",
    "ProfileError", "PublicKey", "Receipt", "RequestIdReused", "Signature", "SignedCheckpoint", "StatementRequest", "Token",
    "Unavailable", "UsageError", "VerificationFailed", "VerifiedReceipt", "VerifierKey", "WhoAmI", "__version__",
    "load_public_key", "new_request_id", "open_checkpoint", "verify_digest", "verify_message",
}  # fmt: skip


def test_the_exports_are_these():
    assert set(greatseal.__all__) == EXPORTS
    for name in EXPORTS:
        assert getattr(greatseal, name) is not None
    assert set(dir(greatseal)) >= EXPORTS


def test_readers_of_types_see_the_same_exports():
    tree = ast.parse(Path(greatseal.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {
        alias.asname or alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported - {"VERSION"} == EXPORTS - {"__version__"}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = greatseal.nothing_like_it


def test_one_root_catches_everything():
    kinds = [
        kind for kind in vars(greatseal.verification).values() if isinstance(kind, type) and issubclass(kind, Exception)
    ]
    assert len(kinds) > 5
    assert all(issubclass(kind, greatseal.GreatsealError) for kind in kinds)
    assert (
        greatseal.verification.VerificationFailed is greatseal.errors.VerificationFailed is greatseal.VerificationFailed
    )


@pytest.mark.parametrize("module", ["greatseal", "greatseal.errors", "greatseal.cli"])
def test_importing_loads_nothing_heavy(module: str):
    code = f"import sys, {module}; print(*sorted(m for m in sys.modules if m.split('.')[0] in {{'grpc', 'google', 'rich', 'cryptography'}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_version_is_the_distributions():
    import importlib.metadata

    assert greatseal.__version__ == importlib.metadata.version("greatseal")
