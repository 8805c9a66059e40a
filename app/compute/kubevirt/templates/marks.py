"""The labels and annotations that a VM may get while it runs, because nothing reads them when it boots. Pure.

KubeVirt v1.9.0 copies the labels and annotations of a VMI's template to the VMI and to its pod. There they are read by KubeVirt
itself, by network plugins, by webhooks that add containers, by the container runtime: a key counts as read unless it is known
that nothing reads it. Those are the keys without a prefix and without dots, which Kubernetes leaves to users (container runtimes
have keys with dots and no prefix), less the three labels by which KubeVirt makes a launcher verbose; and a few that only describe.

KubeVirt does not carry a change of them on to a VMI or pod that exists, except for keys that its operator names
(`--additional-launcher-labels-sync` and `--additional-launcher-annotations-sync` of virt-controller).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from app.compute.kubevirt import labels
from app.compute.kubevirt.kinds import Manifest
from app.domain.templates import Marks

_KINDS: Final = ("labels", "annotations")
_MADE_VERBOSE_BY: Final = frozenset({"debugLogs", "logVerbosity", "virtiofsdDebugLogs"})
"""Labels of a VMI that virt-controller reads (KubeVirt v1.9.0, pkg/virt-controller/services/template.go)."""
_DESCRIPTIVE_PREFIX: Final = "app.kubernetes.io/"
SET_ON_PODS: Final = "vm.kubevirt.io/name"
"""A label that KubeVirt overwrites on the pod with the VM's host name (v1.9.0)."""
_DESCRIPTIVE: Final = {
    "labels": frozenset({f"kubevirt.io/{name}" for name in ("domain", "flavor", "os", "size", "vm")} | {SET_ON_PODS}),
    "annotations": frozenset({"kubectl.kubernetes.io/last-applied-configuration"}),
}
_READS_ALL: Final = "hooks.kubevirt.io/"
"""A hook sidecar is given the whole VMI when the domain is defined."""
_SELECTORS: Final = ("matchLabelKeys", "mismatchLabelKeys")
_NAME: Final = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_LABEL_KEY: Final = re.compile(rf"([a-z0-9]([a-z0-9.-]{{0,251}}[a-z0-9])?/)?{_NAME}")
_LABEL_VALUE: Final = re.compile(rf"({_NAME})?")
_RESERVED: Final = ("kubernetes.io", "k8s.io", "x-k8s.io", "kubevirt.io")


def marks_of(spec: Manifest) -> Marks:
    """The labels and annotations in the VMI template of a VirtualMachine's `spec` that may be written while the VM runs."""
    found = _metadata(spec)
    if _is_read_as_a_whole(spec, found["annotations"]):
        return Marks()
    selected = set(_selected(spec["template"]["spec"]))
    kept = {
        kind: {key: value for key, value in found[kind].items() if is_mark(kind, key) and key not in selected}
        for kind in _KINDS
    }
    return Marks(kept["labels"], kept["annotations"])


def read_at_boot(spec: Manifest) -> Manifest:
    """The other labels and annotations, as `{labels, annotations}`."""
    marks = marks_of(spec)
    written = {"labels": marks.labels, "annotations": marks.annotations}
    return {
        kind: {key: value for key, value in found.items() if key not in written[kind]}
        for kind, found in _metadata(spec).items()
    }


def is_mark(kind: str, key: str) -> bool:
    """Whether nothing reads the key when a VM boots. `kind` is `labels` or `annotations`."""
    if key in _DESCRIPTIVE[kind] or (key.startswith(_DESCRIPTIVE_PREFIX) and not labels.is_ours(key)):
        return True
    return not ("/" in key or "." in key or key in _MADE_VERBOSE_BY)


def claim_labels(given: Mapping[str, str]) -> dict[str, str]:
    """The labels of a claim that its VM can have too, `name` under our own key. Keys of Kubernetes, KubeVirt and our own are not
    for clients, and neither is what Kubernetes does not accept as a label.
    """
    found = {labels.NAME if key == "name" else key: value for key, value in given.items() if not _is_reserved(key)}
    return {key: value for key, value in found.items() if _LABEL_KEY.fullmatch(key) and _LABEL_VALUE.fullmatch(value)}


def _is_reserved(key: str) -> bool:
    if is_mark("labels", key):
        return False
    prefix = key.rpartition("/")[0]
    of_the_system = any(prefix == each or prefix.endswith(f".{each}") for each in _RESERVED)
    return of_the_system or labels.is_ours(key) or key in _MADE_VERBOSE_BY


def _metadata(spec: Manifest) -> dict[str, dict[str, str]]:
    metadata = spec["template"].get("metadata") or {}
    return {kind: dict(metadata.get(kind) or {}) for kind in _KINDS}


def _is_read_as_a_whole(spec: Manifest, annotations: Mapping[str, str]) -> bool:
    """Whether a sidecar or the guest itself sees all labels and annotations."""
    volumes = spec["template"]["spec"].get("volumes") or []
    return any(key.startswith(_READS_ALL) for key in annotations) or any("downwardAPI" in each for each in volumes)


def _selected(value: Any) -> Iterator[str]:
    """The label keys that the VM's own affinity and spreading rules select by: they decide where it runs."""
    if isinstance(value, list):
        for item in value:
            yield from _selected(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key == "labelSelector" and isinstance(item, dict):
                yield from item.get("matchLabels") or {}
                rules = item.get("matchExpressions") or []
                yield from (str(each.get("key")) for each in rules if isinstance(each, dict))
            elif key in _SELECTORS and isinstance(item, list):
                yield from (str(each) for each in item)
            else:
                yield from _selected(item)
