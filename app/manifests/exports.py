"""Leaves out of a document what the cluster wrote into it, so that what `kubectl get -o yaml` prints can be applied."""

from typing import Any, Final

from app.manifests.values import Json

_METADATA: Final = frozenset(
    {
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "finalizers",
        "generation",
        "managedFields",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
        "uid",
    }
)
_ANNOTATIONS: Final = frozenset(
    {
        "kubectl.kubernetes.io/last-applied-configuration",
        "kubemacpool.io/transaction-timestamp",
        "kubevirt.io/latest-observed-api-version",  # KubeVirt v1.9.0, as the next
        "kubevirt.io/storage-observed-api-version",
        "restore.kubevirt.io/lastRestoreUID",
    }
)
_NAMES: Final = frozenset({"name", "generateName", "namespace"})


def clean(body: Json) -> tuple[Json, list[str]]:
    """A copy of a document without what the cluster wrote, and notes about what was left out.

    A template's name and namespace are left out too, as KubeVirt ignores them. A field that is null needs no note.
    """
    written: list[str] = []
    names: list[str] = []
    cleaned = _clean_object(body, "", written, names)
    notes = []
    if written:
        notes.append(f"left out, as the cluster writes it: {', '.join(written)}")
    if names:
        notes.append(f"left out, as in KubeVirt a template has no name of its own: {', '.join(names)}")
    return cleaned, notes


def _clean(value: Any, path: str, written: list[str], names: list[str]) -> Any:
    if isinstance(value, list):
        return [_clean(item, f"{path}[{index}]", written, names) for index, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("metadata"), dict):
        return _clean_object(value, path, written, names)
    return {key: _clean(item, _join(path, key), written, names) for key, item in value.items()}


def _clean_object(body: Json, path: str, written: list[str], names: list[str]) -> Json:
    """A mapping with metadata: the document, or a template in it."""
    kept: Json = {}
    for key, value in body.items():
        at = _join(path, key)
        if key == "status":
            _leave_out(at, value, written)
        elif key == "metadata" and isinstance(value, dict):
            # A template in a list has a name that its neighbours refer to.
            is_nameless = bool(path) and not path.endswith("]")
            kept[key] = _clean_metadata(value, at, written, names if is_nameless else None)
        else:
            kept[key] = _clean(value, at, written, names)
    return kept


def _clean_metadata(metadata: Json, path: str, written: list[str], names: list[str] | None) -> Json:
    kept: Json = {}
    for key, value in metadata.items():
        at = _join(path, key)
        if key in _METADATA or (key == "generateName" and metadata.get("name")):
            _leave_out(at, value, written)
        elif names is not None and key in _NAMES:
            _leave_out(at, value, names)
        elif key == "annotations" and isinstance(value, dict):
            written += [f"{at}.{name}" for name in value if name in _ANNOTATIONS]
            kept[key] = {name: text for name, text in value.items() if name not in _ANNOTATIONS}
        else:
            kept[key] = value
    return kept


def _leave_out(path: str, value: object, found: list[str]) -> None:
    if value not in (None, [], {}):
        found.append(path)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
