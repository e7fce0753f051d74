"""The client's profile: file, environment and arguments in their order, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from greatseal.errors import ProfileError
from greatseal.profile import Profile, load, looks_like_vkey
from sample_log import SampleLog

KEY = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
CERTIFICATE = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


@pytest.fixture
def vkey() -> str:
    return SampleLog().vkey.line()


@pytest.fixture
def profile_file(tmp_path: Path) -> Path:
    folder = tmp_path / "seal"
    folder.mkdir()
    file = folder / "client.toml"
    file.write_text('address = "file:1"\nca_cert = "pki/ca.pem"\ntimeout = 7\n')
    return file


def test_paths_in_the_file_are_relative_to_the_file(profile_file: Path):
    profile = load(profile_file, environment={})
    assert profile.ca_cert == profile_file.parent / "pki/ca.pem"
    assert profile.timeout == 7


def test_the_environment_wins_over_the_file_and_arguments_over_both(profile_file: Path):
    environment = {"GREATSEAL_ADDRESS": "environment:2", "GREATSEAL_TIMEOUT": "8", "GREATSEAL_CA_CERT": "other.pem"}
    profile = load(profile_file, {"address": "argument:3"}, environment=environment)
    assert (profile.address, profile.timeout, profile.ca_cert) == ("argument:3", 8, Path("other.pem"))


def test_the_environment_names_the_file(profile_file: Path):
    assert load(environment={"GREATSEAL_PROFILE": str(profile_file)}).address == "file:1"


def test_address_file_wins_over_the_address_beside_it_while_it_exists(profile_file: Path):
    profile_file.write_text('address = "file:1"\naddress_file = "run/address"\n')
    assert load(profile_file, environment={}).target() == "file:1"
    (profile_file.parent / "run").mkdir()
    (profile_file.parent / "run/address").write_text("127.0.0.1:4711\n")
    assert load(profile_file, environment={}).target() == "127.0.0.1:4711"
    # An address that was given over the whole file is meant.
    assert load(profile_file, {"address": "argument:3"}, environment={}).target() == "argument:3"
    assert load(profile_file, environment={"GREATSEAL_ADDRESS": "environment:2"}).target() == "environment:2"


def test_the_log_key_is_a_line_or_a_path(profile_file: Path, vkey: str):
    profile_file.write_text(f'log_key = "{vkey}"\n')
    assert load(profile_file, environment={}).log_key == vkey
    profile_file.write_text('log_key = "log/log.vkey"\n')
    (profile_file.parent / "log").mkdir()
    (profile_file.parent / "log/log.vkey").write_text(vkey + "\n")
    assert load(profile_file, environment={}).log_key == vkey


@pytest.mark.parametrize("path", ["log+a/log.vkey", "a+b+c", "x+0123456+key", "x+0123456g+key"])
def test_a_path_with_plus_signs_is_no_verifier_key(path: str):
    assert not looks_like_vkey(path)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('adress = "x:1"\n', "adress"),
        ("address = 5\n", "address"),
        ('address = "localhost"\n', "address"),
        ('address = "localhost:0"\n', "address"),
        ('address = "localhost:70000"\n', "address"),
        ('address = "local host:7"\n', "address"),
        ("timeout = 0\n", "timeout"),
        ("timeout = true\n", "timeout"),
        ("timeout = nan\n", "timeout"),
        ("timeout = 99999\n", "timeout"),
        ('timeout = "soon"\n', "timeout"),
        ('ca_cert = ""\n', "ca_cert"),
        ('log_key = "missing.vkey"\n', "log_key"),
        ('checkpoint_file = "checkpoint"\n', "checkpoint_file"),
        ("[server]\n", "server"),
        ("address = \n", "TOML"),
    ],
)
def test_an_error_names_the_file_and_the_key(profile_file: Path, text: str, named: str):
    profile_file.write_text(text)
    with pytest.raises(ProfileError) as caught:
        load(profile_file, environment={}).target()
    assert str(profile_file) in caught.value.message
    assert named in caught.value.message
    assert caught.value.exit_code == 2


def test_a_bad_value_of_the_environment_names_the_variable(profile_file: Path):
    with pytest.raises(ProfileError, match="GREATSEAL_TIMEOUT"):
        load(profile_file, environment={"GREATSEAL_TIMEOUT": "x"})


def test_a_missing_profile_says_how_to_get_one(tmp_path: Path):
    with pytest.raises(ProfileError, match="greatseald init"):
        load(tmp_path / "none.toml", environment={})


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610])
def test_a_private_key_open_to_others_is_refused(tmp_path: Path, mode: int):
    profile = _with_files(tmp_path)
    assert profile.client_key is not None
    profile.client_key.chmod(mode)
    with pytest.raises(ProfileError, match=r"client_key.*chmod 600"):
        profile.credentials()


def test_the_messages_about_a_key_never_quote_it(tmp_path: Path):
    profile = _with_files(tmp_path)
    assert profile.client_key is not None
    profile.client_key.write_bytes(b"a secret that is no PEM")
    with pytest.raises(ProfileError) as caught:
        profile.credentials()
    assert "a secret" not in str(caught.value)


def test_a_pipe_instead_of_a_key_is_refused_and_not_waited_for(tmp_path: Path):
    import os

    profile = _with_files(tmp_path)
    assert profile.client_key is not None
    profile.client_key.unlink()
    os.mkfifo(profile.client_key)
    with pytest.raises(ProfileError, match="is not a file"):
        profile.credentials()


def test_a_missing_certificate_is_named(tmp_path: Path):
    profile = _with_files(tmp_path)
    assert profile.ca_cert is not None
    profile.ca_cert.unlink()
    with pytest.raises(ProfileError, match=r"ca_cert.*does not exist"):
        profile.credentials()
    with pytest.raises(ProfileError, match=r"client_cert.*missing"):
        Profile(ca_cert=_with_files(tmp_path).ca_cert, client_key=profile.client_key).credentials()


@pytest.mark.parametrize(
    "text, why",
    [
        ("timeout = " + "[" * 3000, "nested too deeply"),
        ("timeout = " + "9" * 5000, "is not TOML"),
        ("timeout = 1" + "0" * 400, "must be a number of seconds"),
        ('ca_cert = "~nobody-of-this-name/x"', "of whom no home is known"),
        ('log_key = "~nobody-of-this-name/x"', "of whom no home is known"),
    ],
)
def test_a_value_that_python_chokes_on_is_refused_like_any_other(profile_file: Path, text: str, why: str):
    profile_file.write_text(text)
    with pytest.raises(ProfileError, match=why):
        load(profile_file, environment={})


def _with_files(folder: Path) -> Profile:
    for name, data in (("ca.pem", CERTIFICATE), ("client.pem", CERTIFICATE), ("client.key", KEY)):
        (folder / name).write_bytes(data)
    (folder / "client.key").chmod(0o600)
    return Profile(
        address="localhost:1",
        ca_cert=folder / "ca.pem",
        client_cert=folder / "client.pem",
        client_key=folder / "client.key",
    )
