"""The states of a preload, and what to do next. Pure.

`planned -> importing` (a volume) or `pulling` (a container image) `-> ready`. Each import is a generation with its own objects;
an edit, a refresh and a retry begin the next generation. The previous generation serves until the new one is ready, and is
removed once no VM clones it any more. If an import has `failed`, its object is removed and the next generation begins after a
pause; nodes that cannot pull an image keep trying by themselves. With the policy Never a volume that does not exist makes the
preload `absent`. A preload that is `deleting` is `deleted` once the cluster has none of its objects.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from app.domain.preloads import PreloadSpec
from app.errors import IllegalTransition


class PreloadState(StrEnum):
    PLANNED = "planned"
    IMPORTING = "importing"
    PULLING = "pulling"
    READY = "ready"
    FAILED = "failed"
    ABSENT = "absent"
    DELETING = "deleting"
    DELETED = "deleted"


_S = PreloadState
_WORKING = frozenset({_S.PLANNED, _S.IMPORTING, _S.PULLING, _S.READY, _S.FAILED, _S.ABSENT, _S.DELETING})
PRELOAD_TRANSITIONS: dict[PreloadState, frozenset[PreloadState]] = {
    _S.PLANNED: _WORKING,
    _S.IMPORTING: _WORKING - {_S.PULLING},
    _S.PULLING: _WORKING - {_S.IMPORTING, _S.ABSENT},
    _S.READY: _WORKING,
    _S.FAILED: _WORKING - {_S.IMPORTING},
    _S.ABSENT: _WORKING - {_S.PULLING},
    _S.DELETING: frozenset({_S.DELETING, _S.DELETED}),
    _S.DELETED: frozenset(),
}


def check_preload_transition(old: PreloadState, new: PreloadState) -> None:
    """Raises IllegalTransition where the table does not allow it."""
    if old is not new and new not in PRELOAD_TRANSITIONS[old]:
        raise IllegalTransition(f"a preload cannot go from {old} to {new}")


class ObjectKind(StrEnum):
    VOLUME = "DataVolume"
    CRON = "DataImportCron"
    NODES = "DaemonSet"


class PullState(StrEnum):
    PULLED = "pulled"
    PULLING = "pulling"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class NodePull:
    """The image on one node. `reason`: the message of the kubelet."""

    node: str
    state: PullState
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Volume:
    """What a VM's disk can be cloned from. `is_snapshot`: `claim` names a VolumeSnapshot, as a scheduled import may create."""

    claim: str
    size: str
    storage_class: str | None
    access_modes: tuple[str, ...]
    volume_mode: str | None
    is_snapshot: bool = False


@dataclass(frozen=True, slots=True)
class PreloadObject:
    """One object of a preload as the cluster shows it. `progress` is in percent, `trouble` is what the cluster says is wrong.

    `volume`: what it holds, once that is complete. `nodes` and `wanted` are of a DaemonSet; -1: not counted yet.
    """

    kind: ObjectKind
    name: str
    uid: str
    preload_id: UUID | None
    generation: int
    deleting: bool = False
    phase: str = ""
    progress: float | None = None
    bytes_total: int | None = None
    restarts: int = 0
    failed: bool = False
    trouble: str | None = None
    volume: Volume | None = None
    nodes: tuple[NodePull, ...] = ()
    wanted: int = -1
    installation: str | None = None


@dataclass(frozen=True, slots=True)
class Present:
    """What the namespace has under the preload's own name: a complete `volume`, or the reason why there is none."""

    volume: Volume | None
    reason: str


@dataclass(frozen=True, slots=True)
class Serving:
    """What VMs start from now. `adopted`: it existed before the preload, and we never remove it."""

    volume: Volume
    generation: int
    adopted: bool
    since: datetime


@dataclass(frozen=True, slots=True)
class OnNodes:
    """On how many of the `wanted` nodes the DaemonSet of a generation keeps the container image."""

    generation: int
    pulled: int
    wanted: int


@dataclass(frozen=True, slots=True)
class Status:
    """What was observed last of the current generation. `samples` are of its progress, the oldest first.

    `trouble` is what the cluster says now. `failure` is why the last import failed, until one succeeds.
    """

    serving: Serving | None = None
    on: OnNodes | None = None
    phase: str = ""
    bytes_total: int | None = None
    restarts: int = 0
    trouble: str | None = None
    failure: str | None = None
    moved_at: datetime | None = None
    samples: tuple[tuple[datetime, float], ...] = ()
    nodes: tuple[NodePull, ...] = ()

    @property
    def progress(self) -> float | None:
        return self.samples[-1][1] if self.samples else None


@dataclass(frozen=True, slots=True)
class Facts:
    """What a decision needs of a preload's row."""

    spec: PreloadSpec
    generation: int
    state: PreloadState
    deleting: bool
    status: Status


@dataclass(frozen=True, slots=True)
class Rules:
    """An import has failed if neither its phase nor its progress changed for `stall_seconds`, or if its importer was restarted
    `most_restarts` times.
    """

    stall_seconds: float
    most_restarts: int = 3


