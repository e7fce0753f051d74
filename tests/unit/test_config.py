"""The configuration: what it accepts, and that every problem is named with its line, its key and what to do."""

from __future__ import annotations

import os
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from greatseal.algorithms import Algorithm
from greatseald.config import ConfigError, Settings, load, load_token
from greatseald.config.positions import index_lines, line_of
from greatseald.domain.keys import Holder

CONFIG = """\
[server]
listen = "127.0.0.1:0"
tls_cert = "server.pem"
tls_key = "server.key"
client_ca = "ca.pem"

[store]
url = "sqlite:///tmp/log.db"

[log]
origin = "example.org/log"
key_file = "log.key"
head_mac_key_file = "mac.key"
anchor = "anchor"

[[tokens]]
name = "soft"
type = "pkcs11"
uri = "pkcs11:token=greatseal"
module = "module.so"
environment = { SOFTHSM2_CONF = "softhsm.conf" }
pin_file = "pin"
host_socket = ""

[[keys]]
name = "release"
token = "soft"
uri = "pkcs11:object=release"
algorithms = ["ecdsa-p256-sha256"]

[[allow]]
client = "spiffe://example.org/ci"
actions = ["sign", "readKeys"]
keys = ["release"]
payload_types = ["application/vnd.in-toto+json"]

[[deny]]
serial = "0A:1B"
comment = "lost"
"""


def pem(key: object) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def certificate(name: str, key, issuer: tuple[str, object] | None = None, days: int = 90) -> x509.Certificate:
    issuer_name, issuer_key = issuer or (name, key)
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer_name)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )


def chain_pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(cert.public_bytes(serialization.Encoding.PEM) for cert in certificates)


