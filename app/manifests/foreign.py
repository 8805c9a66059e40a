"""Documents of kinds that this service does not apply: what their authors are told, and whether they may be passed over."""

from collections.abc import Collection
from typing import Final

from app.domain.fields import suggest

_USED: Final = frozenset(
    {
        "ConfigMap",
        "DataSource",
        "NetworkAttachmentDefinition",
        "PersistentVolumeClaim",
        "Secret",
        "ServiceAccount",
        "VirtualMachineClusterInstancetype",
        "VirtualMachineClusterPreference",
        "VirtualMachineInstancetype",
        "VirtualMachinePreference",
    }
)
"""Kinds that a VM may refer to."""
_INSTEAD: Final = {
    "Kustomization": "build it with `kubectl kustomize FOLDER | emberpool apply -f -`",
    "VirtualMachineClone": "write a VirtualMachine that starts from a VirtualMachineSnapshot",
    "VirtualMachineInstance": "write a VirtualMachine, whose spec.template has the same fields",
    "VirtualMachineInstanceReplicaSet": "write a VirtualMachinePool, which keeps several VMs",
    "VirtualMachineRestore": "write a VirtualMachine with the annotation emberpool.io/start-from-snapshot",
}
"""What to write here instead of such a kind."""
_ALIKE: Final = frozenset(
    {
        "DataVolumeSource",
        "VirtualMachineBackup",
        "VirtualMachineBackupTracker",
        "VirtualMachineClass",
        "VirtualMachineExport",
        "VirtualMachineImage",
        "VirtualMachineInstanceMigration",
        "VirtualMachineInstancePreset",
        "VirtualMachineSnapshotContent",
        "VirtualMachineStorageMigration",
        "VirtualMachineTemplate",
        "VirtualMachineTemplateRequest",
        "VolumeSnapshot",
        "VolumeSnapshotClass",
        "VolumeSnapshotContent",
    }
)
"""Other kinds that look like a misspelt kind of ours."""
_OTHERWISE: Final = "pass it over here with --skip-unknown (skip_unknown=true in the API)"


def is_foreign(kind: str, known: Collection[str]) -> bool:
    """Whether the kind belongs to somebody else. A misspelt kind of ours does not."""
    return kind in _USED or kind in _INSTEAD or kind in _ALIKE or suggest(kind, known) is None


def refuse_foreign(kind: str, known: Collection[str], namespace: str) -> str:
    """The message for a foreign kind. `namespace`: that of the VMs; empty if it is not known."""
    if (instead := _INSTEAD.get(kind)) is not None:
        return f"is {kind}, which this service does not apply; {instead}, or {_OTHERWISE}"
    if kind in _USED:
        where = f"namespace {namespace!r}" if namespace else "the namespace of the VMs"
        return (
            f"is {kind}, which this service does not apply, but its VMs can use it: apply it with kubectl, in {where} "
            f"if it has one, and {_OTHERWISE}"
        )
    return (
        f"is {kind}, which this service does not apply: apply it with kubectl, and {_OTHERWISE}; "
        f"known here are: {', '.join(sorted(known))}"
    )
