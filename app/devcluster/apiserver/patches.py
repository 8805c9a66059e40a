"""JSON patch, merge patch, and a simple server-side apply. No argument is changed in place."""

from typing import Any

import jsonpatch

from app.devcluster.apiserver.status import Json, bad_request, patch_refused

_OPERATIONS = frozenset({"add", "remove", "replace", "move", "copy", "test"})


def apply_json_patch(target: Json, patch: object) -> Json:
    """Raises ApiError 422 for an operation that fails, also for a failed `test`; 400 for what is not a patch.

    Departs from RFC 6902 as the API server does: `replace` of a missing member adds it.
    """
    if not isinstance(patch, list):
        kind = _go_kind(patch)
        raise bad_request(
            f"error decoding patch: json: cannot unmarshal {kind} into Go value of type []handlers.jsonPatchOp"
        )
    operations = [_lenient(target, operation) for operation in patch]
    try:
        patched = jsonpatch.JsonPatch(operations).apply(target)
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException, TypeError, KeyError) as error:
        raise patch_refused() from error
    if not isinstance(patched, dict):
        raise patch_refused()
    return patched


def apply_merge_patch(target: Json, patch: object) -> Json:
    """RFC 7386. Raises ApiError 400 where the patch is not an object."""
    if not isinstance(patch, dict):
        kind = _go_kind(patch)
        raise bad_request(
            f"error decoding patch: json: cannot unmarshal {kind} into Go value of type map[string]interface {{}}"
        )
    merged: Json = _merged(target, patch)
    return merged


def apply_configuration(target: Json, configuration: Json) -> Json:
    """Server-side apply without field ownership: it sets the given members and never removes any."""
    metadata = {key: value for key, value in configuration.get("metadata", {}).items() if key != "managedFields"}
    merged: Json = _merged(target, {**configuration, "metadata": metadata})
    return merged


def _merged(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return result


def _lenient(target: Json, operation: object) -> Json:
    if not isinstance(operation, dict) or operation.get("op") not in _OPERATIONS:
        raise patch_refused()
    if operation["op"] != "replace" or "path" not in operation:
        return operation
    parent_path, _, last = str(operation["path"]).rpartition("/")
    try:
        parent = jsonpatch.JsonPointer(parent_path).resolve(target)
    except jsonpatch.JsonPointerException:
        return operation
    name = last.replace("~1", "/").replace("~0", "~")
    if isinstance(parent, dict) and name not in parent:
        return {**operation, "op": "add"}
    return operation


def _go_kind(value: object) -> str:
    match value:
        case dict():
            return "object"
        case list():
            return "array"
        case bool():
            return "bool"
        case str():
            return "string"
        case _:
            return "number"