@dataclass(frozen=True, slots=True)
class Step:
    """`make`: create the object of this generation. `begin_anew`: the next generation begins.

    `remove` these objects now, and the `superseded` ones once no VM clones them. `paces`: a failure that lengthens the pause
    before the next import.
    """

    state: PreloadState
    status: Status
    reason: str | None = None
    make: bool = False
    begin_anew: bool = False
    remove: tuple[PreloadObject, ...] = ()
    superseded: tuple[PreloadObject, ...] = ()
    paces: bool = False


@dataclass(frozen=True, slots=True)
class Estimate:
    """The rest of an import. `bytes_done` is computed from the size of the volume: CDI reports a percentage only."""

    percent: float | None = None
    bytes_done: int | None = None
    bytes_per_second: float | None = None
    ends_at: datetime | None = None


_SAMPLES = 24
_ESTIMATE_SECONDS = 60.0


def next_step(
    facts: Facts, objects: tuple[PreloadObject, ...], present: Present | None, rules: Rules, now: datetime
) -> Step:
    """What follows from the row and the cluster. `present` is None if the preload may not use an existing volume."""
    if facts.deleting:
        state = _S.DELETING if objects else _S.DELETED
        return _add_removals(Step(state, Status(), reason=_going(objects)), objects)
    kind = _kind_of(facts.spec)
    current = next((each for each in objects if each.generation == facts.generation and each.kind is kind), None)
    older = tuple(each for each in objects if each is not current)
    step = (
        _pull(facts, current, older, now)
        if facts.spec.is_container
        else _import(facts, current, present, rules=rules, now=now)
    )
    return _add_removals(step, older)


def estimate(samples: tuple[tuple[datetime, float], ...], bytes_total: int | None, now: datetime) -> Estimate:
    """From the progress of the last minute. Without progress there is no `ends_at`."""
    if not samples:
        return Estimate()
    last_at, percent = samples[-1]
    done = round(bytes_total * percent / 100) if bytes_total is not None else None
    begun = next(((at, p) for at, p in samples if (last_at - at).total_seconds() <= _ESTIMATE_SECONDS), samples[-1])
    seconds = (now - begun[0]).total_seconds()
    rate = (percent - begun[1]) / seconds if seconds > 0 else 0.0
    if rate <= 0:
        return Estimate(percent, done)
    speed = bytes_total * rate / 100 if bytes_total is not None else None
    return Estimate(percent, done, speed, now + timedelta(seconds=(100 - percent) / rate))


def is_usable(spec: PreloadSpec, status: Status) -> bool:
    """Whether VMs can start from it now, even while a newer generation is being imported."""
    return bool(status.on and status.on.pulled) if spec.is_container else status.serving is not None


def _kind_of(spec: PreloadSpec) -> ObjectKind:
    if spec.is_container:
        return ObjectKind.NODES
    return ObjectKind.CRON if spec.schedule is not None else ObjectKind.VOLUME


def _going(objects: tuple[PreloadObject, ...]) -> str | None:
    return f"waits for {', '.join(f'{each.kind} {each.name}' for each in objects)} to go" if objects else None


def _import(
    facts: Facts, current: PreloadObject | None, present: Present | None, *, rules: Rules, now: datetime
) -> Step:
    status, serving = facts.status, facts.status.serving
    if current is None:
        return _without_object(facts, present, now)
    if current.volume is None and serving is not None and serving.generation == facts.generation:
        status = replace(status, serving=None)
    if facts.state is _S.FAILED and current.volume is None:
        return Step(_S.FAILED, status, reason=status.failure, remove=() if current.deleting else (current,))
    if current.deleting:
        return _gone(facts, f"{current.kind} {current.name} is being deleted by somebody else")
    status = replace(_follow(facts, current, now), serving=status.serving)
    if current.volume is not None:
        if serving is None or serving.generation != facts.generation or serving.volume != current.volume:
            serving = Serving(current.volume, facts.generation, adopted=False, since=now)
        return Step(_S.READY, replace(status, serving=serving, trouble=None, failure=None))
    why = _find_failure(current, status, rules, now)
    if why is not None:
        return Step(_S.FAILED, replace(status, failure=why), reason=why, remove=(current,), paces=True)
    return Step(_S.IMPORTING, status, reason=current.trouble)


def _without_object(facts: Facts, present: Present | None, now: datetime) -> Step:
    serving = facts.status.serving
    if present is not None:
        if present.volume is not None:
            if serving is None or not serving.adopted or serving.volume != present.volume:
                serving = Serving(present.volume, facts.generation, adopted=True, since=now)
            return Step(_S.READY, Status(serving=serving), reason=present.reason)
        if facts.spec.policy == "Never":
            return Step(_S.ABSENT, Status(), reason=present.reason)
    if facts.state is _S.FAILED:
        status = Status(serving=serving, failure=facts.status.failure)
        return Step(_S.PLANNED, status, reason=status.failure, begin_anew=True)
    if serving is not None and (serving.generation == facts.generation or (serving.adopted and present is not None)):
        return _gone(facts, f"volume {serving.volume.claim} is gone from the cluster")
    if facts.state is not _S.PLANNED:
        return _gone(facts, "its object is gone from the cluster")
    return Step(_S.IMPORTING, Status(serving=serving, failure=facts.status.failure, moved_at=now), make=True)


