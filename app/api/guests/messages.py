"""What a guest is told, as JSON, and as text that a shell can read without a parser.

The second form is lines `NAME='value'`, an empty line, and the JSON. A value that a line cannot hold is in the JSON alone.
"""

import re
from typing import Any, Final

import orjson

from app.services.guests.answers import Event, lease_end
from app.services.guests.service import Told

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_RESERVED: Final = "EMBERPOOL_"
_NEVER: Final = frozenset({"BASH_ENV", "ENV", "IFS", "LD_PRELOAD", "LD_LIBRARY_PATH", "PATH", "SHELLOPTS"})
"""Variables that would change how the hooks run rather than what they are told."""


def as_json(told: Told) -> bytes:
    guest, message = told.guest, told.message
    content: dict[str, Any] = {
        "event": message.event,
        "claim": str(message.claim_id),
        "vm": {"id": str(guest.vm_id), "name": guest.vm_name},
        "pool": guest.pool,
        "labels": guest.labels,
        "lease_expires_at": guest.lease_expires_at,
        "seconds": round(_seconds(told), 1),
    }
    if message.event is Event.CLAIMED:
        content["data"] = orjson.Fragment(told.data) if told.data is not None else None
    return orjson.dumps(content, option=orjson.OPT_UTC_Z)


def as_shell(told: Told) -> bytes:
    guest, message = told.guest, told.message
    own = {
        "EVENT": str(message.event),
        "CLAIM": str(message.claim_id),
        "VM": str(guest.vm_id),
        "POOL": guest.pool,
        "LEASE": str(lease_end(guest)),
        "SECONDS": str(max(0, int(_seconds(told)))),
    }
    variables = {f"{_RESERVED}{name}": value for name, value in own.items()}
    lines = [f"{name}={_quoted(value)}\n" for name, value in {**_given(told.data), **variables}.items()]
    return "".join(lines).encode() + b"\n" + as_json(told) + b"\n"


def _seconds(told: Told) -> float:
    """Until the VM goes: because it is released, or because the lease ends."""
    guest = told.guest
    if told.message.event is Event.RELEASING:
        return told.message.seconds
    return (guest.lease_expires_at - guest.now).total_seconds() if guest.lease_expires_at is not None else 0.0


def _given(data: bytes | None) -> dict[str, str]:
    """The variables that the data sets: the members of its `env`, as far as they are names and lines."""
    found = orjson.loads(data) if data is not None else None
    env = found.get("env") if isinstance(found, dict) else None
    if not isinstance(env, dict):
        return {}
    return {name: text for name, value in env.items() if _settable(name) and (text := _text(value)) is not None}


def _settable(name: str) -> bool:
    return bool(_NAME.fullmatch(name)) and not name.startswith(_RESERVED) and name not in _NEVER


def _text(value: object) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return orjson.dumps(value).decode()
    if isinstance(value, str) and not re.search(r"[\0\n\r]", value):
        return value
    return None


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "'\\''") + "'"
