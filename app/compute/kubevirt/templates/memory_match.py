"""Whether a VM is the one whose memory was kept: such memory fits no other machine, and its guest never boots again. Pure."""

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Final

from app.compute.kubevirt.kinds import Manifest
from app.compute.kubevirt.templates.shapes import contents_of
from app.compute.kubevirt.templates.start_sources import has_own_disk
from app.domain.paths import SnapshotDisk
from app.errors import FieldProblem

_CLOUD_INIT: Final = ("cloudInitNoCloud", "cloudInitConfigDrive")
_LONGEST: Final = 60
_ROOTS: Final = {"instance": "spec.template.spec", "metadata": "spec.template.metadata"}

Locate = Callable[[str], str]
"""Turns a field of a VirtualMachine into the place where its author wrote it."""


def find_differences(
    spec: Manifest, kept: Manifest, disks: Iterable[SnapshotDisk], at: Locate, fields: dict[str, str]
) -> tuple[FieldProblem, ...]:
    """`spec` and `kept` are expanded. `fields`: where the author wrote volumes, by their names, if not below `spec`."""
    ours, theirs = contents_of(spec), contents_of(kept)
    held = {disk.volume for disk in disks} if not has_own_disk(spec) else set()
    found = list(_disk_problems(ours, theirs, held, lambda name: fields.get(name) or at(_volume_field(spec, name))))
    for key in sorted((ours.keys() | theirs.keys()) - {"disks"}):
        root = _ROOTS.get(key, f"spec.{key}")
        found += (FieldProblem(at(path), message) for path, message in _walk(root, ours.get(key), theirs.get(key)))
    return tuple(dict.fromkeys(found))


def _disk_problems(ours: Manifest, theirs: Manifest, held: Collection[str], at: Locate) -> Iterator[FieldProblem]:
    """`held`: disks of the snapshot that the VM gets without asking for them."""
    mine = {disk["name"]: disk for disk in ours.get("disks") or []}
    its = {disk["name"]: disk for disk in theirs.get("disks") or [] if disk["name"] in mine or disk["name"] not in held}
    for name in mine.keys() - its.keys():
        yield FieldProblem(at(name), f"volume {name} is not in the VM whose memory was kept: leave it out")
    for name in sorted(its.keys() - mine.keys()):
        yield FieldProblem(
            at(name), f"volume {name} of the VM whose memory was kept is missing: write it as it was there"
        )
    for name, disk in mine.items():
        if name in its and disk != its[name]:
            yield FieldProblem(at(name), _disk_message(name, disk, its[name]))
    if list(mine) != list(its) and mine.keys() == its.keys():
        yield FieldProblem(at(next(iter(mine))), f"the disks are in another order there: {', '.join(its)}")


def _disk_message(name: str, disk: Manifest, kept: Manifest) -> str:
    content, other = disk.get("content") or {}, kept.get("content") or {}
    if content != other and any(key in content or key in other for key in _CLOUD_INIT):
        return (
            f"the cloud-init of volume {name} differs, and cannot be applied: the guest ran its own before its memory was kept, and does not "
            "boot again. Write what the snapshot's VM has, or start from a snapshot without memory"
        )
    return f"disk {name} differs from that of the VM whose memory was kept: write it as it is there"


def _walk(path: str, ours: Any, theirs: Any) -> Iterator[tuple[str, str]]:
    """The fields that differ, each with what it is here and there."""
    if ours == theirs:
        return
    if isinstance(ours, dict | None) and isinstance(theirs, dict | None) and (ours or theirs):
        for key in sorted({*(ours or {}), *(theirs or {})}):
            yield from _walk(f"{path}.{key}", (ours or {}).get(key), (theirs or {}).get(key))
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from _walk(f"{path}[{index}]", one, other)
    else:
        yield path, f"is {_say(ours)} here and {_say(theirs)} in the kept memory, which fits no other machine"


def _say(value: Any) -> str:
    if value is None:
        return "not set"
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _volume_field(spec: Manifest, name: str) -> str:
    volumes = spec["template"]["spec"].get("volumes") or []
    index = next((number for number, volume in enumerate(volumes) if volume["name"] == name), None)
    return "spec.template.spec.volumes" + (f"[{index}]" if index is not None else "")
