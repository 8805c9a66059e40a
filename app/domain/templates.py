"""VM templates as values that every layer carries and only the compute layer opens."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NewType

WrittenTemplate = dict[str, Any]
"""A template as its author wrote it, as JSON: in the short form, or in a form that the cluster's runtime documents."""

VmSpec = NewType("VmSpec", object)
"""What a VM is made from: JSON that the gateway wrote when it expanded a template.

It is stored and given back to the gateway. Its content belongs to the runtime, so nothing else reads or changes it; the type
hides the content from the type checker. Ask the gateway for what you need of it.
"""


@dataclass(frozen=True, slots=True)
class Marks:
    """The labels and annotations of a template that are written onto a VM when it is claimed, and are no part of its shape."""

    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, dict[str, str]]:
        return {"labels": dict(self.labels), "annotations": dict(self.annotations)}


NO_MARKS: Final = Marks()


@dataclass(frozen=True, slots=True)
class Exclusive:
    """Something that exists once and that a VM writes to: two VMs must never have it at the same time.

    `key` names it, equal for the same thing in any template; `field` is where the template names it. `volume`: the volume that
    it is, which starts with other content if the VM starts from a snapshot of that volume; None if it is no volume.
    """

    key: str
    field: str
    message: str
    volume: str | None = None

    @property
    def name(self) -> str:
        """In the cluster."""
        return self.key.rpartition(" ")[2]
