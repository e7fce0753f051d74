"""A secret given by the service manager is readable by an ACL, whose mask shows as a right of the group."""

from __future__ import annotations

import pytest

from greatseald.config import FileProblem, read_head_mac_key


@pytest.mark.parametrize(("mode", "accepted"), [(0o400, True), (0o440, True), (0o444, False), (0o460, False)])
def test_a_credential_may_show_the_groups_right_to_read_and_no_other(tmp_path, monkeypatch, mode, accepted):
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    secret = tmp_path / "head-mac.key"
    secret.write_text("ab" * 32)
    secret.chmod(mode)
    if accepted:
        assert read_head_mac_key(secret) == b"\xab" * 32
        return
    with pytest.raises(FileProblem):
        read_head_mac_key(secret)


def test_elsewhere_the_group_may_read_no_secret(tmp_path, monkeypatch):
    (tmp_path / "credentials").mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    secret = tmp_path / "head-mac.key"
    secret.write_text("ab" * 32)
    secret.chmod(0o440)
    for path in (secret, tmp_path / "credentials/../head-mac.key"):
        with pytest.raises(FileProblem):
            read_head_mac_key(path)
