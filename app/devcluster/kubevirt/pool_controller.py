"""VirtualMachinePools: members by controller reference, one new VM for each that is missing, under the lowest free index.

It reacts `durations.pool_reaction` after a change, as the real one does after about a second, and then sees the whole.
"""

import uuid

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.deletion import ORPHAN, DeleteOptions, delete
from app.devcluster.apiserver.garbage import without_finalizer
from app.devcluster.apiserver.objects import Change, Key, Stored
from app.devcluster.apiserver.registry import POOLS, VIRTUAL_MACHINES
from app.devcluster.apiserver.status import ApiError, Json
from app.devcluster.apiserver.times import stamp
from app.devcluster.apiserver.work import WorkQueue
from app.devcluster.durations import Durations
from app.devcluster.kubevirt.admission import Webhooks

FINALIZER = "pool.kubevirt.io/finalizer"
_REVISION = "kubevirt.io/vm-pool-revision-name"


class PoolController:
    def __init__(self, api: Api, durations: Durations) -> None:
        self._api = api
        self._webhooks = Webhooks(api.store)
        self._queue: WorkQueue[Key] = WorkQueue("pool", self._visit, api.clock, durations.pool_reaction)
        self._unsubscribe = api.store.subscribe(self._notice)

    def resume(self) -> None:
        for stored in self._api.store.each(POOLS):
            self._queue.add((stored.obj["metadata"]["namespace"], stored.obj["metadata"]["name"]))
        for stored in self._api.store.each(VIRTUAL_MACHINES):
            self._release_going(stored)

    def stop(self) -> None:
        self._unsubscribe()
        self._queue.stop()

    @property
    def idle(self) -> bool:
        return self._queue.idle

    def _notice(self, change: Change) -> None:
        if change.resource is POOLS:
            self._queue.add(change.key)
        elif change.resource is VIRTUAL_MACHINES:
            for stored in (change.old, change.new):
                for reference in stored.obj["metadata"].get("ownerReferences", ()) if stored else ():
                    if reference["kind"] == POOLS.kind:
                        self._queue.add((change.key[0], reference["name"]))

    def _visit(self, key: Key) -> None:
        stored = self._api.store.get(POOLS, *key)
        for machine in self._api.store.rows(VIRTUAL_MACHINES, key[0]):
            self._release_going(machine)
        if stored is None:
            return
        finalizers = stored.obj["metadata"].get("finalizers", [])
        if "deletionTimestamp" in stored.obj["metadata"]:
            self._let_go(stored)
            return
        if FINALIZER not in finalizers:
            stored = self._api.modify(POOLS, stored, lambda obj: _with_finalizer(obj, FINALIZER))
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
            while self._api.store.get(VIRTUAL_MACHINES, namespace, f"{name}-{index}") is not None:
                index += 1
            try:
                self._api.store.put(VIRTUAL_MACHINES, self._machine(pool, index))
            except ApiError:
                return  # a template that admission refuses: the real controller reports it and tries again later

    def _machine(self, pool: Json, index: int) -> Json:
        metadata = pool["metadata"]
        template = pool["spec"]["virtualMachineTemplate"]
        revision = {_REVISION: f"{metadata['name']}-{_revision(pool)}"}
        spec = template["spec"]
        inner = spec["template"]
        inner_metadata = {**(inner.get("metadata") or {})}
        inner_metadata["labels"] = {**(inner_metadata.get("labels") or {}), **revision}
        spec = {**spec, "template": {**inner, "metadata": inner_metadata}}
        if "dataVolumeTemplates" in spec:
            spec = _indexed_volumes(spec, index)
        machine = {
            "apiVersion": VIRTUAL_MACHINES.api_version,
            "kind": VIRTUAL_MACHINES.kind,
            "metadata": {
                **{key: value for key, value in (template.get("metadata") or {}).items() if key == "annotations"},
                "creationTimestamp": stamp(self._api.clock.now()),
                "finalizers": [FINALIZER],
                "generation": 1,
                "labels": {**((template.get("metadata") or {}).get("labels") or {}), **revision},
                "name": f"{metadata['name']}-{index}",
                "namespace": metadata["namespace"],
                "ownerReferences": [
                    {
                        "apiVersion": POOLS.api_version,
                        "blockOwnerDeletion": True,
                        "controller": True,
                        "kind": POOLS.kind,
                        "name": metadata["name"],
                        "uid": metadata["uid"],
                    }
                ],
                "uid": str(uuid.uuid4()),
            },
            "spec": spec,
        }
        return self._webhooks.mutate(VIRTUAL_MACHINES, machine, None)

    def _scale_in(self, pool: Json, members: list[Stored], excess: int) -> None:
        if excess <= 0 or "unmanaged" in (pool["spec"].get("scaleInStrategy") or {}):
            return
        youngest = sorted(members, key=lambda item: item.obj["metadata"]["creationTimestamp"], reverse=True)
        for stored in youngest[:excess]:
            metadata = stored.obj["metadata"]
            options = DeleteOptions(policy="Foreground", uid=metadata["uid"])
            delete(self._api, VIRTUAL_MACHINES, metadata["namespace"], metadata["name"], options)

    def _members(self, pool: Json) -> list[Stored]:
        uid, found = pool["metadata"]["uid"], []
        for resource_id, key in self._api.store.dependents(uid):
            stored = self._api.store.get(VIRTUAL_MACHINES, *key) if resource_id == VIRTUAL_MACHINES.id else None
            if stored is not None and "deletionTimestamp" not in stored.obj["metadata"]:
                found.append(stored)
        return found

    def _set_status(self, stored: Stored, members: list[Stored]) -> None:
        status: Json = {"labelSelector": _selector_text(stored.obj["spec"].get("selector") or {})}
        if members:
            status["replicas"] = len(members)
        ready = sum(1 for item in members if (item.obj.get("status") or {}).get("ready"))
        if ready:
            status["readyReplicas"] = ready
        latest = self._api.store.get(POOLS, stored.obj["metadata"]["namespace"], stored.obj["metadata"]["name"])
        if latest is not None:
            self._api.modify(POOLS, latest, lambda obj: {**obj, "status": status})

    def _let_go(self, stored: Stored) -> None:
        """Free the members of this controller's finalizer, then the pool itself."""
        for member in self._members(stored.obj):
            self._api.modify(VIRTUAL_MACHINES, member, lambda obj: without_finalizer(obj, FINALIZER))
        if ORPHAN in stored.obj["metadata"].get("finalizers", ()):
            freed = {key: value for key, value in stored.obj["status"].items() if key == "labelSelector"}
            stored = self._api.modify(POOLS, stored, lambda obj: {**obj, "status": freed})
        if FINALIZER in stored.obj["metadata"].get("finalizers", ()):
            self._api.modify(POOLS, stored, lambda obj: without_finalizer(obj, FINALIZER))

    def _release_going(self, stored: Stored) -> None:
        metadata = stored.obj["metadata"]
        if "deletionTimestamp" in metadata and FINALIZER in metadata.get("finalizers", ()):
            self._api.modify(VIRTUAL_MACHINES, stored, lambda obj: without_finalizer(obj, FINALIZER))


def _with_finalizer(obj: Json, finalizer: str) -> Json:
    metadata = obj["metadata"]
    return {**obj, "metadata": {**metadata, "finalizers": [*metadata.get("finalizers", ()), finalizer]}}


def _revision(pool: Json) -> int:
    """Revisions are numbered by the generation that brought them; scaling alone brings none worth telling apart."""
    return 1 if "status" not in pool else int(pool["metadata"]["generation"])


def _indexed_volumes(spec: Json, index: int) -> Json:
    """Each member has DataVolumes of its own: templates and the volumes that name them get the index."""
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
