"""KubeVirt's VirtualMachinePools: creates and changes them, detaches their VMs, deletes them.

Every change is a JSON patch that names the UID and tests what was read before. If a test fails, the API server answers 422, and we
read the object again (recorded from KubeVirt v1.9.0). The controller may only create VMs: both strategies are `unmanaged`, and
autohealing, which would act on every VM of the namespace, is off.
"""

import copy
import hashlib
import json
from contextlib import suppress

from app.compute.kubevirt import labels
from app.compute.kubevirt.client import KubeVirtClient
from app.compute.kubevirt.kinds import VM_POOLS, VMIS, VMS, Kind, Manifest, opened
from app.compute.kubevirt.templates.manifests import rename_data_volumes
from app.compute.kubevirt.templates.start_sources import begin
from app.compute.vm_pools import FoundVmPool, VmPoolOrder
from app.config import Settings
from app.domain.vm_pools import Change, VmPoolStatus
from app.errors import ClusterError, ClusterNotFound, ClusterRefused

_UNMANAGED: Manifest = {"unmanaged": {}}
_CONTROLLER = "pool.kubevirt.io/finalizer"
_VERSIONS = ("v1beta1", "v1alpha1")
_NAME_LIMIT = 57  # the controller appends an index of up to five digits to the names of DataVolumes
_ATTEMPTS = 6


