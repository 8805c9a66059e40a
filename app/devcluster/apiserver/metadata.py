"""Validates the metadata of objects, with the messages of Kubernetes."""

import re

import orjson

from app.devcluster.apiserver.registry import Resource
from app.devcluster.apiserver.status import Json, cause

_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_QUALIFIED = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_STANDARD_FINALIZERS = frozenset({"orphan", "foregroundDeletion", "kubernetes"})
_OWNER_FIELDS = ("apiVersion", "kind", "name", "uid", "controller", "blockOwnerDeletion")
_NAME_LIMIT = 253
_LABEL_LIMIT = 63

_SUBDOMAIN_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start "
    "and end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_LABEL_NAME_RULE = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end "
    "with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
_VALUE_RULE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
_KEY_RULE = (
    "a valid label key must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an "
    "alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. "
    "'example.com/MyName')"
)


def check_metadata(resource: Resource, metadata: Json) -> list[Json]:
    """Field errors of name, labels, annotations, finalizers and ownerReferences, in the server's order."""
    causes: list[Json] = []
    name = metadata.get("name", "")
    if not name:
        causes.append(cause("FieldValueRequired", "Required value: name or generateName is required", "metadata.name"))
    else:
        causes += _check_name(resource, name)
    causes += _check_labels(metadata.get("labels") or {})
    causes += _check_annotations(metadata.get("annotations") or {})
    causes += _check_owners(metadata.get("ownerReferences") or [])
    causes += _check_finalizers(metadata.get("finalizers") or [])
    return causes


def check_finalizers_kept(old: Json, new: Json) -> list[Json]:
    """An object that is being deleted takes no new finalizers."""
    if "deletionTimestamp" not in old:
        return []
    before = old.get("finalizers") or []
    added = [item for item in new.get("finalizers") or [] if item not in before]
    if not added:
        return []
    listed = ", ".join(f'"{item}"' for item in added)
    message = (
        "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers "
        f"[]string{{{listed}}}"
    )
    return [cause("FieldValueForbidden", message, "metadata.finalizers")]


def _check_name(resource: Resource, name: str) -> list[Json]:
    pattern, rule, limit = _SUBDOMAIN, _SUBDOMAIN_RULE, _NAME_LIMIT
    if resource.plural == "namespaces":
        pattern, rule, limit = _LABEL, _LABEL_NAME_RULE, _LABEL_LIMIT
    if not pattern.fullmatch(name):
        return [_invalid("metadata.name", name, rule)]
    if len(name) > limit:
        return [_invalid("metadata.name", name, f"must be no more than {limit} characters")]
    return []


def _check_labels(labels: dict[str, str]) -> list[Json]:
    causes: list[Json] = []
    for key, value in labels.items():
        causes += _check_key(key, "metadata.labels")
        if not _VALUE.fullmatch(str(value)):
            causes.append(_invalid("metadata.labels", value, _VALUE_RULE))
        elif len(value) > _LABEL_LIMIT:
            causes.append(_invalid("metadata.labels", value, "must be no more than 63 bytes"))
    return causes


def _check_key(key: str, path: str) -> list[Json]:
    prefix, slash, name = key.rpartition("/")
    if slash and ("/" in prefix or not _SUBDOMAIN.fullmatch(prefix)):
        return [_invalid(path, key, _KEY_RULE)]
    if not _QUALIFIED.fullmatch(name):
        return [_invalid(path, key, _KEY_RULE)]
    if len(name) > _LABEL_LIMIT:
        return [_invalid(path, key, "name part must be no more than 63 bytes")]
    return []


def _check_annotations(annotations: dict[str, str]) -> list[Json]:
    return [item for key in annotations for item in _check_key(key.lower(), "metadata.annotations")]


def _check_owners(references: list[Json]) -> list[Json]:
    causes: list[Json] = []
    for number, reference in enumerate(references):
        causes += [
            cause("FieldValueRequired", "Required value", f"metadata.ownerReferences[{number}].{field}")
            for field in ("apiVersion", "kind", "name", "uid")
            if not reference.get(field)
        ]
    controllers = [reference for reference in references if reference.get("controller")]
    if len(controllers) > 1:
        shown = orjson.dumps([{key: item[key] for key in _OWNER_FIELDS if key in item} for item in references]).decode()
        named = " and ".join(f"{item['kind']}/{item['name']}" for item in controllers[:2])
        message = (
            f'Invalid value: {shown}: Only one reference can have Controller set to true. Found "true" in references '
            f"for {named}"
        )
        causes.append(cause("FieldValueInvalid", message, "metadata.ownerReferences"))
    return causes


def _check_finalizers(finalizers: list[str]) -> list[Json]:
    return [
        _invalid(
            f"metadata.finalizers[{number}]",
            name,
            "name is neither a standard finalizer name nor is it fully qualified",
        )
        for number, name in enumerate(finalizers)
        if "/" not in name and name not in _STANDARD_FINALIZERS
    ]


def _invalid(field: str, value: object, rule: str) -> Json:
    return cause("FieldValueInvalid", f'Invalid value: "{value}": {rule}', field)
