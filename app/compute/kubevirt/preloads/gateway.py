"""Implements `PreloadGateway` with CDI's DataVolumes and DataImportCrons, and with DaemonSets."""

import re
from functools import partial
from uuid import UUID

import structlog

from app.compute.kubevirt import labels
from app.compute.kubevirt.client import AlreadyExists, KubeVirtClient
from app.compute.kubevirt.kinds import (
    DAEMON_SETS,
    DATA_IMPORT_CRONS,
    DATA_VOLUMES,
    PODS,
    PVCS,
    VOLUME_SNAPSHOTS,
    Kind,
    Manifest,
    opened,
)
from app.compute.kubevirt.preloads.manifests import build
from app.compute.kubevirt.preloads.specs import specs_of
from app.compute.kubevirt.preloads.status import (
    COMPLETE,
    clones_from,
    identity,
    is_populated,
    read_claim,
    read_cron,
    read_daemon_set,
    read_snapshot,
    read_volume_object,
)
from app.compute.preloads import PreloadOrder
from app.config import Settings
from app.domain.paths import ImageRef
from app.domain.preload_lifecycle import ObjectKind, PreloadObject, Present, Volume
from app.domain.preloads import PreloadSpec
from app.domain.templates import VmSpec
from app.errors import ClusterError, ClusterNotFound, ClusterRefused, FieldProblem, PreloadRefused

_KINDS: dict[ObjectKind, Kind] = {
    ObjectKind.VOLUME: DATA_VOLUMES,
    ObjectKind.CRON: DATA_IMPORT_CRONS,
    ObjectKind.NODES: DAEMON_SETS,
}
_FIELDS = {
    "source": "image",
    "storage.resources": "size",
    "storage.storageClassName": "storage_class",
    "storage.accessModes": "access_modes",
    "storage.volumeMode": "volume_mode",
    "schedule": "schedule",
    "importsToKeep": "keep",
    "nodeSelector": "node_selector",
    "tolerations": "tolerations",
    "imagePullSecrets": "pull_secret",
    "containers": "image.container",
}
_log = structlog.get_logger(__name__)


