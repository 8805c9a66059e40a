"""The dev cluster's own API, below /devcluster/v1: tests and demos order faults there and look at the cluster.

    GET    state                 counts: VMs by printable status and readiness, VMIs by phase, nodes, watches
    GET    faults                the active faults, and how often each struck
    POST   faults                order a fault; answers with it and its id
    DELETE faults                lift all faults
    DELETE faults/{id}           lift one fault
    GET    nodes                 each node: alive or not, the requests of its pods, its cached images, its NodeShape
    POST   nodes                 {"name": ..., members of NodeShape}: add a node; pending pods may go there
    PATCH  nodes/{name}          members of NodeShape: change the node; what runs there goes on
    DELETE nodes/{name}          remove a node
    POST   nodes/{name}/kill     power it off; POST nodes/{name}/revive powers it on
    POST   namespaces            {"name": ...}
    POST   images                {"url": "docker://...", "digest": "sha256:...", "look": true}: new content in the registry;
                                 DataImportCrons of the URL find it at their next poll, or at once with `look`
    POST   compact               forget past changes: a watch or list from an older resourceVersion gets 410
    POST   restart               {"kill": true, "down": seconds, "starting": seconds}: stop the API server, start it again
    POST   reset                 remove every object and fault; create the first nodes and namespaces again

A fault is {"kind": ..., "verbs": [...], "resource": "virtualmachines", "namespace": glob, "name": glob, "labels":
selector, "count": n, "probability": p, "settings": {...}}; only `kind` is needed. Kinds, and their settings:

    error           status (500), reason, message, retry_after: the request has no effect
    delay           the request is served after `seconds`
    busy            `seats` (1) requests are served at a time, each takes `seconds` (0.02); `queue` (no limit) more wait, and the
                    others get 429 with `retry_after` (1), as from API priority and fairness
    hang            no answer until the fault is lifted; then the connection is cut
    reset-before    the connection is cut before the request has an effect
    reset-after     the connection is cut after the request had its effect
    forbidden       the request is refused for lack of a right. A fault that matches every resource also refuses the review that
                    asks for rights, as an API server does that has just started
    unserved        the kind is not known, as before its CustomResourceDefinition is installed
    quota           `limit`: a maximum of objects of the kind; or `memory`: a maximum of the pods' requests; `name`
    webhook-hang    writes of KubeVirt kinds fail after 10 s (scaled as all durations)
    virt-api-down   writes of KubeVirt kinds fail at once, subresources answer 503
    watch-break     the watch is cut after `seconds`, in the middle of the stream
    watch-silent    the watch stays open and sends nothing more
    watch-expire    the watch ends with 410, whatever its resourceVersion
    never-boots     the VMI stays Scheduled
    boot-fails      the VMI fails before it runs: a crash loop
    no-agent        the guest agent never connects;  agent-lost: it disconnects
    guest-dies      the VMI fails `seconds` after it started to run
    unready         the readiness probe fails;  flapping: it fails and succeeds in turn every `seconds`
    image-error     the container disk cannot be pulled; `message`. With resource `pods` it matches pods that hold no
                    guest, and their images. `node`: only on that node
    import-fails    the import of a DataVolume ends in an error at `percent` (60) with `message`, and is retried after a
                    backoff; each attempt counts. `fatal`: the phase becomes Failed and there is no retry
    import-stalls   an import stops at `percent` (60) without an error
    cron-import-fails  like import-fails, for the imports of the DataImportCron that it matches
    clone-hangs     the clone of a DataVolume never ends
    claim-never-binds  a claim stays Pending
    snapshot-fails  VolumeSnapshots end in the error `message`. The VirtualMachineSnapshot shows it in status.error at once
                    and becomes Failed at its failureDeadline (default: 5 min, scaled, but 3 s at least)
    snapshot-hangs  VolumeSnapshots never become ready
    volume-excluded `volume` (default: all) is left out of a VirtualMachineSnapshot though it could be included
    memory-save-fails  the memory of the VM is not kept, with `message`: the VirtualMachineSnapshot becomes Failed at once
    memory-save-hangs  keeping the memory never ends
    memory-mismatch the memory that the VMI is to start from is refused as that of another QEMU: the VMI fails before it runs,
                    and the memory of its VirtualMachineSnapshot counts as stale for good

Watch faults strike a watch when it is opened; with settings {"running": true} also watches that are already open. Guest
faults match a VMI by namespace, name and labels; storage faults match the DataVolume, DataImportCron, claim or snapshot
(the VirtualMachineSnapshot, or a VolumeSnapshot that belongs to none). An object that was struck stays so until the fault
is lifted. `count` limits the number of struck objects, for import-fails the number of attempts.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import orjson
from aiohttp import web

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.conditions import find, holds
from app.devcluster.apiserver.objects import is_deleting, phase_of, status_of
from app.devcluster.apiserver.registry import NODES, PODS, VIRTUAL_MACHINE_INSTANCES, VIRTUAL_MACHINES
from app.devcluster.apiserver.status import ApiError, Json, already_exists, bad_request
from app.devcluster.apiserver.store import Store
from app.devcluster.apiserver.watch import Watch
from app.devcluster.cdi.data_import_crons import DataImportCronController
from app.devcluster.cdi.image_sources import set_digest
from app.devcluster.faults.book import FaultBook
from app.devcluster.nodes.image_cache import ImageCache
from app.devcluster.nodes.node_lifecycle import NodeLifecycle
from app.devcluster.nodes.node_objects import shape_of
from app.devcluster.nodes.node_shapes import NodeShape, change_shape
from app.devcluster.nodes.power import NodePower
from app.devcluster.scheduling.ledger import Ledger

PREFIX = "/devcluster/v1/"


class Parts(Protocol):
    """What the admin API may reach of a cluster."""

    store: Store
    api: Api
    crons: DataImportCronController
    faults: FaultBook
    power: NodePower
    lifecycle: NodeLifecycle
    ledger: Ledger
    images: ImageCache

    @property
    def watches(self) -> Collection[Watch]: ...

    def add_node(self, name: str, shape: NodeShape | None = None) -> None: ...

    def change_node(self, name: str, given: Mapping[str, Any]) -> None: ...

    def add_namespace(self, name: str) -> None: ...

    def order_restart(self, *, kill: bool, down: float, starting: float) -> None: ...

    def reset(self) -> None: ...


class Admin:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def handle(self, request: web.Request) -> web.Response:
        try:
            body, status = await self._route(request, request.path.removeprefix(PREFIX).strip("/").split("/"))
        except ApiError as error:
            body, status = error.body, error.code
        return web.Response(status=status, body=orjson.dumps(body), content_type="application/json")

    async def _route(self, request: web.Request, path: list[str]) -> tuple[Any, int]:
        match (request.method, *path):
            case ("GET", "state"):
                return self._state(), 200
            case (_, "faults", *rest):
                return await self._faults(request, rest)
            case (_, "nodes", *rest):
                return await self._nodes(request, rest)
            case ("POST", "namespaces"):
                self._parts.add_namespace(_text(await _read(request), "name"))
                return {}, 201
            case ("POST", "images"):
                order = await _read(request)
                url = _text(order, "url")
                set_digest(self._parts.api, url, _text(order, "digest"))
                if order.get("look", False):
                    self._parts.crons.look_now(url)
                return {}, 200
            case ("POST", "compact"):
                self._parts.store.forget_history()
                return {"resourceVersion": str(self._parts.store.rv)}, 200
            case ("POST", "restart"):
                order = await _read(request)
                self._parts.order_restart(
                    kill=bool(order.get("kill", True)),
                    down=float(order.get("down", 0)),
                    starting=float(order.get("starting", 0)),
                )
                return {}, 202
            case ("POST", "reset"):
                self._parts.reset()
                return {}, 200
            case _:
                raise ApiError(
                    404,
                    "NotFound",
                    f"{request.method} {request.path} is not served; app.devcluster.server.admin lists what is",
                )

    async def _faults(self, request: web.Request, rest: list[str]) -> tuple[Any, int]:
        faults = self._parts.faults
        match (request.method, *rest):
            case ("GET",):
                return {"items": [fault.describe() for fault in faults.all()]}, 200
            case ("POST",):
                return faults.order(**await _read(request)).describe(), 201
            case ("DELETE",):
                faults.lift_all()
                return {}, 200
            case ("DELETE", fault_id):
                faults.lift(fault_id)
                return {}, 200
            case _:
                raise ApiError(405, "MethodNotAllowed", "faults take GET, POST and DELETE")

    async def _nodes(self, request: web.Request, rest: list[str]) -> tuple[Any, int]:
        lifecycle = self._parts.lifecycle
        match (request.method, *rest):
            case ("GET",):
                return {"items": [self._describe(stored.obj) for stored in self._parts.store.rows(NODES)]}, 200
            case ("POST",):
                given = await _read(request)
                name = _text(given, "name")
                if self._parts.store.get(NODES, "", name) is not None:
                    raise already_exists("", "nodes", name)
                self._parts.add_node(name, _shape(NodeShape(), {key: given[key] for key in given if key != "name"}))
                return self._describe(self._parts.api.get(NODES, "", name).obj), 201
            case ("PATCH", name):
                stored = self._parts.api.get(NODES, "", name)
                given = await _read(request)
                _shape(shape_of(stored.obj), given)
                self._parts.change_node(name, given)
                return self._describe(self._parts.api.get(NODES, "", name).obj), 200
            case ("DELETE", name):
                lifecycle.remove(name)
            case ("POST", name, "kill"):
                lifecycle.kill(name)
            case ("POST", name, "revive"):
                lifecycle.revive(name)
            case _:
                raise ApiError(
                    405,
                    "MethodNotAllowed",
                    "nodes take GET, POST, PATCH and DELETE {name}, and POST {name}/kill|revive",
                )
        return {}, 200

    def _describe(self, node: Json) -> Json:
        name = node["metadata"]["name"]
        ready = find(node["status"]["conditions"], "Ready") or {}
        return {
            "name": name,
            "alive": not self._parts.power.is_off(name),
            "ready": ready.get("status"),
            "used": {kind: amount for kind, amount in self._parts.ledger.used(name).items() if amount},
            "allocatable": node["status"]["allocatable"],
            "images": self._parts.images.held().get(name, []),
            "shape": shape_of(node).as_json(),
        }

    def _state(self) -> Json:
        store = self._parts.store
        machines = [stored.obj for stored in store.each(VIRTUAL_MACHINES)]
        instances = [stored.obj for stored in store.each(VIRTUAL_MACHINE_INSTANCES)]
        printable = Counter(status_of(vm).get("printableStatus", "") for vm in machines)
        warm = sum(
            1
            for vmi in instances
            if phase_of(vmi) == "Running"
            and not is_deleting(vmi)
            and all(holds(vmi["status"].get("conditions"), kind) for kind in ("Ready", "AgentConnected"))
            and not holds(vmi["status"].get("conditions"), "Paused")
        )
        return {
            "resourceVersion": str(store.rv),
            "virtualmachines": {"total": len(machines), "byStatus": dict(printable), "warm": warm},
            "virtualmachineinstances": {"total": len(instances), "byPhase": dict(Counter(map(phase_of, instances)))},
            "pods": sum(1 for _ in store.each(PODS)),
            "nodes": sum(1 for _ in store.each(NODES)),
            "faults": len(self._parts.faults.all()),
            "watches": len(self._parts.watches),
        }


async def _read(request: web.Request) -> dict[str, Any]:
    text = await request.text()
    try:
        given = json.loads(text or "{}")
    except ValueError as error:
        raise bad_request(f"the body is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise bad_request("the body must be a JSON object")
    return given


def _shape(shape: NodeShape, given: dict[str, Any]) -> NodeShape:
    try:
        return change_shape(shape, given)
    except ValueError as error:
        raise bad_request(str(error)) from error


def _text(given: dict[str, Any], name: str) -> str:
    value = given.get(name)
    if not isinstance(value, str) or not value:
        raise bad_request(f"'{name}' must be a string")
    return value
