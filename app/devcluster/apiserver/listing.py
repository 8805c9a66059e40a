"""Lists: options, paging, versions, and the three forms of a list (objects, Table, metadata only)."""

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Self

import orjson

from app.devcluster.apiserver import schemas
from app.devcluster.apiserver.query_selectors import Selector, parse_selector
from app.devcluster.apiserver.registry import Resource
from app.devcluster.apiserver.status import ApiError, Json, bad_option, bad_request
from app.devcluster.apiserver.store import Gone, Store, Stored
from app.devcluster.apiserver.times import parse_stamp

_NAME_COLUMN = {
    "name": "Name",
    "type": "string",
    "format": "name",
    "description": "Name must be unique within a namespace. Is required when creating resources, although some "
    "resources may allow a client to request the generation of an appropriate name automatically. Name is primarily "
    "intended for creation idempotence and configuration definition. Cannot be updated. More info: "
    "https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names",
    "priority": 0,
}
_EXPIRED_PAGE = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list "
    "without the continue parameter, or use the continue token in this response to retrieve the remainder of the "
    "results. Continuing with the provided token results in an inconsistent list - objects that were created, "
    "modified, or deleted between the time the first chunk was returned and now may show up in the list."
)


@dataclass(frozen=True, slots=True)
class ListOptions:
    selector: Selector
    limit: int
    token: str
    version: str
    match: str
    watch: bool
    bookmarks: bool
    timeout: float | None
    initial_events: bool | None

    @classmethod
    def parse(cls, resource: Resource, query: Mapping[str, str]) -> Self:
        """Raises ApiError 400 or 422 in the server's words."""
        selector = parse_selector(resource, query.get("labelSelector", ""), query.get("fieldSelector", ""))
        initial = query.get("sendInitialEvents")
        options = cls(
            selector=selector,
            limit=_whole(query.get("limit", "")),
            token=query.get("continue", ""),
            version=query.get("resourceVersion", ""),
            match=query.get("resourceVersionMatch", ""),
            watch=is_true(query.get("watch", "")),
            bookmarks=is_true(query.get("allowWatchBookmarks", "")),
            timeout=float(_whole(query["timeoutSeconds"])) if query.get("timeoutSeconds") else None,
            initial_events=None if initial is None else is_true(initial),
        )
        options.check()
        return options

    def check(self) -> None:
        if self.watch:
            self._check_watch()
            return
        if self.match and not self.version:
            raise _forbidden("resourceVersionMatch is forbidden unless resourceVersion is provided")
        if self.match not in {"", "Exact", "NotOlderThan"}:
            message = f'Unsupported value: "{self.match}": supported values: "Exact", "NotOlderThan", ""'
            raise bad_option("ListOptions", "resourceVersionMatch", "FieldValueNotSupported", message)
        if self.match == "Exact" and self.version == "0":
            raise _forbidden('resourceVersionMatch "exact" is forbidden for resourceVersion "0"')
        if self.token and self.version not in {"", "0"}:
            raise bad_request("specifying resource version is not allowed when using continue")

    def _check_watch(self) -> None:
        if self.initial_events is None and self.match:
            raise _forbidden("resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided")
        if self.initial_events is not None and self.match != "NotOlderThan":
            raise _forbidden("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan")


def is_true(text: str) -> bool:
    """Reads a flag as Go's strconv.ParseBool does; Python clients send `True`."""
    return text in {"1", "t", "T", "true", "TRUE", "True"}


@dataclass(slots=True)
class Page:
    rows: list[Stored]
    version: int
    token: str = ""
    remaining: int | None = None


def list_page(store: Store, resource: Resource, namespace: str, options: ListOptions) -> Page:
    """Raises ApiError: 400 for a bad version or token, 410 for a version that is forgotten, 504 for one in the future."""
    if options.token:
        version, start = _open_token(options.token)
        version = store.rv if version < 0 else version
        try:
            rows = store.rows_at(resource, namespace, version)
        except Gone as error:
            raise _page_gone(start) from error
        rows = [stored for stored in rows if _path(stored, namespace) >= start]
    else:
        wanted = parse_version(options.version)
        refuse_future(store, wanted)
        version = wanted if options.match == "Exact" or (options.limit > 0 and wanted) else store.rv
        try:
            rows = store.rows_at(resource, namespace, version)
        except Gone as error:
            raise ApiError(410, "Expired", "The resourceVersion for the provided list is too old.") from error
    if not options.selector.empty:
        rows = [stored for stored in rows if options.selector.matches(stored.obj)]
    limit = 0 if options.version == "0" else options.limit
    if limit <= 0 or len(rows) <= limit:
        return Page(rows, version)
    kept = rows[:limit]
    token = _make_token(version, f"/{_path(kept[-1], namespace)}\0")
    remaining = len(rows) - limit if options.selector.empty else None
    return Page(kept, version, token, remaining)


