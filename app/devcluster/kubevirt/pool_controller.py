"""VirtualMachinePools: members have a controller reference; missing ones are created under the lowest free index.

The controller reacts `durations.pool_reaction` after a change, as the real one does after about a second, to all changes
since then.
"""

from typing_extensions import override

from app.devcluster.apiserver.controller import KindController
from app.devcluster.apiserver.deletion import ORPHAN
from app.devcluster.apiserver.objects import (
    Key,
    annotations_of,
    finalizers_of,
    labels_of,
    new_object,
    owned_by,
    status_of,
    with_finalizer,
    without_finalizer,
)
from app.devcluster.apiserver.registry import POOLS, VIRTUAL_MACHINES
from app.devcluster.apiserver.status import ApiError, Json
from app.devcluster.apiserver.store import Change, Stored
from app.devcluster.kubevirt.admission import with_machine_defaults

FINALIZER = "pool.kubevirt.io/finalizer"
_REVISION = "kubevirt.io/vm-pool-revision-name"


class PoolController(KindController):
    resource = POOLS

    @override
    def resume(self) -> None:
        super().resume()
        for stored in self._store.each(VIRTUAL_MACHINES):
            self._release_going(stored)

    @override
    def _react(self, change: Change) -> None:
        if change.resource is VIRTUAL_MACHINES:
            self._queue_owners(change)

    @override
    def _handle(self, key: Key) -> None:
        for machine in self._store.rows(VIRTUAL_MACHINES, key[0]):
            self._release_going(machine)
        super()._handle(key)

    @override
    def _reconcile(self, stored: Stored) -> None:
        if stored.deleting:
            self._let_go(stored)
            return
        stored = self._api.modify(POOLS, stored, lambda obj: with_finalizer(obj, FINALIZER))
        members = self._members(stored.obj)
        replicas = stored.obj["spec"].get("replicas", 1)
        first = "status" not in stored.obj
        if not stored.obj["spec"].get("paused"):
            self._create(stored.obj, replicas - len(members))
            self._scale_in(stored.obj, members, len(members) - replicas)
        # Its first status counts what it has just created; later ones what it found.
        counted = self._members(stored.obj) if first else members
        self._set_status(stored, counted)

    def _create(self, pool: Json, missing: int) -> None:
        namespace, name = pool["metadata"]["namespace"], pool["metadata"]["name"]
        index = 0
        for _ in range(missing):
            while self._store.get(VIRTUAL_MACHINES, namespace, f"{name}-{index}") is not None:
                index += 1
            try:
                self._store.put(VIRTUAL_MACHINES, self._machine(pool, index))
            except ApiError:
                return  # admission refuses the template: the real controller reports it and retries later

    def _machine(self, pool: Json, index: int) -> Json:
        metadata = pool["metadata"]
        template = pool["spec"]["virtualMachineTemplate"]
        revision = {_REVISION: f"{metadata['name']}-{_revision(pool)}"}
        spec = template["spec"]
        inner = spec["template"]
        labels = {**labels_of(inner), **revision}
        spec = {**spec, "template": {**inner, "metadata": {**(inner.get("metadata") or {}), "labels": labels}}}
        if "dataVolumeTemplates" in spec:
            spec = _indexed_volumes(spec, index)
        more: Json = {"annotations": annotations_of(template)} if annotations_of(template) else {}
        machine = new_object(
            VIRTUAL_MACHINES,
            f"{metadata['name']}-{index}",
            metadata["namespace"],
            self._api.clock.now(),
            finalizers=[FINALIZER],
            labels={**labels_of(template), **revision},
            ownerReferences=owned_by(pool),
            **more,
        )
        return with_machine_defaults({**machine, "spec": spec})

    def _scale_in(self, pool: Json, members: list[Stored], excess: int) -> None:
        if excess <= 0 or "unmanaged" in (pool["spec"].get("scaleInStrategy") or {}):
            return
        youngest = sorted(members, key=lambda item: item.obj["metadata"]["creationTimestamp"], reverse=True)
        for stored in youngest[:excess]:
            self._delete(VIRTUAL_MACHINES, stored, policy="Foreground")

    def _members(self, pool: Json) -> list[Stored]:
        keys = [key for kind, key in self._store.dependents(pool["metadata"]["uid"]) if kind == VIRTUAL_MACHINES.id]
        found = (self._store.get(VIRTUAL_MACHINES, *key) for key in keys)
        return [stored for stored in found if stored is not None and not stored.deleting]

    def _set_status(self, stored: Stored, members: list[Stored]) -> None:
        status: Json = {"labelSelector": _selector_text(stored.obj["spec"].get("selector") or {})}
        if members:
            status["replicas"] = len(members)
        ready = sum(1 for item in members if status_of(item.obj).get("ready"))
        if ready:
            status["readyReplicas"] = ready
        latest = self._store.get(POOLS, *stored.key)
        if latest is not None:
            self._modify_status(latest, status)

    def _let_go(self, stored: Stored) -> None:
        """Remove this controller's finalizer from the members, then from the pool."""
        for member in self._members(stored.obj):
            self._api.modify(VIRTUAL_MACHINES, member, lambda obj: without_finalizer(obj, FINALIZER))
        if ORPHAN in finalizers_of(stored.obj):
            freed = {key: value for key, value in stored.obj["status"].items() if key == "labelSelector"}
            stored = self._modify_status(stored, freed)
        if FINALIZER in finalizers_of(stored.obj):
            self._api.modify(POOLS, stored, lambda obj: without_finalizer(obj, FINALIZER))

    def _release_going(self, stored: Stored) -> None:
        if stored.deleting and FINALIZER in finalizers_of(stored.obj):
            self._api.modify(VIRTUAL_MACHINES, stored, lambda obj: without_finalizer(obj, FINALIZER))


def _revision(pool: Json) -> int:
    """The number of the current revision: the generation of the pool."""
    return 1 if "status" not in pool else int(pool["metadata"]["generation"])


def _indexed_volumes(spec: Json, index: int) -> Json:
    """Append the index to the DataVolume templates and the volumes that use them: each member has its own."""
    names = {
        template["metadata"]["name"]: f"{template['metadata']['name']}-{index}"
        for template in spec["dataVolumeTemplates"]
    }
    templates = [
        {**template, "metadata": {**template["metadata"], "name": names[template["metadata"]["name"]]}}
        for template in spec["dataVolumeTemplates"]
    ]
    inner = spec["template"]
    volumes = []
    for volume in inner["spec"].get("volumes", ()):
        name = (volume.get("dataVolume") or {}).get("name")
        volumes.append(
            {**volume, "dataVolume": {**volume["dataVolume"], "name": names[name]}} if name in names else volume
        )
    inner = {**inner, "spec": {**inner["spec"], "volumes": volumes}}
    return {**spec, "dataVolumeTemplates": templates, "template": inner}


def _selector_text(selector: Json) -> str:
    parts = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for item in selector.get("matchExpressions") or ():
        values = ",".join(item.get("values") or ())
        told = {"In": f"{item['key']} in ({values})", "NotIn": f"{item['key']} notin ({values})", "Exists": item["key"]}
        parts.append(told.get(item["operator"], f"!{item['key']}"))
    return ",".join(parts)
