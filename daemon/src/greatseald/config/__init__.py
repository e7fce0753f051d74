"""The configuration: TOML and `GREATSEALD_*`, validated whole, frozen.

    settings = load(Path("greatseald.toml"), os.environ)      # raises ConfigError with every problem

What is here knows no adapter: `settings.rules()` and `settings.key_settings()` give the domain's own
objects, and the tables of tokens and store are turned into adapters by `greatseald.bootstrap`.
"""

from greatseald.config.checks import (
    FileProblem,
    read_certificates,
    read_head_mac_key,
    read_header,
    read_log_key,
    read_store_password,
    read_tls,
)
from greatseald.config.loading import load, load_token
from greatseald.config.log_tables import LogSettings, PeerTable, TilesSettings, TimestampTable, WitnessTable
from greatseald.config.problems import ConfigError, ConfigProblem
from greatseald.config.settings import OutboxTable, ServerSettings, Settings, StoreSettings, TokenTable, YubiKeyTable
from greatseald.config.values import is_loopback, split_endpoint

__all__ = [
    "ConfigError",
    "ConfigProblem",
    "FileProblem",
    "LogSettings",
    "OutboxTable",
    "PeerTable",
    "ServerSettings",
    "Settings",
    "StoreSettings",
    "TilesSettings",
    "TimestampTable",
    "TokenTable",
    "WitnessTable",
    "YubiKeyTable",
    "is_loopback",
    "load",
    "load_token",
    "read_certificates",
    "read_head_mac_key",
    "read_header",
    "read_log_key",
    "read_store_password",
    "read_tls",
    "split_endpoint",
]
