"""Entries of the log as events of the Open Cybersecurity Schema Framework (OCSF) 1.6.0, class API Activity (6003).

An event says who asked, from where, for what, and how it ended. `metadata.uid` is ORIGIN/INDEX, unique
for ever, and what receivers remove duplicates by; `raw_data` holds the entry's exact bytes, so that the
event can be checked against the log. An outcome is told together with the intent that it closes.

    event = api_activity(41, entry, intent=None, origin="seal.example.org/log")

Source: schema.ocsf.io, version 1.6.0, classes/api_activity.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import msgspec

OCSF_VERSION: Final = "1.6.0"
_CATEGORY: Final = 6
_CLASS: Final = 6003

_CREATE, _READ, _UPDATE, _OTHER = 1, 2, 3, 99
_ACTIVITY_NAMES: Final = {_CREATE: "Create", _READ: "Read", _UPDATE: "Update", _OTHER: "Other"}
_UNKNOWN, _SUCCESS, _FAILURE = 0, 1, 2
_STATUS_NAMES: Final = {_UNKNOWN: "Unknown", _SUCCESS: "Success", _FAILURE: "Failure"}
INFORMATIONAL: Final = 1
"""`severity_id` of business as usual; what is above it is notable."""
_LOW, _MEDIUM, _HIGH = 2, 3, 4
_SEVERITY_NAMES: Final = {INFORMATIONAL: "Informational", _LOW: "Low", _MEDIUM: "Medium", _HIGH: "High"}
_SERVICE_USER, _SHA256 = 4, 3

_RESULTS: Final = {
    "signed": (_SUCCESS, INFORMATIONAL),
    "failed": (_FAILURE, _MEDIUM),
    "aborted": (_FAILURE, _LOW),
    "unknown": (_UNKNOWN, _HIGH),
}
"""A signature of which nobody knows whether it was made is what somebody has to look at."""

_DENYLISTED: Final = "CALLER_DENYLISTED"


def api_activity(index: int, entry: bytes, intent: bytes | None, origin: str) -> dict[str, Any]:
    """Return the event for entry `index` of the log `origin`. Pure; `entry` and `intent` are exact entries of ours."""
    fields: dict[str, Any] = msgspec.json.decode(entry)
    asked: dict[str, Any] = msgspec.json.decode(intent) if intent is not None else fields
    kind = fields["t"]
    activity, status, severity, detail = _judge(fields)
    operation = {"intent": "Sign", "outcome": "Sign"}.get(kind) or fields.get("act") or fields.get("what", kind)
    event: dict[str, Any] = {
        "activity_id": activity,
        "activity_name": _ACTIVITY_NAMES[activity],
        "category_uid": _CATEGORY,
        "category_name": "Application Activity",
        "class_uid": _CLASS,
        "class_name": "API Activity",
        "type_uid": _CLASS * 100 + activity,
        "type_name": f"API Activity: {_ACTIVITY_NAMES[activity]}",
        "severity_id": severity,
        "severity": _SEVERITY_NAMES[severity],
        "status_id": status,
        "status": _STATUS_NAMES[status],
        "time": _milliseconds(fields["ts"]),
        "message": _message(kind, fields, asked),
        "actor": _actor(asked),
        "src_endpoint": _source(asked),
        "api": _api(operation, fields, asked),
        "metadata": {
            "uid": f"{origin}/{index}",
            "sequence": index,
            "version": OCSF_VERSION,
            "log_name": origin,
            "original_time": fields["ts"],
            "event_code": kind,
            "correlation_uid": asked.get("req") or fields["inst"],
            "product": {"name": "Greatseal", "vendor_name": "Greatseal", "uid": "greatseald"},
        },
        "raw_data": entry.decode(),
        "unmapped": {"log_index": index, "entry_type": kind},
    }
    if detail:
        event["status_detail"] = detail
    if resources := _resources(asked):
        event["resources"] = resources
    if kind == "outcome":
        event["duration"] = fields["dur_us"] // 1000
        event["unmapped"]["intent_index"] = fields["intent"]["index"]
    if more := fields.get("more"):
        event["count"] = more + 1
    return event


def is_notable(fields: dict[str, Any]) -> bool:
    """Whether an entry (decoded) is more than business as usual: a refusal, a failure, an unknown end."""
    _, _, severity, _ = _judge(fields)
    return severity > INFORMATIONAL


def _judge(fields: dict[str, Any]) -> tuple[int, int, int, str]:
    """Activity, status, severity, and a word on the status."""
    kind = fields["t"]
    if kind == "intent":
        return _CREATE, _UNKNOWN, INFORMATIONAL, "requested"
    if kind == "outcome":
        status, severity = _RESULTS.get(fields["res"], (_UNKNOWN, _HIGH))
        return _CREATE, status, severity, fields.get("why", "") or fields["res"]
    if kind == "denied":
        action = str(fields["act"])
        activity = _CREATE if action.startswith("sign") else _READ if action.startswith("read") else _OTHER
        severity = _HIGH if fields["reason"] == _DENYLISTED else _MEDIUM
        return activity, _FAILURE, severity, str(fields["reason"])
    return _UPDATE, _SUCCESS, INFORMATIONAL, ""


def _message(kind: str, fields: dict[str, Any], asked: dict[str, Any]) -> str:
    key = asked.get("key", {}).get("name", "")
    who = asked.get("cli", {}).get("id", "")
    if kind == "intent":
        return f"{who} asked for a signature of {key}"
    if kind == "outcome":
        result = {"signed": "was signed", "failed": "failed", "aborted": "was not begun"}.get(fields["res"])
        return f"a signature of {key} for {who} {result or 'has an unknown end: it may have been made'}"
    if kind == "denied":
        return f"{who} was denied {fields['act']}{f' of {key}' if key else ''}: {fields['reason']}"
    return f"greatseald: {fields.get('what', kind)}"


def _actor(asked: dict[str, Any]) -> dict[str, Any]:
    client = asked.get("cli")
    if client is None:
        return {"app_name": "greatseald", "app_uid": asked["inst"]}
    return {
        "user": {
            "uid": client["id"],
            "name": client["id"],
            "type_id": _SERVICE_USER,
            "type": "Service",
            "credential_uid": client["cert_sha256"],
        }
    }


def _source(asked: dict[str, Any]) -> dict[str, Any]:
    host, _, port = asked.get("peer", "").rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit():
        return {"svc_name": "greatseald"}
    return {"ip": host, "port": int(port)}


def _api(operation: str, fields: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    api: dict[str, Any] = {"operation": operation, "service": {"name": "greatseal.v1", "uid": fields["log"]}}
    if request := asked.get("req"):
        api["request"] = {"uid": request}
    if reason := fields.get("reason"):
        api["response"] = {"error": reason}
    elif fields["t"] == "outcome":
        api["response"] = {"message": fields["res"]}
        if value := fields.get("ckr"):
            api["response"]["code"] = value
    return api


def _resources(asked: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    key = asked.get("key")
    if key and key.get("name"):
        resource: dict[str, Any] = {"name": key["name"], "type": "signing key"}
        if key.get("spki_sha256"):
            resource["uid"] = key["spki_sha256"]
        found.append(resource)
    subject = asked.get("subj")
    if subject and (subject.get("name") or subject.get("digest")):
        resource = {"name": subject.get("name") or subject["digest"], "type": asked.get("pred") or "subject"}
        if subject.get("digest"):
            resource["uid"] = subject["digest"]
        found.append(resource)
    return found


def _milliseconds(timestamp: str) -> int:
    return int(datetime.fromisoformat(timestamp).timestamp() * 1000)
