"""Reads the status of a preload's objects. Pure. Phases, conditions and progress are those of CDI v1.66.0."""

from fractions import Fraction
from uuid import UUID

from app.compute.kubevirt import labels
from app.compute.kubevirt.kinds import Manifest
from app.compute.kubevirt.preloads.manifests import IMAGE_CONTAINER
from app.compute.kubevirt.quantities import parse_quantity, requested_storage
from app.domain.preload_lifecycle import NodePull, ObjectKind, PreloadObject, PullState, Volume

COMPLETE = "Succeeded"
_ENDED = frozenset({COMPLETE, "Failed"})
_QUIET = frozenset({"", "Completed", "Pod is running", "Bound", "TransferRunning"})
_PULL_PROBLEMS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "ErrImageNeverPull",
        "InvalidImageName",
        "ErrImageInspect",
        "RegistryUnavailable",
        "CreateContainerConfigError",
        "SignatureValidationFailed",
    }
)
_POD_PHASE = "cdi.kubevirt.io/storage.pod.phase"


def read_volume_object(volume: Manifest, claim: Volume | None) -> PreloadObject:
    """Reads a DataVolume. `claim` is its PVC, if it is complete and the PVC exists."""
    status = volume.get("status") or {}
    spec = volume.get("spec") or {}
    phase = str(status.get("phase") or "")
    return PreloadObject(
        **identity(ObjectKind.VOLUME, volume),
        phase=phase,
        progress=_percent(status.get("progress")),
        bytes_total=_bytes(requested_storage(spec.get("storage") or spec.get("pvc") or {})),
        restarts=int(status.get("restartCount") or 0),
        failed=phase == "Failed",
        trouble=_trouble(status.get("conditions"), ("Running", "Bound", "Ready")),
        volume=claim if phase == COMPLETE else None,
    )


def read_cron(cron: Manifest, current: Manifest | None, held: Volume | None) -> PreloadObject:
    """Reads a DataImportCron. `current` is the DataVolume of the running import, `held` the result of the last one."""
    status = cron.get("status") or {}
    told = read_volume_object(current, None) if current is not None else None
    return PreloadObject(
        **identity(ObjectKind.CRON, cron),
        phase=told.phase if told else "",
        progress=told.progress if told else None,
        bytes_total=_bytes(requested_storage(cron["spec"]["template"]["spec"].get("storage") or {})),
        restarts=told.restarts if told else 0,
        failed=told.failed if told else False,
        trouble=told.trouble if told else _trouble(status.get("conditions"), ("Progressing", "UpToDate")),
        volume=held,
    )


def read_daemon_set(daemon_set: Manifest, pods: list[Manifest]) -> PreloadObject:
    """Reads a DaemonSet and its `pods`. The number of pods it wants is unknown until its controller has processed it."""
    status = daemon_set.get("status") or {}
    counted = int(status.get("observedGeneration") or 0) >= int(daemon_set["metadata"].get("generation") or 1)
    nodes = tuple(sorted((_pull(pod) for pod in pods if not _is_going(pod)), key=lambda each: each.node))
    failed = next((each.reason for each in nodes if each.state is PullState.FAILED), None)
    return PreloadObject(
        **identity(ObjectKind.NODES, daemon_set),
        nodes=nodes,
        wanted=int(status.get("desiredNumberScheduled") or 0) if counted else -1,
        trouble=failed,
    )


def read_claim(claim: Manifest) -> Volume:
    """Reads a PVC as a source for clones. Its size is its capacity, which may be more than was requested."""
    return _volume(claim, claim.get("spec") or {}, ((claim.get("status") or {}).get("capacity") or {}).get("storage"))


def read_snapshot(snapshot: Manifest, storage: Manifest) -> Volume:
    """Reads a VolumeSnapshot in which a schedule keeps its import. `storage` is what the import requested."""
    return _volume(snapshot, storage, (snapshot.get("status") or {}).get("restoreSize"), is_snapshot=True)


def is_populated(claim: Manifest) -> bool:
    """Whether a PVC that others created is bound, and filled if CDI fills it."""
    annotations = claim["metadata"].get("annotations") or {}
    bound = (claim.get("status") or {}).get("phase") == "Bound"
    return bound and annotations.get(_POD_PHASE, COMPLETE) == COMPLETE and not _is_going(claim)