def _gone(facts: Facts, why: str) -> Step:
    """The object is gone, so the next generation begins: a name is never used twice."""
    serving = facts.status.serving
    if serving is not None and (serving.adopted or serving.generation == facts.generation):
        serving = None
    status = Status(serving=serving, failure=facts.status.failure)
    return Step(_S.PLANNED, status, reason=f"{why}; the image is imported again", begin_anew=True)


def _follow(facts: Facts, current: PreloadObject, now: datetime) -> Status:
    """What was observed of the import, and since when nothing changed."""
    old = facts.status
    moved = old.moved_at is None or current.phase != old.phase or current.progress not in (None, old.progress)
    samples = old.samples
    if current.progress is not None and (not samples or current.progress != samples[-1][1]):
        restarted = bool(samples) and current.progress < samples[-1][1]  # the importer began again
        samples = (*(() if restarted else samples), (now, current.progress))[-_SAMPLES:]
    return Status(
        serving=old.serving,
        phase=current.phase,
        bytes_total=current.bytes_total,
        restarts=current.restarts,
        trouble=current.trouble,
        failure=old.failure,
        moved_at=now if moved else old.moved_at,
        samples=samples,
    )


def _find_failure(current: PreloadObject, status: Status, rules: Rules, now: datetime) -> str | None:
    where = f" at {status.progress:g} %" if status.progress else ""
    trouble = f": {current.trouble}" if current.trouble else ""
    if current.failed:
        return f"the import failed{where}{trouble}"
    if current.restarts >= rules.most_restarts and current.trouble:
        return f"the import failed{where}, and {current.restarts} restarts did not help{trouble}"
    stood = (now - status.moved_at).total_seconds() if status.moved_at is not None else 0.0
    if stood >= rules.stall_seconds:
        phase = f" in phase {current.phase}" if current.phase else ""
        return f"the import made no progress{where}{phase} for {stood:.0f} s{trouble}"
    return None


def _pull(facts: Facts, current: PreloadObject | None, older: tuple[PreloadObject, ...], now: datetime) -> Step:
    held = [_on_nodes(each) for each in (*([current] if current else []), *_newest_first(older)) if each.nodes]
    on = next((each for each in held if each.pulled), None)
    failure = facts.status.failure
    if current is None or current.deleting:
        if facts.state is _S.PLANNED and current is None:
            return Step(_S.PULLING, Status(on=on, failure=failure, moved_at=now), make=True)
        reason = (
            failure if facts.state is _S.FAILED else "its DaemonSet is gone from the cluster; another one is created"
        )
        return Step(_S.PLANNED, Status(on=on, failure=failure), reason=reason, begin_anew=True)
    here = _on_nodes(current)
    samples = ((now, 100.0 * here.pulled / here.wanted),) if here.wanted > 0 else ()
    status = Status(on=on, nodes=current.nodes, trouble=current.trouble, failure=failure, samples=samples, moved_at=now)
    failed = [each for each in current.nodes if each.state is PullState.FAILED]
    if current.wanted == 0:
        return Step(_S.PULLING, status, reason="no node carries the labels of the node selector")
    if 0 < current.wanted <= here.pulled:
        return Step(_S.READY, replace(status, failure=None))
    if current.wanted > 0 and here.pulled + len(failed) >= current.wanted:
        why = "; ".join(f"{each.node}: {each.reason}" for each in failed)
        why = f"pulled on {here.pulled} of {current.wanted} nodes; {why}"
        return Step(_S.FAILED, replace(status, failure=why), reason=why)
    return Step(_S.PULLING, status, reason=current.trouble)


def _on_nodes(daemon_set: PreloadObject) -> OnNodes:
    pulled = sum(1 for each in daemon_set.nodes if each.state is PullState.PULLED)
    return OnNodes(daemon_set.generation, pulled, daemon_set.wanted)


def _newest_first(objects: tuple[PreloadObject, ...]) -> list[PreloadObject]:
    return sorted((each for each in objects if each.kind is ObjectKind.NODES), key=lambda each: -each.generation)


def _add_removals(step: Step, older: tuple[PreloadObject, ...]) -> Step:
    """Objects of older generations that serve stay until this one is ready; unfinished imports are removed at once."""
    status = step.status
    serves = set()
    if step.state is not _S.READY:
        serves = {kept.generation for kept in (status.serving, status.on) if kept is not None}
    going = [each for each in older if not each.deleting and each.generation not in serves]
    return replace(
        step,
        remove=(*step.remove, *(each for each in going if each.volume is None)),
        superseded=tuple(each for each in going if each.volume is not None),
    )