@pytest.fixture
def site(tmp_path):
    """A directory with everything that CONFIG names."""
    server = ec.generate_private_key(ec.SECP256R1())
    files = {
        "server.key": pem(server),
        "server.pem": chain_pem(certificate("server", server)),
        "ca.pem": chain_pem(certificate("ca", server)),
        "log.key": pem(ed25519.Ed25519PrivateKey.generate()),
        "mac.key": b"ab" * 32 + b"\n",
        "module.so": b"",
        "pin": b"1234",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        (tmp_path / name).chmod(0o600)
    return tmp_path


def read(site: Path, text: str = CONFIG, environment: dict[str, str] | None = None) -> Settings:
    path = site / "greatseald.toml"
    path.write_text(text)
    path.chmod(0o600)
    return load(path, environment or {})


def problems(site: Path, text: str, environment: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(site, text, environment)
    return [str(problem).removeprefix(f"{site}/") for problem in caught.value.problems]


def test_a_valid_file_gives_domain_objects_and_absolute_paths(site):
    settings = read(site)
    assert settings.server.tls_key == site / "server.key"
    assert settings.server.run_dir == site / "run"
    assert settings.key_settings()[0].algorithms == (Algorithm.ECDSA_P256_SHA256,)
    assert settings.rules().allow[0].keys == ("release",)
    assert settings.rules().deny[0].serial == "a1b"
    token = settings.token_settings()[0]
    assert token.state_dir == site / "tokens" / "soft" / "state"
    assert token.host_socket is None


def test_settings_cannot_be_changed(site):
    with pytest.raises(ValueError, match="frozen"):
        read(site).server.listen = "0.0.0.0:1"


def test_a_misspelt_key_is_named_with_its_line_and_the_right_spelling(site):
    text = CONFIG.replace('pin_file = "pin"', 'pin_fiel = "pin"')
    assert problems(site, text) == [
        "greatseald.toml:22: tokens[0].pin_fiel: is not a known key (did you mean 'pin_file'?)"
    ]


def test_every_problem_is_collected_before_any_is_reported(site):
    text = (
        CONFIG.replace('listen = "127.0.0.1:0"', 'listen = "nowhere"')
        .replace('token = "soft"', 'token = "sofd"')
        .replace('"readKeys"', '"readkeys"')
        .replace('serial = "0A:1B"\n', "")
    ) + "\n[servre]\nx = 1\n"
    found = problems(site, text)
    assert [line.split(":")[1:3] for line in found] == [
        ["2", " server.listen"],
        ["27", " keys[0].token"],
        ["33", " allow[0].actions[1]"],
        ["37", " deny[0]"],
        ["40", " servre"],
    ]
    assert "did you mean 'soft'?" in found[1]
    assert "did you mean 'server'?" in found[4]


def test_a_type_is_never_converted_silently(site):
    assert problems(site, CONFIG.replace('pin_file = "pin"', 'pin_file = "pin"\nsessions = "4"')) == [
        "greatseald.toml:23: tokens[0].sessions: must be a whole number, and is a string"
    ]
    assert "is 0, and must be at least 1" in problems(site, CONFIG.replace('pin_file = "pin"', "sessions = 0"))[0]


def test_text_that_is_no_toml_is_refused_with_its_line(site):
    assert problems(site, '[server]\nlisten = "x\n')[0].startswith("greatseald.toml:2: is not TOML:")


def test_a_missing_file_is_an_error_and_not_a_traceback(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "absent.toml", {})


def test_missing_tables_and_keys_are_named(site):
    found = problems(site, '[server]\nlisten = "127.0.0.1:0"\n')
    assert any("has no [store] table" in line for line in found)
    assert any("has no [log] table" in line for line in found)
    assert "greatseald.toml:1: server.tls_key: is required" in found


@pytest.mark.parametrize("name", ["server.key", "log.key", "mac.key", "pin"])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_secret_that_others_can_touch_is_refused_with_the_command_to_run(site, name, mode):
    (site / name).chmod(mode)
    (found,) = problems(site, CONFIG)
    assert f"which others can read (mode {mode:04o})" in found
    assert f"run: chmod 600 {site / name}" in found


@pytest.mark.parametrize("name", ["server.key", "server.pem", "ca.pem", "log.key", "mac.key", "pin", "module.so"])
def test_a_missing_file_is_named_with_the_key_that_names_it(site, name):
    (site / name).unlink()
    found = problems(site, CONFIG)
    assert found
    assert all(str(site / name) in line for line in found)


def test_a_certificate_of_another_key_is_refused(site):
    (site / "server.key").write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    assert "is not the certificate of the key" in problems(site, CONFIG)[0]


def test_a_log_key_of_another_kind_is_refused(site):
    (site / "log.key").write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    assert "whose key is not Ed25519" in problems(site, CONFIG)[0]


def test_a_short_mac_key_is_refused_and_not_printed(site):
    (site / "mac.key").write_text("c0ffee")
    (found,) = problems(site, CONFIG)
    assert "holds 3 bytes" in found
    assert "c0ffee" not in found


@pytest.mark.parametrize("uri", ["pkcs11:token=x?pin-value=98765", "pkcs11:token=x?PIN-SOURCE=file:/p98765"])
@pytest.mark.parametrize("replaced", ["pkcs11:token=greatseal", "pkcs11:object=release"])
def test_a_pin_in_a_uri_is_refused_and_not_printed(site, uri, replaced):
    (found,) = problems(site, CONFIG.replace(replaced, uri))
    assert "must not hold a PIN" in found
    assert "98765" not in found


def test_names_must_be_unique_and_known(site):
    text = (
        CONFIG
        + '[[keys]]\nname = "release"\ntoken = "soft"\nuri = "pkcs11:object=b"\nalgorithms = ["rsa-pss-sha256"]\n'
    )
    assert "keys[1].name: is 'release', as keys[0] is already" in problems(site, text)[0]
    assert "did you mean 'release'?" in problems(site, CONFIG.replace('keys = ["release"]', 'keys = ["relaese"]'))[0]
    assert read(site, CONFIG.replace('keys = ["release"]', 'keys = ["*"]')).rules().allow[0].keys == ("*",)


HELD = 'token = "soft"\nuri = "pkcs11:object=release"\n'


def held_by(*holders: tuple[str, str]) -> str:
    """CONFIG with its key in these tokens, the table of holders behind all of the key's own."""
    assert HELD in CONFIG
    tables = "".join(f'[[keys.holders]]\ntoken = "{token}"\nuri = "{uri}"\n' for token, uri in holders)
    before, _, after = CONFIG.replace(HELD, "").partition("[[allow]]")
    second = CONFIG[CONFIG.index("[[tokens]]") : CONFIG.index("[[keys]]")].replace('name = "soft"', 'name = "hard"')
    return f"{before}{tables}\n{second}\n[[allow]]{after}"


def test_a_key_may_lie_in_several_tokens(site):
    text = held_by(("soft", "pkcs11:object=release"), ("hard", "pkcs11:object=other"))
    (key,) = read(site, text).key_settings()
    assert key.holders == (Holder("soft", "pkcs11:object=release"), Holder("hard", "pkcs11:object=other"))
    assert read(site).key_settings()[0].holders == (Holder("soft", "pkcs11:object=release"),)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (held_by(("soft", "pkcs11:object=a"), ("soft", "pkcs11:object=b")), "keys[0].holders[1].token: names the token 'soft' twice"),
        (held_by(("sofd", "pkcs11:object=a")), "did you mean 'soft'?"),
        (held_by(("soft", "piv:slot=9c")), "keys[0].holders[0].uri: names a YubiKey's slot"),
        (held_by(), "names no token and object"),
        (held_by(("soft", "pkcs11:object=a")).replace("[[keys]]", '[[keys]]\ntoken = "soft"'), "write every token as a holder"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_holder_is_told_by_line_and_key(site, text, why):
    assert why in "\n".join(problems(site, text))


def test_an_unknown_algorithm_gets_the_nearest_known_one(site):
    found = problems(site, CONFIG.replace("ecdsa-p256-sha256", "ecdsa-p256-sha265"))
    assert found == [
        (
            "greatseald.toml:29: keys[0].algorithms[0]: is 'ecdsa-p256-sha265', which is no algorithm "
            "(did you mean 'ecdsa-p256-sha256'?)"
        )
    ]


def test_a_rule_that_cannot_allow_anything_is_refused(site):
    text = CONFIG.replace('payload_types = ["application/vnd.in-toto+json"]\n', "")
    assert "allows sign of no payload_types" in problems(site, text)[0]
    assert "allows signing with no keys" in problems(site, CONFIG.replace('keys = ["release"]\n', ""))[0]


@pytest.mark.parametrize(
    "url", ["sqlite://log.db", "sqlite:log.db", "sqlite:///", "mysql://x/y", "/tmp/log.db", "sqlite://host/x"]
)
def test_a_store_that_is_not_known_is_refused(site, url):
    assert problems(site, CONFIG.replace("sqlite:///tmp/log.db", url))[0].startswith("greatseald.toml:8: store.url: ")


def test_a_password_in_the_store_url_makes_the_file_a_secret(site):
    text = CONFIG.replace("sqlite:///tmp/log.db", "postgresql://seal:hunter2@db/seal")
    settings = read(site, text)
    assert "hunter2" not in str(settings.canonical())
    (site / "greatseald.toml").chmod(0o644)
    with pytest.raises(ConfigError) as caught:
        load(site / "greatseald.toml", {})
    assert "chmod 600" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_is_refused(site, mode):
    path = site / "greatseald.toml"
    path.write_text(CONFIG)
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod go-w"):
        load(path, {})
    path.chmod(0o644)
    assert load(path, {})


def test_metrics_beyond_loopback_are_refused(site):
    text = CONFIG.replace("[store]", 'metrics_listen = "0.0.0.0:9464"\n[store]')
    assert "must be on loopback" in problems(site, text)[0]
    assert read(site, text.replace("0.0.0.0", "[::1]")).server.metrics_listen == "[::1]:9464"


def test_a_socket_path_that_no_kernel_takes_is_refused(site):
    text = CONFIG.replace("[store]", f'admin_socket = "{"x" * 120}"\n[store]')
    assert "a Unix socket takes 107" in problems(site, text)[0]


def test_the_environment_overrides_the_file_and_its_mistakes_name_the_variable(site):
    environment = {"GREATSEALD_SERVER_LISTEN": "[::1]:99", "GREATSEALD_SERVER_MAX_CONCURRENT_CALLS": "7", "HOME": "/"}
    settings = read(site, CONFIG, environment)
    assert settings.server.listen == "[::1]:99"
    assert settings.server.max_concurrent_calls == 7
    assert problems(site, CONFIG, {"GREATSEALD_SERVER_LISTN": "x"}) == [
        "environment: GREATSEALD_SERVER_LISTN: sets no known key (did you mean 'GREATSEALD_SERVER_LISTEN'?)"
    ]
    assert problems(site, CONFIG, {"GREATSEALD_SERVER_DRAIN_TIMEOUT": "soon"}) == [
        "environment: GREATSEALD_SERVER_DRAIN_TIMEOUT: must be a number"
    ]
    assert problems(site, CONFIG, {"GREATSEALD_SERVER_LISTEN": "x"})[0].startswith(
        "environment: GREATSEALD_SERVER_LISTEN: "
    )


def test_a_certificate_chain_is_read_and_its_order_checked(site):
    root, leaf = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    upper = certificate("upper", root, ("root", root))
    lower = certificate("leaf", leaf, ("upper", root), days=3)
    text = CONFIG.replace(
        'uri = "pkcs11:object=release"', 'uri = "pkcs11:object=release"\ncertificate_chain = "chain.pem"'
    )
    (site / "chain.pem").write_bytes(chain_pem(lower, upper))
    settings = read(site, text)
    assert settings.key_settings()[0].certificate_chain == tuple(
        cert.public_bytes(serialization.Encoding.DER) for cert in (lower, upper)
    )
    assert any("keys/release expires on" in warning for warning in settings.warnings)
    (site / "chain.pem").write_bytes(chain_pem(upper, lower))
    assert "put the leaf first" in problems(site, text)[0]
    (site / "chain.pem").write_bytes(chain_pem(lower, certificate("upper", root)))
    assert "leave the root out" in problems(site, text)[0]
    (site / "chain.pem").write_text("nothing")
    assert "holds no PEM certificate" in problems(site, text)[0]


def test_a_pin_comes_from_one_place(site):
    operated = CONFIG.replace('pin_file = "pin"', 'unlock = "operator"')
    settings = read(site, operated).token_settings()[0]
    assert settings.by_operator
    assert settings.operator_socket == site / "tokens/soft/state/unlock.sock"
    both = problems(site, operated.replace("unlock =", 'pin_file = "pin"\nunlock ='))
    assert both == [
        "greatseald.toml:23: tokens[0].unlock: stands beside pin_file: an operator gives the PIN, or it lies there"
    ]
    assert (
        "stands beside pin_credential" in problems(site, operated.replace("unlock", 'pin_credential = "p"\nunlock'))[0]
    )
    assert "must be '' or 'operator'" in problems(site, operated.replace('"operator"', '"somebody"'))[0]
    long = operated.replace("unlock =", f'unlock_socket = "{"x" * 120}"\nunlock =')
    assert "a Unix socket takes" in problems(site, long)[0]
    elsewhere = operated.replace("unlock =", 'unlock_socket = "/run/soft.sock"\nunlock =')
    assert str(read(site, elsewhere).token_settings()[0].operator_socket) == "/run/soft.sock"


def test_the_digest_follows_the_effective_configuration_and_no_secret(site):
    digest = read(site).digest()
    assert read(site).digest() == digest
    assert read(site, CONFIG, {"GREATSEALD_SERVER_LISTEN": "127.0.0.1:1"}).digest() != digest
    assert read(site, CONFIG.replace('"lost"', '"found"')).digest() != digest
    # A module's environment may hold passwords: neither it nor anything derived from it is published.
    assert read(site, CONFIG.replace("softhsm.conf", "other.conf")).digest() == digest


def test_a_token_host_reads_its_own_table_and_nothing_else(site):
    for name in ("server.key", "log.key", "mac.key"):
        (site / name).unlink()
    (site / "greatseald.toml").write_text(CONFIG)
    assert load_token(site / "greatseald.toml", "soft").settings().pin_file == site / "pin"
    with pytest.raises(ConfigError, match="0 tokens with the name 'other'"):
        load_token(site / "greatseald.toml", "other")


def test_the_file_is_bounded(site):
    assert "is larger than" in problems(site, CONFIG + "#" * (5 * 1024 * 1024))[0]


def test_lines_are_found_in_every_shape_of_toml():
    text = '''# comment [not.a.table]
a.b = """
x = 1
"""

[ "quoted table" . inner ]
list = [ # [trap]
  { x = 1, y = "]}" },
  'lit]eral',
]
[[many]]
k = 1
[[many]]
  [many.sub]
  k = 2
[[many.nested]]
k = 3
'''
    tomllib.loads(text)
    lines = index_lines(text)
    assert lines["a", "b"] == 2
    assert lines["quoted table", "inner"] == 6
    assert lines["quoted table", "inner", "list", 0, "y"] == 8
    assert lines["quoted table", "inner", "list", 1] == 9
    assert lines["many", 0, "k"] == 12
    assert lines["many", 1] == 13
    assert lines["many", 1, "sub", "k"] == 15
    assert lines["many", 1, "nested", 0, "k"] == 17
    assert line_of(lines, ("many", 1, "sub", "absent", "deeper")) == 14


_KEYS = st.text("abz_-", min_size=1, max_size=4) | st.sampled_from(['"a b"', "'c.d'", '"\\u0041"'])
_VALUES = st.recursive(
    st.sampled_from(["1", '"s]#"', "'l}'", "true", "1979-05-27T07:32:00Z", '"""m\n=x\n"""', "'''\n'q\n'''", '"\\""']),
    lambda inner: st.lists(inner, max_size=3).map(lambda items: "[ " + ",\n # c\n".join(items) + "\n]"),
    max_leaves=4,
)


@given(st.lists(st.tuples(_KEYS, _VALUES, st.booleans()), max_size=6))
def test_any_text_that_tomllib_takes_is_indexed_with_every_key_on_its_line(rows):
    text = "".join(f"{'[[t]]' if table else ''}\n{key} = {value}\n" for key, value, table in rows)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    lines = index_lines(text)
    rows_of = text.split("\n")
    for key in document:
        number = lines[key,]
        assert 1 <= number <= len(rows_of)
        assert key == "t" or "=" in rows_of[number - 1]


def test_the_process_environment_is_not_read_behind_the_callers_back(site, monkeypatch):
    monkeypatch.setitem(os.environ, "GREATSEALD_SERVER_LISTEN", "bad")
    assert read(site).server.listen == "127.0.0.1:0"


def test_an_adapters_opinion_of_a_uri_stands_at_its_line(site):
    (site / "greatseald.toml").write_text(CONFIG)

    def check_uri(uri: str, names_object: bool) -> None:
        if names_object:
            raise ValueError(f"{uri} is not to its liking")

    with pytest.raises(ConfigError) as caught:
        load(site / "greatseald.toml", {}, check_uri)
    (problem,) = caught.value.problems
    assert (problem.line, problem.key) == (28, "keys[0].uri")
    assert problem.message == "pkcs11:object=release is not to its liking"


@pytest.mark.parametrize(
    "text, why",
    [("a = " + "[" * 3000, "nested too deeply"), ("a = " + "9" * 5000, "too many digits")],
)
def test_a_value_that_the_toml_reader_chokes_on_is_a_problem_like_any_other(site, text: str, why: str):
    (problem,) = problems(site, text)
    assert why in problem
    with pytest.raises(ConfigError, match=why):
        load_token(site / "greatseald.toml", "soft")


def test_an_override_of_too_many_digits_is_no_number(site):
    (problem,) = problems(site, CONFIG, {"GREATSEALD_SERVER_MAX_MESSAGE_BYTES": "9" * 5000})
    assert problem == "environment: GREATSEALD_SERVER_MAX_MESSAGE_BYTES: must be a number"


# ---------------------------------------------------------------------------------------- anchors

VKEYS = (
    "witness.example/w1+05a4155f+BAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB",
    "witness.example/w2+b3bbd98b+BAICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgIC",
)


def witnesses(*vkeys: str, url: str = "https://witness.example/") -> str:
    return "".join(f'\n[[log.witnesses]]\nvkey = "{vkey}"\nurl = "{url}"\n' for vkey in vkeys)


def test_witnesses_are_read_and_keys_may_wait_for_them(site):
    text = CONFIG.replace('uri = "pkcs11:object=release"', 'uri = "pkcs11:object=release"\nrelease = "witnessed(2)"')
    settings = read(site, text + witnesses(*VKEYS))
    assert [table.key.name for table in settings.log.witnesses] == ["witness.example/w1", "witness.example/w2"]
    assert settings.key_settings()[0].witnesses == 2
    (told,) = problems(site, text + witnesses(VKEYS[0]))
    assert "keys[0].release: is witnessed(2), and there are 1 [[log.witnesses]]" in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (witnesses(VKEYS[0], VKEYS[0]), "a second time"),
        (witnesses(VKEYS[0].replace("BAEB", "AQEB")), "no witness's verifier key"),
        (witnesses("nonsense"), "no witness's verifier key"),
        (witnesses(VKEYS[0], url="http://witness.example/"), "must be https:// for another machine"),
        (witnesses(VKEYS[0], url="https://me:secret@witness.example/"), "must hold no user, password"),
        (witnesses(VKEYS[0]) + "timeot = 3\n", "log.witnesses[0].timeot: is not a known key (did you mean 'timeout'?)"),
        (witnesses(VKEYS[0]) + 'ca = "none.pem"\n', "log.witnesses[0].ca: names"),
    ],
)
def test_what_is_wrong_with_witnesses_is_named(text, told, site):
    assert any(told in problem for problem in problems(site, CONFIG + text)), problems(site, CONFIG + text)


@pytest.mark.parametrize("value", ["witnessed(0)", "witnessed(100)", "witnessed()", "witnessed( 1)", "always", ""])
def test_a_release_that_is_none_is_named(value, site):
    text = CONFIG.replace('uri = "pkcs11:object=release"', f'uri = "pkcs11:object=release"\nrelease = "{value}"')
    (told,) = problems(site, text)
    assert "must be 'durable', or 'witnessed(K)'" in told
