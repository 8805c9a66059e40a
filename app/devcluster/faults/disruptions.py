"""Applies ordered faults to requests: before a verb, after its effect, in webhooks, quotas and watches."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

import orjson
from aiohttp import web

from app.devcluster.apiserver.pod_resources import pod_requests
from app.devcluster.apiserver.quantities import whole
from app.devcluster.apiserver.registry import PODS, VIRTUAL_MACHINES, Resource, find
from app.devcluster.apiserver.requests import Target
from app.devcluster.apiserver.status import ApiError, Json, PlainError, describe
from app.devcluster.apiserver.store import Store
from app.devcluster.apiserver.watch import Watch
from app.devcluster.clock import Clock
from app.devcluster.durations import Durations
from app.devcluster.faults.book import WATCH_KINDS, Fault, FaultBook

_BEFORE = frozenset({"error", "delay", "busy", "hang", "reset-before", "unserved"})
_AFTER = frozenset({"reset-after"})
_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    410: "Expired",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}
_KUBEVIRT_GROUPS = frozenset({"kubevirt.io", "pool.kubevirt.io", "snapshot.kubevirt.io", "clone.kubevirt.io"})
_REFUSED = "dial tcp 10.96.0.10:443: connect: connection refused"
_MUTATOR = "https://virt-api.kubevirt.svc:443/virtualmachines-mutate?timeout=10s"


class Stage(Enum):
    """Stages of a starting API server: it listens, then serves custom kinds and knows the roles, then is ready."""

    NO_CUSTOM_PATHS = 1
    NOT_READY = 2
    UP = 3


@dataclass(slots=True)
class _Seats:
    """What serves requests under a `busy` fault, and how many wait for it."""

    free: asyncio.Semaphore
    waiting: int = 0


class ResetError(ConnectionError):
    """The connection was cut on order."""


@dataclass
class Disruptions:
    """`stage`: how far the API server has come after a restart."""

    faults: FaultBook
    store: Store
    clock: Clock
    durations: Durations
    stage: Stage = Stage.UP
    _seats: dict[str, _Seats] = field(default_factory=dict)
    _down_since: dict[str, datetime] = field(default_factory=dict)
    _cut: set[int] = field(default_factory=set)
    _reached: set[tuple[str, int]] = field(default_factory=set)

    def health(self, path: str) -> web.Response:
        if self.stage is not Stage.UP and path != "/livez":
            text = "[+]ping ok\n[+]log ok\n[-]poststarthook/crd-informer-synced failed: reason withheld\nreadyz check failed\n"
            return web.Response(status=500, text=text)
        return web.Response(text="ok")

    def forbids(self, verb: str, resource: str, namespace: str, name: str = "", *, asks: bool = False) -> bool:
        """Whether a fault takes the right away. `asks`: it is only asked for, which strikes nothing."""
        if not asks:
            return self.faults.strike(frozenset({"forbidden"}), verb, resource, namespace, name) is not None
        return any(
            fault.kind == "forbidden" and not fault.spent and fault.matches(verb, resource, namespace, name, None)
            for fault in self.faults.all()
        )

    async def before(self, request: web.Request, target: Target, verb: str, closing: asyncio.Event) -> None:
        """Apply faults before the verb: raises ApiError for an error, waits for a delay, cuts the connection."""
        if self.stage is Stage.NO_CUSTOM_PATHS and target.group not in {
            "",
            "coordination.k8s.io",
            "apps",
            "storage.k8s.io",
        }:
            raise ApiError(
                503,
                "ServiceUnavailable",
                "the request has been made before all known HTTP paths have been installed, please try again",
                details={"retryAfterSeconds": 5},
                retry_after=5,
            )
        fault = await self._strike(_BEFORE, request, target, verb)
        if fault is None:
            return
        match fault.kind:
            case "error":
                raise _ordered_error(fault)
            case "delay":
                await self._sleep(float(fault.settings.get("seconds", 1.0)))
            case "busy":
                await self._take_seat(fault)
            case "unserved":
                raise PlainError(404, "404 page not found\n")
            case "hang":
                await self._hang(fault, closing)
                _cut(request)
            case _:
                _cut(request)

    async def after(self, request: web.Request, target: Target, verb: str) -> None:
        """Cut the connection where a fault wants the answer lost."""
        if await self._strike(_AFTER, request, target, verb) is not None:
            _cut(request)

    def check_quota(self, resource: Resource, namespace: str, obj: Json) -> None:
        """Raises ApiError 403 beyond an ordered quota of `settings.limit` objects of the kind in the namespace."""
        name = (obj.get("metadata") or {}).get("name", "")
        for fault in self.faults.all():
            if fault.kind != "quota" or fault.settings.get("memory") is not None:
                continue
            if not fault.matches("create", resource.plural, namespace, name, None):
                continue
            limit, used = int(fault.settings.get("limit", 0)), self.store.count(resource, namespace)
            if used < limit:
                continue
            fault.struck += 1
            counted = f"count/{resource.qualified}"
            message = (
                f'{resource.qualified} "{name}" is forbidden: exceeded quota: {fault.settings.get("name", "quota")}, '
                f"requested: {counted}=1, used: {counted}={used}, limited: {counted}={limit}"
            )
            raise ApiError(403, "Forbidden", message, details=describe(resource.group, resource.plural, name))

    async def check_webhooks(self, resource: Resource, verb: str) -> None:
        """virt-api answers the webhooks of KubeVirt's kinds. While it hangs, writes fail late; while it is down, at once."""
        if resource.group not in _KUBEVIRT_GROUPS or verb == "delete":
            return
        for kind, why in (
            ("webhook-hang", "context deadline exceeded"),
            ("virt-api-down", _REFUSED),
        ):
            fault = self.faults.strike(frozenset({kind}), verb, resource.plural, "", "")
            if fault is None:
                continue
            if kind == "webhook-hang":
                await self._sleep(self.durations.webhook_timeout)
            name = "virtualmachines-mutator" if resource is VIRTUAL_MACHINES else f"{resource.singular}-mutator"
            told = f'failed calling webhook "{name}.kubevirt.io": failed to call webhook: Post "{_MUTATOR}": {why}'
            raise ApiError(
                500, "InternalError", f"Internal error occurred: {told}", details={"causes": [{"message": told}]}
            )

    def check_aggregated(self) -> None:
        """While virt-api is down the proxy first says why, later only that the service is unavailable."""
        fault = next((item for item in self.faults.all() if item.kind == "virt-api-down" and not item.spent), None)
        if fault is None:
            return
        now = self.clock.now()
        since = self._down_since.setdefault(fault.id, now)
        if (now - since).total_seconds() < self.durations.aggregation_notice:
            raise PlainError(503, f"error trying to reach service: {_REFUSED}\n")
        raise PlainError(503, "service unavailable\n")

    def admit_watch(self, watch: Watch, target: Target, version: str) -> None:
        """Expire, silence or cut a new watch as ordered; `reach_watches` does so for watches that are already open."""

        def strikes(kind: str) -> Fault | None:
            return self.faults.strike(frozenset({kind}), "watch", target.plural, target.namespace, target.name)

        fault = strikes("watch-expire")
        if fault is not None and version not in {"", "0"}:
            watch.expire(int(version), self.store.rv)
            return
        if strikes("watch-silent") is not None:
            watch.silent = True
        fault = strikes("watch-break")
        if fault is not None:
            delay = float(fault.settings.get("seconds", 0.0))
            self.clock.call_later(delay, lambda: self.cut_watch(watch))

    def reach_watches(self, watches: Collection[Watch]) -> None:
        """Apply each watch fault with `running` once to each open watch."""
        for fault in self.faults.all():
            if fault.kind not in WATCH_KINDS or not fault.settings.get("running"):
                continue
            for watch in tuple(watches):
                reached = (fault.id, watch.serial)
                plural = watch.resource.plural
                if reached in self._reached or not fault.matches("watch", plural, watch.namespace, "", None):
                    continue
                self._reached.add(reached)
                fault.struck += 1
                if fault.kind == "watch-break":
                    self.cut_watch(watch)
                elif fault.kind == "watch-silent":
                    watch.silent = True
                else:
                    watch.expire(watch.seen, self.store.rv)

    def refuse_pod(self, pod: Json) -> str | None:
        """Why a pod exceeds an ordered quota on the memory requests in its namespace; None where it does not."""
        namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        for fault in self.faults.all():
            limit = fault.settings.get("memory")
            if fault.kind != "quota" or limit is None or not fault.matches("create", "pods", namespace, name, None):
                continue
            asked = pod_requests(pod).get("memory", 0)
            used = sum(pod_requests(other.obj).get("memory", 0) for other in self.store.rows(PODS, namespace))
            if used + asked > whole(limit):
                fault.struck += 1
                return (
                    f"exceeded quota: {fault.settings.get('name', 'quota')}, requested: requests.memory={asked}, "
                    f"used: requests.memory={used}, limited: requests.memory={limit}"
                )
        return None

    def cut_watch(self, watch: Watch) -> None:
        """End a watch without the closing chunk of its stream."""
        self._cut.add(watch.serial)
        watch.close()

    def is_cut(self, watch: Watch) -> bool:
        if watch.serial in self._cut:
            self._cut.discard(watch.serial)
            return True
        return False

    async def _subject(self, request: web.Request, target: Target) -> tuple[str, dict[str, str] | None]:
        """Name and labels of the object of a request; for a create they are in the body."""
        if target.name:
            resource = find(target.group, target.version, target.plural)
            stored = self.store.get(resource, target.namespace, target.name) if resource else None
            return target.name, (stored.obj["metadata"].get("labels") or {}) if stored else None
        if request.method != "POST":
            return "", None
        try:
            metadata = orjson.loads(await request.read())["metadata"]
            return str(metadata.get("name") or metadata.get("generateName") or ""), metadata.get("labels") or {}
        except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
            return "", None

    async def _strike(self, kinds: frozenset[str], request: web.Request, target: Target, verb: str) -> Fault | None:
        if not any(fault.kind in kinds for fault in self.faults.all()):
            return None
        name, labels = await self._subject(request, target)
        return self.faults.strike(kinds, verb, target.plural, target.namespace, name, labels)

    async def _take_seat(self, fault: Fault) -> None:
        settings = fault.settings
        seats = self._seats.setdefault(fault.id, _Seats(asyncio.Semaphore(int(settings.get("seats", 1)))))
        queue = settings.get("queue")
        if seats.free.locked() and queue is not None and seats.waiting >= queue:
            retry = int(settings.get("retry_after", 1))
            message = "the server has received too many requests and has asked us to try again later"
            raise ApiError(429, "TooManyRequests", message, details={"retryAfterSeconds": retry}, retry_after=retry)
        seats.waiting += 1
        try:
            await seats.free.acquire()
        finally:
            seats.waiting -= 1
        try:
            await self._sleep(float(settings.get("seconds", 0.02)))
        finally:
            seats.free.release()

    async def _sleep(self, seconds: float) -> None:
        done = asyncio.Event()
        self.clock.call_later(seconds, done.set)
        await done.wait()

    async def _hang(self, fault: Fault, closing: asyncio.Event) -> None:
        """Wait until the fault is lifted or the server stops."""
        wake = asyncio.Event()
        self.faults.listen(wake.set)
        while not closing.is_set() and fault in self.faults.all():
            wake.clear()
            waits = [asyncio.ensure_future(wake.wait()), asyncio.ensure_future(closing.wait())]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()


def _ordered_error(fault: Fault) -> ApiError:
    code = int(fault.settings.get("status", 500))
    reason = fault.settings.get("reason", _REASONS.get(code, "InternalError"))
    retry = fault.settings.get("retry_after")
    message = fault.settings.get("message", f"ordered by {fault.id}")
    details: Json = {"retryAfterSeconds": int(retry)} if retry is not None else {}
    return ApiError(code, reason, message, details=details, retry_after=None if retry is None else int(retry))


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
    raise ResetError("cut on order")
