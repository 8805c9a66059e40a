"""VM templates, and what a cluster reports about its VMs."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from app.domain.observation import Observation
from app.domain.paths import ImageRef
from app.domain.templates import NO_MARKS, Exclusive, Marks, VmSpec
from app.errors import FieldProblem


@dataclass(frozen=True, slots=True)
class VmTemplate:
    """A template that the gateway expanded and checked by its own rules. Only the gateway makes one.

    `spec` is all that a VM is made from, and all that has to be stored. The other fields are read from it:

    - `fingerprint`: equal for templates that make the same VM. When it changes, the pool rotates its VMs.
    - `shape`: equal for templates whose VMs are the same but for their marks. A VM of one can serve a claim for the other.
    - `marks`: the labels and annotations that a VM of the same shape gets when it is claimed.
    - `images`: what the disks are made from.
    - `has_own_disk`: whether it has a disk with content of its own, so that its VMs can start without a snapshot or preload.
    - `keeps_state`: whether its VMs have a persistent TPM or EFI, whose state no snapshot brings back.
    - `infers`: whether KubeVirt reads its instance type or preference from the labels of a volume, which no copy of it has.
    - `exclusives`: what the VMs write to although it exists once.
    - `identity`: the fields that identify one machine.
    - `has_identity_disk`: whether each VM needs an identity, made before the VM is.
    - `form`: how the template was written. Only the gateway reads it, to say where in the template a refused field is.
    """

    spec: VmSpec
    fingerprint: str
    shape: str
    images: tuple[ImageRef, ...] = ()
    has_own_disk: bool = True
    keeps_state: bool = False
    infers: bool = False
    marks: Marks = NO_MARKS
    exclusives: tuple[Exclusive, ...] = ()
    identity: tuple[FieldProblem, ...] = ()
    has_identity_disk: bool = False
    form: str = ""


@dataclass(frozen=True, slots=True)
class Listed:
    """All VMs of this installation at one moment: a VM that is not listed does not exist.

    The observations may be made one by one as they are asked for, so that a list of thousands is not held twice.

    `began_at` is when the list was requested, by the clock of this process. A VM that was created later may be missing. Allow
    for clock differences when you compare it with a time from another clock.
    """

    observations: Sequence[Observation]
    began_at: datetime


@dataclass(frozen=True, slots=True)
class Changed:
    """One VM changed. The observation is complete."""

    observation: Observation


@dataclass(frozen=True, slots=True)
class Gone:
    """One VM left the cluster."""

    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The cluster cannot be observed at the moment, and why. A list or Restored follows once it can be observed again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Restored:
    """The cluster is observed again, and what happened meanwhile has been told."""


ClusterEvent = Listed | Changed | Gone | Broken | Restored
