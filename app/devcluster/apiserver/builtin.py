"""Defaults and validation of the built-in kinds that clients write: Secrets, Leases, claims, pods and DaemonSets."""

import base64
import binascii
import re
from typing import Any

from app.devcluster.apiserver import workloads
from app.devcluster.apiserver.registry import CLAIMS, LEASES, NAMESPACES, SECRETS, Resource
from app.devcluster.apiserver.status import Json, cause

_SECRET_FIELDS = frozenset({"apiVersion", "kind", "metadata", "type", "data", "stringData", "immutable"})
_LEASE_SPEC = frozenset(
    {
        "holderIdentity",
        "leaseDurationSeconds",
        "acquireTime",
        "renewTime",
        "leaseTransitions",
        "strategy",
        "preferredHolder",
    }
)
_REQUIRED_KEYS = {
    "kubernetes.io/ssh-auth": ("ssh-privatekey",),
    "kubernetes.io/basic-auth": ("username", "password"),
    "kubernetes.io/tls": ("tls.crt", "tls.key"),
}
_CONFIG_KEY = re.compile(r"[-._a-zA-Z0-9]+")
_MICRO_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{6}(Z|[+-]\d{2}:\d{2})")
_WHOLE_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(Z|[+-]\d{2}:\d{2})")


def unknown_fields(resource: Resource, obj: Json) -> list[str]:
    """Unknown fields, sorted. Kinds that are only stored take any field."""
    if resource.id in workloads.KINDS:
        return workloads.unknown_fields(resource, obj)
    if resource is SECRETS:
        return sorted(set(obj) - _SECRET_FIELDS)
    if resource is LEASES:
        return sorted(f"spec.{name}" for name in set(obj.get("spec") or {}) - _LEASE_SPEC)
    return []


def without_unknown(resource: Resource, obj: Json) -> Json:
    if resource is SECRETS:
        return {name: value for name, value in obj.items() if name in _SECRET_FIELDS}
    if resource is LEASES and "spec" in obj:
        spec = {name: value for name, value in obj["spec"].items() if name in _LEASE_SPEC}
        return {**obj, "spec": spec}
    return obj


def decoding_problem(resource: Resource, obj: Json) -> str | None:
    """Why a value does not parse into its Go type; None where it does."""
    if resource.id in workloads.KINDS:
        return workloads.decoding_problem(resource, obj)
    if resource is SECRETS:
        for value in (obj.get("data") or {}).values():
            position = _bad_base64(value)
            if position is not None:
                return f"illegal base64 data at input byte {position}"
    if resource is LEASES:
        for name in ("acquireTime", "renewTime"):
            problem = _bad_time((obj.get("spec") or {}).get(name))
            if problem:
                return problem
    return None


def with_defaults(resource: Resource, obj: Json) -> Json:
    """The object with the defaults that the server sets before it stores it."""
    if resource is NAMESPACES and "status" not in obj:
        return _new_namespace(obj)
    if resource.id in workloads.KINDS:
        return workloads.with_defaults(resource, obj)
    if resource is CLAIMS and "status" not in obj:
        return _new_claim(obj)
    if resource is not SECRETS:
        return obj
    result = {name: value for name, value in obj.items() if name != "stringData"}
    data = dict(result.get("data") or {})
    for name, text in (obj.get("stringData") or {}).items():
        data[name] = base64.b64encode(str(text).encode()).decode()
    if data:
        result["data"] = data
    else:
        result.pop("data", None)
    result.setdefault("type", "Opaque")
    return result


def _new_namespace(namespace: Json) -> Json:
    metadata = namespace["metadata"]
    labels = {**(metadata.get("labels") or {}), "kubernetes.io/metadata.name": metadata.get("name", "")}
    return {
        **namespace,
        "metadata": {**metadata, "labels": labels},
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    }


def _new_claim(claim: Json) -> Json:
    """A new claim is protected and pending, and has its source under both names."""
    spec = {**(claim.get("spec") or {})}
    source = spec.get("dataSource") or spec.get("dataSourceRef")
    if source:
        spec["dataSource"] = spec["dataSourceRef"] = source
    spec.setdefault("volumeMode", "Filesystem")
    metadata = claim["metadata"]
    finalizers = [*metadata.get("finalizers", ()), "kubernetes.io/pvc-protection"]
    return {**claim, "metadata": {**metadata, "finalizers": finalizers}, "spec": spec, "status": {"phase": "Pending"}}


def check(resource: Resource, obj: Json, old: Json | None) -> list[Json]:
    if resource is SECRETS:
        return _check_secret(obj, old)
    if resource.id in workloads.KINDS:
        return workloads.check(resource, obj, old)
    if resource is LEASES:
        return _check_lease(obj)
    return []


def _check_secret(obj: Json, old: Json | None) -> list[Json]:
    causes: list[Json] = []
    if old is not None:
        if obj.get("type") != old.get("type"):
            causes.append(cause("FieldValueInvalid", f'Invalid value: "{obj.get("type")}": field is immutable', "type"))
        if old.get("immutable"):
            frozen = "Forbidden: field is immutable when `immutable` is set"
            if not obj.get("immutable"):
                causes.append(cause("FieldValueForbidden", frozen, "immutable"))
            if obj.get("data") != old.get("data"):
                causes.append(cause("FieldValueForbidden", frozen, "data"))
    data = obj.get("data") or {}
    for key in data:
        if not _CONFIG_KEY.fullmatch(key):
            message = (
                f"Invalid value: \"{key}\": a valid config key must consist of alphanumeric characters, '-', '_' or "
                "'.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is "
                "'[-._a-zA-Z0-9]+')"
            )
            causes.append(cause("FieldValueInvalid", message, f"data[{key}]"))
    causes += [
        cause("FieldValueRequired", "Required value", f"data[{key}]")
        for key in _REQUIRED_KEYS.get(obj.get("type", ""), ())
        if key not in data
    ]
    return causes


def _check_lease(obj: Json) -> list[Json]:
    seconds = (obj.get("spec") or {}).get("leaseDurationSeconds")
    if isinstance(seconds, int) and seconds <= 0:
        message = f"Invalid value: {seconds}: must be greater than 0"
        return [cause("FieldValueInvalid", message, "spec.leaseDurationSeconds")]
    return []


def _bad_base64(value: Any) -> int | None:
    """The position of the first wrong byte; None where all are right."""
    text = str(value)
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        match = re.search(r"[^A-Za-z0-9+/=]", text)
        return match.start() if match else len(text)
    return None


def _bad_time(value: Any) -> str | None:
    if value is None or _MICRO_TIME.fullmatch(str(value)):
        return None
    head = f'parsing time "{value}" as "2006-01-02T15:04:05.000000Z07:00": cannot parse'
    if match := _WHOLE_TIME.fullmatch(str(value)):
        return f'{head} "{match.group(1)}" as ".000000"'
    return f'{head} "{value}" as "2006"'
