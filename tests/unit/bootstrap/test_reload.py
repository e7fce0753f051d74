"""What a reload says waits for a restart is exactly what it did not put in force."""

from __future__ import annotations

import copy

from greatseald.bootstrap.reload import pending_changes

BASE = {
    "server": {"listen": "a", "log_level": "info", "tls_cert": "x"},
    "store": {"url": "u"},
    "log": {"origin": "o"},
    "tokens": [{"name": "soft", "sessions": 4}],
    "keys": [{"name": "release", "token": "soft", "certificate_chain": None, "predicate_types": []}],
    "allow": [{"client": "c"}],
    "deny": [],
    "outbox": [],
    "chains": {},
}


def changed(edit) -> list[str]:
    fresh = copy.deepcopy(BASE)
    edit(fresh)
    return pending_changes(BASE, fresh)


def test_nothing_waits_where_nothing_changed():
    assert pending_changes(BASE, copy.deepcopy(BASE)) == []


def test_what_takes_effect_at_once_does_not_wait():
    def edit(fresh):
        fresh["server"] |= {"log_level": "debug", "tls_cert": "y"}
        fresh["allow"], fresh["deny"], fresh["chains"] = [], [{"serial": "1"}], {"release": ["h"]}
        fresh["keys"][0] |= {"certificate_chain": "p", "predicate_types": ["t"]}

    assert changed(edit) == []


def test_everything_else_is_named():
    def edit(fresh):
        fresh["server"]["listen"] = fresh["store"]["url"] = fresh["log"]["origin"] = "new"
        fresh["tokens"][0]["sessions"] = 1
        fresh["keys"] = [{"name": "other"}]

    assert changed(edit) == [
        "server.listen",
        "store.url",
        "log.origin",
        "tokens: soft.sessions",
        "keys: other (new)",
        "keys: release (removed)",
    ]
