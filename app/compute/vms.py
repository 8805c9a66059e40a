"""VM templates, and what a cluster reports about its VMs."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from app.domain.observation import Observation
from app.domain.paths import ImageRef


class TemplateForm(StrEnum):
    """How a template was written. It is needed only to say where in it a refused field stands."""

    SHORT = "short"
    """`{image, cpu, memory, ...}`"""
    VMI = "vmi"
    """`{metadata?, spec: {domain, volumes, ...}}`: what a VirtualMachine has as `spec.template`"""
    VM_SPEC = "vm-spec"
    """`{runStrategy?, template, dataVolumeTemplates?}`: a VirtualMachine's `spec`"""
    VM = "vm"
    """`{metadata?, spec: {runStrategy?, template, ...}}`: a VirtualMachine, or a VirtualMachinePool's template"""


@dataclass(frozen=True, slots=True)
class VmTemplate:
    """A pool's template, expanded and checked by our own rules: the `spec` of a VirtualMachine, and its fingerprint.

    `fingerprint` is the same for templates that make the same VM; a change of it rotates a pool. `spec` and `fingerprint`
    are all that a VM is made from, and so all that has to be kept. `shape` is the same for templates whose VMs boot the
    same, whatever they are called: a VM of one may serve a wish for the other. `images`: what its disks are made from.
    """

    spec: dict[str, Any]
    fingerprint: str
    form: TemplateForm = TemplateForm.VM_SPEC
    shape: str = ""
    images: tuple[ImageRef, ...] = ()


@dataclass(frozen=True, slots=True)
class Listed:
    """The whole truth at one moment: VMs of ours that are not in it do not exist.

    `began_at` is when the list was asked for, by this process's clock: a VM created after it may be missing. Whoever
    compares it with times that another clock wrote must allow for the difference, or take their own note of the time.
    """

    observations: tuple[Observation, ...]
    began_at: datetime


@dataclass(frozen=True, slots=True)
class Changed:
    """One VM (or its VMI) changed: all that is known of it now."""

    observation: Observation


@dataclass(frozen=True, slots=True)
class Gone:
    """One VM left the cluster."""

    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The cluster cannot be observed right now, and why; a Listed follows when it can be again."""

    reason: str


ClusterEvent = Listed | Changed | Gone | Broken