def parse_version(text: str) -> int:
    if not text:
        return 0
    if not text.isdecimal():
        raise bad_request(
            f'invalid resource version: resourceVersion: Invalid value: "{text}": strconv.ParseUint: parsing '
            f'"{text}": invalid syntax'
        )
    return int(text)


def refuse_future(store: Store, version: int) -> None:
    if version <= store.rv:
        return
    raise ApiError(
        504,
        "Timeout",
        f"Timeout: Too large resource version: {version}, current: {store.rv}",
        details={
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        },
        retry_after=1,
    )


def render_list(resource: Resource, page: Page) -> bytes:
    metadata = _list_metadata(page)
    if resource.custom:
        metadata.setdefault("continue", "")
    head = orjson.dumps({"kind": resource.list_kind, "apiVersion": resource.api_version, "metadata": metadata})
    return head[:-1] + b',"items":[' + b",".join(_items(resource, page.rows)) + b"]}"


def render_table(resource: Resource, page: Page, now: datetime) -> bytes:
    definitions = [_NAME_COLUMN]
    columns = schemas.columns(resource) or [{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]
    for column in columns:
        fallback = f"Custom resource definition column (in JSONPath format): {column['jsonPath']}"
        definitions.append(
            {
                "name": column["name"],
                "type": column["type"],
                "format": column.get("format", ""),
                "description": column.get("description", fallback),
                "priority": column.get("priority", 0),
            }
        )
    rows = [
        {
            "cells": [stored.obj["metadata"]["name"], *(_cell(stored.obj, column, now) for column in columns)],
            "object": partial(stored.obj),
        }
        for stored in page.rows
    ]
    table = {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": _list_metadata(page),
        "columnDefinitions": definitions,
        "rows": rows,
    }
    return orjson.dumps(table)


def render_partial(page: Page) -> bytes:
    return orjson.dumps(
        {
            "kind": "PartialObjectMetadataList",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": _list_metadata(page),
            "items": [partial(stored.obj) for stored in page.rows],
        }
    )


def _list_metadata(page: Page) -> Json:
    """In every form of a list, so that a client knows whether more follows."""
    metadata: Json = {"resourceVersion": str(page.version)}
    if page.token:
        metadata["continue"] = page.token
    if page.remaining is not None:
        metadata["remainingItemCount"] = page.remaining
    return metadata


def partial(obj: Json) -> Json:
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj["metadata"]}


def _items(resource: Resource, rows: list[Stored]) -> Iterable[bytes]:
    if resource.custom:
        return (stored.raw for stored in rows)
    return (
        orjson.dumps({key: value for key, value in stored.obj.items() if key not in {"kind", "apiVersion"}})
        for stored in rows
    )


def _whole(text: str) -> int:
    if not text:
        return 0
    try:
        return int(text)
    except ValueError as error:
        raise bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax') from error


def _forbidden(message: str) -> ApiError:
    return bad_option("ListOptions", "resourceVersionMatch", "FieldValueForbidden", f"Forbidden: {message}")


def _path(stored: Stored, namespace: str) -> str:
    metadata = stored.obj["metadata"]
    if namespace or "namespace" not in metadata:
        return str(metadata["name"])
    return f"{metadata['namespace']}/{metadata['name']}"


def _make_token(version: int, start: str) -> str:
    text = json.dumps({"v": "meta.k8s.io/v1", "rv": version, "start": start}, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _open_token(token: str) -> tuple[int, str]:
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except ValueError as error:
        raise bad_request(f"invalid continue token: continue key is not valid: {error}") from error
    try:
        opened = json.loads(raw)
        return int(opened["rv"]), str(opened["start"]).removeprefix("/")
    except (ValueError, KeyError, TypeError) as error:
        shown = chr(raw[0]) if raw and raw[0] < 0x80 else f"\\x{raw[0]:02x}" if raw else ""  # noqa: PLR2004  # ASCII
        raise bad_request(
            f"invalid continue token: continue key is not valid: invalid character '{shown}' looking for beginning "
            "of value"
        ) from error


def _page_gone(start: str) -> ApiError:
    error = ApiError(410, "Expired", _EXPIRED_PAGE)
    error.metadata = {"continue": _make_token(-1, start)}
    return error


def _cell(obj: Json, column: Json, now: datetime) -> object:
    value = _json_path(obj, column["jsonPath"])
    if column["type"] != "date" or not isinstance(value, str):
        return value
    seconds = int((now - parse_stamp(value)).total_seconds())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _json_path(obj: object, path: str) -> object:
    """Supports the two forms that printer columns use: dotted members, and the element of a list with a given `type`."""
    head, found, tail = path.partition("[?(@.type=='")
    for part in filter(None, head.split(".")):
        obj = obj.get(part) if isinstance(obj, dict) else None
    if not found:
        return obj
    wanted, _, rest = tail.partition("')]")
    for item in obj if isinstance(obj, list) else []:
        if item.get("type") == wanted:
            return _json_path(item, rest)
    return None