class KubeVirtPreloads:
    def __init__(self, settings: Settings, client: KubeVirtClient) -> None:
        """Does not own the client."""
        self._settings = settings
        self._client = client
        self._build = partial(
            build,
            namespace=settings.namespace,
            instance=settings.instance,
            helper_image=settings.preload_helper_image,
        )

    def reference(self, spec: PreloadSpec) -> ImageRef:
        return spec.image.reference(self._settings.namespace)

    def specs_for(self, spec: VmSpec) -> tuple[PreloadSpec, ...]:
        return specs_of(opened(spec))

    async def check(self, order: PreloadOrder) -> None:
        kind, body = self._build(order)
        try:
            await self._client.create(kind, body, dry_run=True)
        except AlreadyExists:
            return
        except ClusterRefused as error:
            raise PreloadRefused(
                f"The cluster refuses the object that would preload the image: {error.detail}",
                problems=[FieldProblem(_locate(problem.field), problem.message) for problem in error.problems],
            ) from error
        except ClusterNotFound as error:
            raise _without(kind, error) from error

    async def make(self, order: PreloadOrder) -> None:
        kind, body = self._build(order)
        try:
            _, created = await self._client.create_or_find(kind, body, tuple(body["metadata"]["labels"]))
        except ClusterNotFound as error:
            raise _without(kind, error) from error
        if not created:
            _log.info("cluster.preload_object_found", kind=str(kind), name=body["metadata"]["name"])

    async def look(self, preload_id: UUID) -> tuple[PreloadObject, ...]:
        mine = f"{labels.PRELOAD}={preload_id}"
        volumes = [await self._see_volume(each) for each in await self._list(DATA_VOLUMES, mine)]
        crons = [await self._see_cron(each) for each in await self._list(DATA_IMPORT_CRONS, mine)]
        sets = await self._list(DAEMON_SETS, mine)
        pods = await self._list(PODS, mine) if sets else []
        return (*volumes, *crons, *(read_daemon_set(each, _owned(pods, each)) for each in sets))

    async def find_present(self, name: str) -> Present:
        namespace = self._settings.namespace
        volume, claim = await self._client.find(DATA_VOLUMES, name), await self._client.find(PVCS, name)
        if volume is not None:
            status = volume.get("status") or {}
            phase = status.get("phase") or "not begun"
            if phase != COMPLETE:
                progress = f", {status['progress']}" if status.get("progress") not in (None, "N/A") else ""
                return Present(None, f"DataVolume {name} of namespace {namespace} is not complete ({phase}{progress})")
        if claim is None:
            return Present(None, f"namespace {namespace} has no complete DataVolume and no PVC {name}")
        if not is_populated(claim):
            phase = (claim.get("status") or {}).get("phase") or "unknown"
            return Present(None, f"PVC {name} of namespace {namespace} is not bound and filled yet ({phase})")
        return Present(read_claim(claim), f"uses PVC {name} of namespace {namespace}, which existed already")

    async def clones(self, volume: Volume) -> tuple[str, ...]:
        found = await self._client.list_all(DATA_VOLUMES, selector="")
        return tuple(clones_from(found[0], volume))

    async def remove(self, seen: PreloadObject) -> None:
        kind = _KINDS[seen.kind]
        await self._client.delete(kind, seen.name, seen.uid)
        _log.info("cluster.preload_object_removed", kind=str(kind), name=seen.name)

    async def all(self) -> tuple[PreloadObject, ...]:
        found = []
        for name, kind in _KINDS.items():
            found += [PreloadObject(**identity(name, each)) for each in await self._list(kind, labels.PRELOAD)]
        return tuple(found)

    async def _list(self, kind: Kind, selector: str) -> list[Manifest]:
        """Empty if the cluster does not know the kind: a cluster without CDI can still pull images."""
        try:
            whole = f"{labels.selector(self._settings.instance)},{selector}"
            return (await self._client.list_all(kind, selector=whole))[0]
        except ClusterNotFound:
            return []

    async def _see_volume(self, volume: Manifest) -> PreloadObject:
        status = volume.get("status") or {}
        held = None
        if status.get("phase") == COMPLETE:
            claim = await self._client.find(PVCS, str(status.get("claimName") or volume["metadata"]["name"]))
            held = read_claim(claim) if claim is not None and "deletionTimestamp" not in claim["metadata"] else None
        return read_volume_object(volume, held)

    async def _see_cron(self, cron: Manifest) -> PreloadObject:
        status = cron.get("status") or {}
        last = str((status.get("lastImportedPVC") or {}).get("name") or "")
        held = await self._held(cron, last) if last else None
        importing = [str(each.get("DataVolumeName") or "") for each in status.get("currentImports") or ()]
        current = await self._client.find(DATA_VOLUMES, importing[0]) if importing and importing[0] else None
        return read_cron(cron, current, held)

    async def _held(self, cron: Manifest, name: str) -> Volume | None:
        if (cron.get("status") or {}).get("sourceFormat") == "snapshot":
            snapshot = await self._client.find(VOLUME_SNAPSHOTS, name)
            storage = cron["spec"]["template"]["spec"].get("storage") or {}
            return read_snapshot(snapshot, storage) if snapshot is not None else None
        claim = await self._client.find(PVCS, name)
        return read_claim(claim) if claim is not None and is_populated(claim) else None


def _owned(pods: list[Manifest], daemon_set: Manifest) -> list[Manifest]:
    uid = daemon_set["metadata"].get("uid")
    return [
        pod for pod in pods if any(owner.get("uid") == uid for owner in pod["metadata"].get("ownerReferences") or ())
    ]


def _without(kind: Kind, error: ClusterNotFound) -> ClusterError:
    return ClusterError(
        f"The cluster does not know {kind.name}, or the namespace: is CDI installed? The cluster said: {error.detail}"
    )


def _locate(field: str) -> str:
    """Turns the field of our object, as the cluster names it, into the field of the preload that its author wrote."""
    at = re.sub(r"^(spec\.)?(template\.spec\.|Template\.)?(spec\.)?", "", field)
    for theirs, ours in _FIELDS.items():
        if at == theirs or at.startswith((f"{theirs}.", f"{theirs}[")):
            rest = at.removeprefix(theirs) if theirs == "source" else ""
            return ours + re.sub(r"([A-Z])", lambda letter: f"_{letter[1].lower()}", rest)
    return ""
