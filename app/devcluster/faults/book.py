"""Faults that a test orders: what they match, how often they strike, and which ones are active."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from app.devcluster.apiserver.query_selectors import Requirement, parse_labels
from app.devcluster.apiserver.status import ApiError, Json, bad_request
from app.devcluster.durations import Jitter

REQUEST_KINDS = frozenset(
    {
        "error",
        "delay",
        "busy",
        "hang",
        "reset-before",
        "reset-after",
        "forbidden",
        "unserved",
        "quota",
        "webhook-hang",
        "virt-api-down",
    }
)
WATCH_KINDS = frozenset({"watch-break", "watch-silent", "watch-expire"})
GUEST_KINDS = frozenset(
    {
        "never-boots",
        "boot-fails",
        "no-agent",
        "agent-lost",
        "guest-dies",
        "unready",
        "flapping",
        "image-error",
        "memory-mismatch",
    }
)
STORAGE_KINDS = frozenset(
    {
        "import-fails",
        "import-stalls",
        "cron-import-fails",
        "clone-hangs",
        "claim-never-binds",
        "snapshot-fails",
        "snapshot-hangs",
        "volume-excluded",
        "memory-save-fails",
        "memory-save-hangs",
    }
)
KINDS = REQUEST_KINDS | WATCH_KINDS | GUEST_KINDS | STORAGE_KINDS
_FIELDS = frozenset({"kind", "verbs", "resource", "namespace", "name", "labels", "count", "probability", "settings"})


@dataclass(slots=True)
class Fault:
    """One order. Empty matchers match anything; `name` and `namespace` are globs, `labels` a label selector.

    `count` strikes and it is spent (None: no end). For guest and storage faults a strike is an object: one that was struck
    stays so for as long as the fault stands; for `import-fails` a strike is one attempt. `settings` depend on the kind: see `app.devcluster.server.admin`.
    """

    id: str
    kind: str
    verbs: tuple[str, ...] = ()
    resource: str = ""
    namespace: str = ""
    name: str = ""
    labels: tuple[Requirement, ...] = ()
    count: int | None = None
    probability: float = 1.0
    settings: dict[str, Any] = field(default_factory=dict)
    struck: int = 0
    given: Json = field(default_factory=dict)
    _marked: dict[str, bool] = field(default_factory=dict)

    @property
    def spent(self) -> bool:
        return self.count is not None and self.struck >= self.count

    def matches(self, verb: str, resource: str, namespace: str, name: str, labels: dict[str, str] | None) -> bool:
        if self.verbs and verb not in self.verbs:
            return False
        if self.resource and not fnmatchcase(resource, self.resource):
            return False
        if self.namespace and not fnmatchcase(namespace, self.namespace):
            return False
        if self.name and not fnmatchcase(name, self.name):
            return False
        if not self.labels:
            return True
        return labels is not None and all(item.matches(labels) for item in self.labels)

    def strike(self, jitter: Jitter) -> bool:
        if self.spent or not (self.probability >= 1 or jitter.chance(self.probability)):
            return False
        self.struck += 1
        return True

    def strike_once(self, uid: str, jitter: Jitter) -> bool:
        """Like `strike`, but decided once for each `uid`."""
        if uid not in self._marked:
            self._marked[uid] = self.strike(jitter)
        return self._marked[uid]

    def forget(self, uid: str) -> None:
        for mark in [mark for mark in self._marked if mark.startswith(uid)]:
            del self._marked[mark]

    def describe(self) -> Json:
        return {**self.given, "id": self.id, "struck": self.struck, "spent": self.spent}


class FaultBook:
    """All active faults. Listeners are called when one is ordered or lifted, so that running guests can react."""

    def __init__(self, jitter: Jitter) -> None:
        self._jitter = jitter
        self._faults: dict[str, Fault] = {}
        self._numbers = itertools.count(1)
        self._listeners: list[Callable[[], None]] = []

    def listen(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def order(self, **given: Any) -> Fault:
        """Activate a fault. Raises ApiError 400 for an order that makes no sense."""
        kind = given.get("kind")
        if kind not in KINDS:
            raise bad_request(f"fault kind '{kind}' is not known; use one of {', '.join(sorted(KINDS))}")
        unknown = set(given) - _FIELDS
        if unknown:
            raise bad_request(
                f"fault field '{min(unknown)}' is not known; use {', '.join(sorted(_FIELDS))} and put the rest in settings"
            )
        _check_types(given)
        verbs = given.get("verbs") or ()
        fault = Fault(
            id=f"fault-{next(self._numbers)}",
            kind=kind,
            verbs=(verbs,) if isinstance(verbs, str) else tuple(verbs),
            resource=given.get("resource", ""),
            namespace=given.get("namespace", ""),
            name=given.get("name", ""),
            labels=parse_labels(given.get("labels", "")),
            count=given.get("count"),
            probability=float(given.get("probability", 1.0)),
            settings=dict(given.get("settings") or {}),
            given=dict(given),
        )
        self._faults[fault.id] = fault
        self._tell()
        return fault

    def lift(self, fault_id: str) -> None:
        if self._faults.pop(fault_id, None) is None:
            raise ApiError(
                404, "NotFound", f"fault '{fault_id}' is not active; list them with GET /devcluster/v1/faults"
            )
        self._tell()

    def lift_all(self) -> None:
        self._faults.clear()
        self._tell()

    def all(self) -> list[Fault]:
        return list(self._faults.values())

    def strike(
        self,
        kinds: frozenset[str],
        verb: str,
        resource: str,
        namespace: str,
        name: str,
        labels: dict[str, str] | None = None,
    ) -> Fault | None:
        """The first fault of these kinds that strikes this request, which is counted; None where none does."""
        for fault in self._faults.values():
            if fault.kind not in kinds or not fault.matches(verb, resource, namespace, name, labels):
                continue
            if fault.strike(self._jitter):
                return fault
        return None

    def guest(self, kind: str, vmi: Json, node: str = "") -> Fault | None:
        """The fault of this kind that strikes a guest (on `node`, where given), or None."""
        return self.on_object(kind, "virtualmachineinstances", vmi, node=node)

    def on_object(self, kind: str, plural: str, obj: Json, turn: str = "", *, node: str = "") -> Fault | None:
        """The fault of this kind that strikes an object, or None. It is decided once for each object and `turn`.

        A fault whose settings name a `node` strikes on no other.
        """
        metadata = obj["metadata"]
        for fault in self._faults.values():
            if fault.kind != kind or fault.settings.get("node", node) != node:
                continue
            labels = metadata.get("labels") or {}
            if fault.matches("", plural, metadata["namespace"], metadata["name"], labels) and (
                fault.strike_once(f"{metadata['uid']}{turn}", self._jitter)
            ):
                return fault
        return None

    def forget(self, uid: str) -> None:
        for fault in self._faults.values():
            fault.forget(uid)

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()


def _check_types(given: dict[str, Any]) -> None:
    """Check the whole order before it is active: a bad one must not break later requests."""
    verbs = given.get("verbs") or ()
    if not isinstance(verbs, str | list | tuple) or not all(isinstance(verb, str) for verb in verbs):
        raise bad_request("'verbs' must be a list of verbs such as create, update, patch, get, list, watch, delete")
    for name in ("resource", "namespace", "name", "labels"):
        if not isinstance(given.get(name, ""), str):
            raise bad_request(f"'{name}' must be a string")
    count = given.get("count")
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise bad_request("'count' must be a whole number above 0, or left out")
    probability = given.get("probability", 1.0)
    if not isinstance(probability, int | float) or isinstance(probability, bool) or not 0 <= probability <= 1:
        raise bad_request("'probability' must be a number from 0 to 1")
    settings = given.get("settings") or {}
    if not isinstance(settings, dict):
        raise bad_request("'settings' must be an object")
    percent = settings.get("percent", 0)
    if not isinstance(percent, int | float) or isinstance(percent, bool) or not 0 <= percent <= 100:  # noqa: PLR2004
        raise bad_request("'settings.percent' must be a number from 0 to 100")
    for name in ("seconds", "status", "retry_after", "limit", "seats", "queue"):
        value = settings.get(name, 0)
        if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
            raise bad_request(f"'settings.{name}' must be a number, not below 0")