class KubeVirtVmPools:
    """Implements `VmPoolGateway`."""

    def __init__(self, settings: Settings, client: KubeVirtClient) -> None:
        self._settings = settings
        self._client = client
        self._served: Kind | None = None

    async def why_unavailable(self) -> str | None:
        """Why the cluster has no VirtualMachinePools; None if it has them."""
        try:
            await self._kind()
        except ClusterNotFound as error:
            return error.detail
        return None

    def fingerprint(self, order: VmPoolOrder) -> str:
        return hashlib.sha256(json.dumps(self._template(order, {}), sort_keys=True).encode()).hexdigest()

    async def check(self, order: VmPoolOrder) -> None:
        await self._client.create(
            await self._kind(), await self._manifest(order, replicas=0, paused=False), dry_run=True
        )

    async def look(self, name: str) -> VmPoolStatus | None:
        kind = await self._kind()
        found = await self._client.find(kind, name)
        if found is None:
            # An API server that has just started answers the same while it does not know the kind yet: then this raises.
            await self._client.list_all(kind)
            return None
        return self._read(found)

    async def make(self, order: VmPoolOrder, *, replicas: int, paused: bool) -> VmPoolStatus:
        body = await self._manifest(order, replicas=replicas, paused=paused)
        made, _ = await self._client.create_or_find(await self._kind(), body, (labels.POOL_ID,))
        return self._read(made)

    async def change(self, order: VmPoolOrder, seen: VmPoolStatus, change: Change) -> VmPoolStatus:
        steps = [_test("metadata/uid", seen.uid), _test("metadata/generation", seen.generation)]
        if change.restore:
            steps += await self._restore(order, seen)
        if change.template:
            template = self._template(order, seen.labels)
            steps.append({"op": "replace", "path": "/spec/virtualMachineTemplate", "value": template})
        for key, value in (("paused", change.paused), ("replicas", change.replicas)):
            if value is not None:
                steps.append({"op": "add", "path": f"/spec/{key}", "value": value})
        return self._read(await self._client.patch(await self._kind(), seen.name, steps))

    async def detach(self, *, name: str, uid: str, claim_id: str | None) -> None:
        refused: ClusterRefused | None = None
        for _ in range(_ATTEMPTS):
            vm = await self._client.get(VMS, name)
            if vm["metadata"].get("uid") != uid:
                raise ClusterNotFound(f"VM {name} is another VM by now: its UID is not {uid}.")
            steps = detach_steps(vm, claim_id)
            if steps is None:
                if claim_id is not None and (vm["metadata"].get("labels") or {}).get(labels.CLAIM) != claim_id:
                    await self._client.merge(VMS, name, uid, {"metadata": {"labels": {labels.CLAIM: claim_id}}})
                return
            try:
                await self._client.patch(VMS, name, steps)
            except ClusterRefused as error:  # somebody else wrote in between: read it again
                refused = error
            else:
                return
        raise ClusterError(f"VM {name} cannot be detached from its VirtualMachinePool: {refused and refused.detail}")

    async def free(self, seen: VmPoolStatus) -> None:
        found: VmPoolStatus | None = seen
        for attempt in range(1, _ATTEMPTS + 1):
            if found is None or found.uid != seen.uid or not found.held:
                return
            steps = [_test("metadata/uid", found.uid), *_drop_finalizer(list(found.finalizers), labels.MEMBERS)]
            try:
                await self._client.patch(await self._kind(), seen.name, steps)
            except ClusterNotFound:
                return
            except ClusterRefused:  # its controllers remove their own finalizers at the same time
                if attempt == _ATTEMPTS:
                    raise
                found = await self.look(seen.name)
            else:
                return

    async def remove(self, seen: VmPoolStatus) -> None:
        await self._client.delete(await self._kind(), seen.name, seen.uid, propagation="Orphan")

    async def all(self) -> tuple[VmPoolStatus, ...]:
        items, _ = await self._client.list_all(await self._kind())
        return tuple(self._read(item) for item in items)

    async def find(self, name: str) -> FoundVmPool | None:
        body = await self._client.find(await self._kind(), name)
        if body is None:
            return None
        uid = body["metadata"]["uid"]
        members = await self._members(uid)
        spec = body["spec"]
        managed = [key for key in ("updateStrategy", "scaleInStrategy") if spec.get(key) != _UNMANAGED]
        return FoundVmPool(
            status=self._read(body),
            template=copy.deepcopy(spec["virtualMachineTemplate"]),
            members=tuple(str(vm["metadata"]["name"]) for vm in members),
            managed=tuple(managed),
            heals="autohealing" in spec,
        )

    async def enroll(self, order: VmPoolOrder, owner: str) -> int:
        """Labels the VM and its VMI, so that our watches include them, and the VM's template for later VMIs."""
        wanted = self._our_labels(order)
        lacking = [vm for vm in await self._members(owner) if not labels.has(vm, wanted)]
        for vm in lacking:
            name, uid = vm["metadata"]["name"], vm["metadata"]["uid"]
            with suppress(ClusterNotFound):  # it has no VMI yet: a later one gets the labels from the template
                vmi = await self._client.get(VMIS, name)
                await self._client.merge(VMIS, name, vmi["metadata"]["uid"], {"metadata": {"labels": wanted}})
            body = {"metadata": {"labels": wanted}, "spec": {"template": {"metadata": {"labels": wanted}}}}
            await self._client.merge(VMS, name, uid, body)
        return len(lacking)

    async def _members(self, uid: str) -> list[Manifest]:
        """The VMs that the VirtualMachinePool with that UID owns, without those that are being deleted."""

        def is_member(vm: Manifest) -> bool:
            return _is_owned(vm, uid) and not vm["metadata"].get("deletionTimestamp")

        return (await self._client.list_all(VMS, selector="", keep=is_member))[0]

    async def _kind(self) -> Kind:
        """The kind in the newest version that the cluster serves. Raises ClusterNotFound if we know none of its versions."""
        if self._served is None:
            served = await self._client.versions(VM_POOLS.group)
            version = next((each for each in _VERSIONS if each in served), None)
            if version is None:
                raise ClusterNotFound(f"The cluster serves {VM_POOLS.group} in none of {', '.join(_VERSIONS)}.")
            self._served = Kind(VM_POOLS.group, version, VM_POOLS.plural, VM_POOLS.name)
        return self._served

    async def _manifest(self, order: VmPoolOrder, *, replicas: int, paused: bool) -> Manifest:
        return (await self._kind()).manifest(
            {
                "name": order.name,
                "namespace": self._settings.namespace,
                "labels": self._our_labels(order),
                "finalizers": [labels.MEMBERS],
            },
            {
                "replicas": replicas,
                **({"paused": True} if paused else {}),
                "selector": {"matchLabels": self._selecting(order)},
                "updateStrategy": _UNMANAGED,
                "scaleInStrategy": _UNMANAGED,
                "virtualMachineTemplate": self._template(order, {}),
            },
        )

    def _template(self, order: VmPoolOrder, selected: dict[str, str]) -> Manifest:
        """The VM gets the labels and annotations of its VMI, as a VM that we create ourselves does. `selected`: the labels by which
        the VirtualMachinePool selects; KubeVirt v1.9.0 requires them in the template.
        """
        spec = copy.deepcopy(begin(opened(order.spec), order.start, vm=order.name, namespace=self._settings.namespace))
        rename_data_volumes(spec, order.name, limit=_NAME_LIMIT)
        metadata: Manifest = spec["template"].setdefault("metadata", {})
        metadata["labels"] = {**(metadata.get("labels") or {}), **selected, **self._our_labels(order)}
        annotations = {**(metadata.get("annotations") or {}), labels.REVISION: order.revision}
        return {"metadata": {"labels": dict(metadata["labels"]), "annotations": annotations}, "spec": spec}

    def _selecting(self, order: VmPoolOrder) -> dict[str, str]:
        """By the installation too: a copy of the database has pools of the same ids."""
        keys = (labels.POOL_ID, labels.INSTALLATION)
        return {key: value for key, value in self._our_labels(order).items() if key in keys}

    def _our_labels(self, order: VmPoolOrder) -> dict[str, str]:
        ours = labels.ours(self._settings.instance)
        if self._client.installation is not None:  # for the VMs, which the cluster makes from the template
            ours[labels.INSTALLATION] = self._client.installation
        return {**ours, labels.POOL: order.pool, labels.POOL_ID: str(order.pool_id)}

    async def _restore(self, order: VmPoolOrder, seen: VmPoolStatus) -> list[Manifest]:
        body = await self._client.get(await self._kind(), seen.name)
        metadata = body["metadata"]
        steps: list[Manifest] = [
            {"op": "add", "path": f"/spec/{key}", "value": _UNMANAGED} for key in ("updateStrategy", "scaleInStrategy")
        ]
        if "autohealing" in body["spec"]:
            steps.append({"op": "remove", "path": "/spec/autohealing"})
        ours = {**(metadata.get("labels") or {}), **self._our_labels(order)}
        if ours != metadata.get("labels"):
            steps.append({"op": "add", "path": "/metadata/labels", "value": ours})
        finalizers = metadata.get("finalizers") or []
        if labels.MEMBERS not in finalizers and not metadata.get("deletionTimestamp"):
            steps.append(_test("metadata/resourceVersion", metadata["resourceVersion"]))
            steps.append({"op": "add", "path": "/metadata/finalizers", "value": [*finalizers, labels.MEMBERS]})
        return steps

    def _read(self, body: Manifest) -> VmPoolStatus:
        metadata, spec = body["metadata"], body["spec"]
        found = metadata.get("labels") or {}
        finalizers = tuple(metadata.get("finalizers") or ())
        return VmPoolStatus(
            name=metadata["name"],
            uid=metadata["uid"],
            generation=int(metadata.get("generation") or 0),
            replicas=int(spec.get("replicas", 1)),
            paused=bool(spec.get("paused")),
            unmanaged=spec.get("updateStrategy") == _UNMANAGED
            and spec.get("scaleInStrategy") == _UNMANAGED
            and "autohealing" not in spec,
            deleting=bool(metadata.get("deletionTimestamp")),
            held=labels.MEMBERS in finalizers,
            ours=labels.has(body, labels.ours(self._settings.instance)),
            pool_id=found.get(labels.POOL_ID),
            installation=found.get(labels.INSTALLATION),
            labels=_selected(spec),
            finalizers=finalizers,
            failure=_find_failure(body.get("status") or {}),
        )


