"""Decodes request bodies from JSON or YAML, and finds duplicate keys. Errors are worded as by the API server."""

import json
from dataclasses import dataclass, field
from typing import Any

import yaml

from app.devcluster.apiserver.registry import Resource
from app.devcluster.apiserver.status import ApiError, Json, bad_request

_JSON_TYPES = frozenset({"", "application/json"})
_YAML_TYPES = frozenset({"application/yaml", "application/apply-patch+yaml"})
_BODY_TYPES = "application/json, application/yaml, application/vnd.kubernetes.protobuf"
_PATCH_TYPES = "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"


@dataclass(slots=True)
class Decoded:
    value: Any
    duplicates: list[str] = field(default_factory=list)
    """Dotted paths of members that occur more than once; the last one counts."""


def decode_object(resource: Resource, body: bytes, content_type: str) -> Decoded:
    """The body of a create or update. Raises ApiError 400 (unreadable, another API version) or 415."""
    if content_type not in _JSON_TYPES | _YAML_TYPES:
        raise unsupported(_BODY_TYPES)
    try:
        decoded = _parse(body, content_type)
    except ValueError as error:
        shown = body.decode(errors="replace") or "<empty>"
        raise bad_request(
            f"the object provided is unrecognized (must be of type {resource.kind}): "
            f"couldn't get version/kind; json parse error: {_go_message(error, body)} ({shown})"
        ) from error
    obj = decoded.value
    if not isinstance(obj, dict) or not isinstance(obj.get("metadata", {}), dict):
        raise bad_request(f"the object provided is unrecognized (must be of type {resource.kind})")
    _check_kind(resource, obj)
    return decoded


def decode_patch(body: bytes, content_type: str) -> Decoded:
    """The body of a PATCH; the content type says which kind of patch it is. Raises ApiError 400 or 415."""
    if content_type not in {
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/apply-patch+yaml",
        "application/strategic-merge-patch+json",
    }:
        raise unsupported(_PATCH_TYPES)
    try:
        return _parse(body, content_type)
    except ValueError as error:
        raise bad_request(f"error decoding patch: {_go_message(error, body)}") from error


def decode_options(body: bytes) -> Json:
    """DeleteOptions, or an empty dict for an empty body. Raises ApiError 400."""
    if not body.strip():
        return {}
    try:
        options = json.loads(body)
    except ValueError as error:
        raise bad_request(f"unable to decode DeleteOptions: {_go_message(error, body)}") from error
    return options if isinstance(options, dict) else {}


def unsupported(accepted: str) -> ApiError:
    message = f"the body of the request was in an unknown format - accepted media types include: {accepted}"
    return ApiError(415, "UnsupportedMediaType", message)


def _parse(body: bytes, content_type: str) -> Decoded:
    if content_type in _YAML_TYPES:
        try:
            return Decoded(yaml.safe_load(body))
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from error
    pairs = json.loads(body, object_pairs_hook=_Pairs)
    duplicates: list[str] = []
    return Decoded(_unfold(pairs, "", duplicates), duplicates)


class _Pairs(list[tuple[str, Any]]):
    """Members of a JSON object in order, duplicates included."""


def _unfold(value: Any, path: str, duplicates: list[str]) -> Any:
    if isinstance(value, _Pairs):
        result: Json = {}
        for name, item in value:
            here = f"{path}.{name}" if path else name
            if name in result:
                duplicates.append(here)
            result[name] = _unfold(item, here, duplicates)
        return result
    if isinstance(value, list):
        return [_unfold(item, f"{path}[{number}]", duplicates) for number, item in enumerate(value)]
    return value


def _check_kind(resource: Resource, obj: Json) -> None:
    version, kind = obj.get("apiVersion"), obj.get("kind")
    if version != resource.api_version and version is not None:
        unknown = tuple(f'unknown field "{name}"' for name in obj if name not in {"apiVersion", "kind", "metadata"})
        raise bad_request(
            f"the API version in the data ({version}) does not match the expected API version ({resource.api_version})",
            warnings=unknown,
        )
    if kind != resource.kind and kind is not None and not resource.custom:
        group = resource.group.removesuffix(".k8s.io") or "core"
        raise bad_request(
            f'{kind} in version "{version}" cannot be handled as a {resource.kind}: converting '
            f"({resource.version}.{kind}) to ({group}.{resource.kind}): unknown conversion"
        )


def _go_message(error: ValueError, body: bytes) -> str:
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    if error.pos >= len(error.doc.rstrip()) or not body.strip():
        return "unexpected end of JSON input"
    return f"invalid character '{error.doc[error.pos]}' looking for beginning of value"