def clones_from(volumes: list[Manifest], source: Volume) -> list[str]:
    """Names of the DataVolumes that are being cloned from it."""
    key = "snapshot" if source.is_snapshot else "pvc"
    return [
        volume["metadata"]["name"]
        for volume in volumes
        if (((volume.get("spec") or {}).get("source") or {}).get(key) or {}).get("name") == source.claim
        and (volume.get("status") or {}).get("phase") not in _ENDED
    ]


def _volume(thing: Manifest, storage: Manifest, has: str | None, *, is_snapshot: bool = False) -> Volume:
    sizes = [size for size in (has, requested_storage(storage)) if size is not None]
    return Volume(
        claim=thing["metadata"]["name"],
        size=max(sizes, key=_number, default="0"),
        storage_class=storage.get("storageClassName"),
        access_modes=tuple(storage.get("accessModes") or ()),
        volume_mode=storage.get("volumeMode"),
        is_snapshot=is_snapshot,
    )


def identity(kind: ObjectKind, thing: Manifest) -> Manifest:
    """The fields of a PreloadObject that every object has."""
    metadata = thing["metadata"]
    found = metadata.get("labels") or {}
    generation = str(found.get(labels.GENERATION) or "")
    return {
        "kind": kind,
        "name": metadata["name"],
        "uid": str(metadata.get("uid") or ""),
        "preload_id": _as_id(found.get(labels.PRELOAD)),
        "generation": int(generation) if generation.isdecimal() else 0,
        "deleting": _is_going(thing),
        "installation": found.get(labels.INSTALLATION),
    }


def _as_id(value: object) -> UUID | None:
    try:
        return UUID(str(value))
    except ValueError:
        return None


def _is_going(thing: Manifest) -> bool:
    return thing["metadata"].get("deletionTimestamp") is not None


def _percent(value: object) -> float | None:
    """CDI writes `"43.2%"`, or `"N/A"` if it does not know."""
    try:
        return min(100.0, max(0.0, float(str(value).removesuffix("%"))))
    except ValueError:
        return None


def _trouble(conditions: list[Manifest] | None, kinds: tuple[str, ...]) -> str | None:
    """Reason and message of the first condition of these kinds that is False and has a reason."""
    told = {str(each.get("type")): each for each in conditions or ()}
    for kind in kinds:
        condition = told.get(kind) or {}
        reason, message = str(condition.get("reason") or ""), str(condition.get("message") or "")
        if condition.get("status") == "False" and reason not in _QUIET:
            return ": ".join(filter(None, (reason, message)))
    return None


def _pull(pod: Manifest) -> NodePull:
    status = pod.get("status") or {}
    node = str((pod.get("spec") or {}).get("nodeName") or _meant_for(pod))
    main: Manifest = next(
        (each for each in status.get("containerStatuses") or () if each.get("name") == IMAGE_CONTAINER), {}
    )
    if main.get("imageID"):
        return NodePull(node, PullState.PULLED)
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in _PULL_PROBLEMS:
            told = (waiting["reason"], waiting.get("message"))
            return NodePull(node, PullState.FAILED, ": ".join(filter(None, told)))
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return NodePull(node, PullState.FAILED, f"{condition.get('reason')}: {condition.get('message')}")
    if status.get("phase") == "Failed":
        return NodePull(node, PullState.FAILED, str(status.get("message") or status.get("reason") or "its pod failed"))
    return NodePull(node, PullState.PULLING)


def _meant_for(pod: Manifest) -> str:
    """The node of a DaemonSet's pod that is not bound yet, which its controller writes into the affinity."""
    affinity = ((pod.get("spec") or {}).get("affinity") or {}).get("nodeAffinity") or {}
    terms = (affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}).get("nodeSelectorTerms") or []
    for term in terms:
        for field in term.get("matchFields") or ():
            if field.get("key") == "metadata.name" and field.get("values"):
                return str(field["values"][0])
    return "(no node yet)"


def _bytes(quantity: str | None) -> int | None:
    return int(_number(quantity)) if quantity is not None else None


def _number(quantity: str) -> Fraction:
    try:
        return parse_quantity(quantity)
    except ValueError:
        return Fraction(0)