def detach_steps(vm: Manifest, claim_id: str | None) -> list[Manifest] | None:
    """The patch that takes a VM, as it was read, out of its VirtualMachinePool; None if it is in none.

    It must be one patch: with only the label removed the pool gets stuck, and between two patches its controller could act.
    """
    metadata = vm["metadata"]
    owners = metadata.get("ownerReferences") or []
    index = next((i for i, owner in enumerate(owners) if owner.get("kind") == VM_POOLS.name), None)
    if index is None:
        return None
    uid = owners[index]["uid"]
    steps = [_test("metadata/uid", metadata["uid"]), _test(f"metadata/ownerReferences/{index}/uid", uid)]
    steps += _drop_finalizer(metadata.get("finalizers") or [], _CONTROLLER)
    where = "/metadata/ownerReferences" + (f"/{index}" if len(owners) > 1 else "")
    steps.append({"op": "remove", "path": where})
    found = metadata.get("labels") or {}
    if labels.POOL_ID in found:
        steps.append({"op": "remove", "path": _label_path(labels.POOL_ID)})
    if claim_id is not None:
        if not found:
            steps.append({"op": "add", "path": "/metadata/labels", "value": {}})
        steps.append({"op": "add", "path": _label_path(labels.CLAIM), "value": claim_id})
    return steps


def _test(path: str, value: object) -> Manifest:
    return {"op": "test", "path": f"/{path}", "value": value}


def _drop_finalizer(found: list[str], finalizer: str) -> list[Manifest]:
    if finalizer not in found:
        return []
    kept = [item for item in found if item != finalizer]
    return [_test("metadata/finalizers", found), {"op": "replace", "path": "/metadata/finalizers", "value": kept}]


def _label_path(label: str) -> str:
    return f"/metadata/labels/{label.replace('~', '~0').replace('/', '~1')}"


def _is_owned(vm: Manifest, uid: str) -> bool:
    owners = vm["metadata"].get("ownerReferences") or []
    return any(owner.get("uid") == uid and owner.get("controller") for owner in owners)


def _selected(spec: Manifest) -> dict[str, str]:
    """The labels that the selector requires of a template. If it has more than labels: all labels that the template has now."""
    selector = spec.get("selector") or {}
    if selector.get("matchExpressions"):
        return dict(((spec.get("virtualMachineTemplate") or {}).get("metadata") or {}).get("labels") or {})
    return dict(selector.get("matchLabels") or {})


def _find_failure(status: Manifest) -> str | None:
    for condition in status.get("conditions") or []:
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            return str(condition.get("message") or condition.get("reason") or "the cluster gives no reason")
    return None
