"""Turns a template, as users write it, into the `spec` of a VirtualMachine. Pure.

There are four forms, which differ by their keys:

- short: `{image, cpu?, memory, root_disk?, storage_class?, disk?, user_data?, labels?}`. The VM boots from `image`: a container
  disk, or a disk image that is imported for it, written as `http(s)://...`, or as `docker://...` if it is in a registry.
  `root_disk` is the size of an imported boot disk. `image` may be missing if the VM starts from a snapshot or a preload. `disk`
  adds an empty second disk of that size. `user_data` is for cloud-init (NoCloud). The guest is not asked to shut down before its
  VM is deleted: a released VM is never used again, and what it wrote is lost.
- a VMI template: `{metadata?, spec: {domain, volumes, ...}}`, what a VirtualMachine has as `spec.template`.
- a VirtualMachine's spec: `{runStrategy?, template, dataVolumeTemplates?, ...}`.
- a VirtualMachine, or a VirtualMachinePool's template: `{metadata?, spec: {runStrategy?, template, ...}}`.

Filled in are: `runStrategy: Always`; if the pool waits for the guest agent, a readiness probe that asks the agent; and the
placement. Without a placement, the VMs of a pool are spread over the nodes. `running: true` becomes `runStrategy: Always`
(`running` is deprecated).

The short form has virtio disks. In the long forms nothing is filled in that KubeVirt, an instance type or a preference decides:
KubeVirt attaches a volume without a disk itself, on the bus that the preference names, else on the architecture's (KubeVirt v1.9.0).
"""

import copy
import json
import re
from enum import StrEnum

from app.compute.kubevirt.kinds import Manifest
from app.compute.kubevirt.templates import placement, rules, shapes
from app.compute.kubevirt.templates.field_types import check_types
from app.compute.kubevirt.templates.identity import carries_identity, carry_identity
from app.compute.kubevirt.templates.manifests import VIRTIO
from app.compute.kubevirt.templates.marks import marks_of
from app.compute.kubevirt.templates.problems import Problems
from app.compute.kubevirt.templates.singletons import exclusives_of, identity_of
from app.compute.kubevirt.templates.start_sources import has_own_disk, infers, keeps_state
from app.compute.vms import VmTemplate
from app.domain.observation import WarmWhen
from app.domain.placement import Placement
from app.domain.templates import VmSpec, WrittenTemplate
from app.errors import TemplateRefused, list_problems

ROOT = "template"


class TemplateForm(StrEnum):
    """How a template was written: it decides where in the template a refused field is."""

    SHORT = "short"
    VMI = "vmi"
    VM_SPEC = "vm-spec"
    VM = "vm"


_SHORT_KEYS = ("image", "cpu", "memory", "root_disk", "storage_class", "disk", "user_data", "labels")
_WRAPPER_KEYS = ("apiVersion", "kind", "metadata", "spec")
_VM_ROOTS = {TemplateForm.VM_SPEC: ROOT, TemplateForm.VM: f"{ROOT}.spec"}
_VMI_ROOTS = {
    TemplateForm.VMI: ROOT,
    TemplateForm.VM_SPEC: f"{ROOT}.template",
    TemplateForm.VM: f"{ROOT}.spec.template",
}
_SHORT_FIELDS = {
    "spec.template.spec.domain.memory": f"{ROOT}.memory",
    "spec.template.spec.domain.cpu": f"{ROOT}.cpu",
    "spec.template.metadata.labels": f"{ROOT}.labels",
    "metadata.labels": f"{ROOT}.labels",
    "spec.dataVolumeTemplate[0].spec.storage.storageClassName": f"{ROOT}.storage_class",
    "spec.dataVolumeTemplate[0].spec.storage": f"{ROOT}.root_disk",
    "spec.dataVolumeTemplate[0]": f"{ROOT}.image",
}
SHORT_VOLUMES = {"boot": f"{ROOT}.image", "data": f"{ROOT}.disk", "cloud-init": f"{ROOT}.user_data"}
"""What makes each volume of the short form."""
_IMPORTS = {"http://": "http", "https://": "http", "docker://": "registry"}
_ROOT_DISK = "10Gi"

_USER_DATA_LIMIT = 2048  # bytes that KubeVirt v1.9.0 accepts inline


def expand(
    template: WrittenTemplate,
    warm_when: WarmWhen,
    where: Placement | None = None,
    *,
    diskless: bool = False,
    full_cores: bool = False,
    channel: bool = False,
) -> VmTemplate:
    """Raises TemplateRefused with every problem that our own rules find.

    If this function fills in anything else than before, every pool rotates. `where` is the placement; see `placement.place`, also
    for `full_cores`. `diskless`: the VMs get a disk from what they start from, so the short form needs no image. `channel`: each VM
    gets an identity disk.
    """
    problems = Problems()
    written = _read(template, problems)
    form = _form(written)
    if form is TemplateForm.SHORT:
        spec = _expand_short(written, problems, diskless=diskless)
    else:
        spec = _expand_long(written, form, problems)
    if not problems.found:
        check_types(spec, lambda field: locate(form, field), problems)
    if not problems.found and not diskless:
        rules.check_uploads(spec, lambda field: locate(form, field), problems)
    if not problems.found:
        placement.place(spec, where, lambda field: locate(form, field), problems, full_cores=full_cores)
    if channel and not problems.found:
        carry_identity(spec, lambda field: locate(form, field), problems)
    if problems.found:
        raise TemplateRefused(
            f"No VM can be made from this template. {list_problems(problems.found)}", problems=problems.found
        )
    if warm_when is WarmWhen.AGENT and not spec["template"]["spec"].get("readinessProbe"):
        spec["template"]["spec"]["readinessProbe"] = dict(shapes.AGENT_PROBE)
    return describe(spec, form)


def describe(spec: Manifest, form: TemplateForm = TemplateForm.VM_SPEC) -> VmTemplate:
    """The template of an expanded spec."""

    def at(field: str) -> str:
        return locate(form, field)

    return VmTemplate(
        spec=VmSpec(spec),
        fingerprint=shapes.fingerprint(spec),
        shape=shapes.shape_of(spec),
        images=shapes.images_of(spec),
        has_own_disk=has_own_disk(spec),
        keeps_state=keeps_state(spec),
        infers=infers(spec),
        marks=marks_of(spec),
        exclusives=exclusives_of(spec, at),
        identity=identity_of(spec, at),
        has_identity_disk=carries_identity(spec),
        form=form,
    )


def give_time_to_stop(spec: Manifest, seconds: int) -> Manifest:
    """A copy whose guest gets at least this long to shut down."""
    spec = copy.deepcopy(spec)
    vmi = spec["template"]["spec"]
    vmi["terminationGracePeriodSeconds"] = max(vmi.get("terminationGracePeriodSeconds") or 0, seconds)
    return spec


def locate(form: TemplateForm, field: str) -> str:
    """Turns a field of a VirtualMachine, as the cluster names it, into the field of the template that its author wrote."""
    if form is TemplateForm.SHORT:
        return next((short for long, short in _SHORT_FIELDS.items() if _below(field, long) is not None), ROOT)
    field = field.replace("dataVolumeTemplate[", "dataVolumeTemplates[")  # KubeVirt v1.9.0 drops the s
    in_vmi = _below(field, "spec.template")
    if in_vmi is not None:
        return _VMI_ROOTS[form] + in_vmi
    in_vm = _below(field, "spec")
    if in_vm is not None:
        return _VM_ROOTS[form] + in_vm if form in _VM_ROOTS else ROOT
    if any(_below(field, f"metadata.{key}") is not None for key in ("labels", "annotations")):
        # The VM has the same ones as its VMI template: see `manifests.vm_manifest`.
        return f"{ROOT if form is TemplateForm.VM else _VMI_ROOTS[form]}.{field}"
    return ROOT


def _below(field: str, prefix: str) -> str | None:
    rest = field.removeprefix(prefix) if field.startswith(prefix) else None
    return rest if rest is not None and (not rest or rest[0] in ".[") else None


def _read(template: object, problems: Problems) -> Manifest:
    """A copy that holds only JSON: YAML also has dates, and a JSON column of Postgres accepts no NUL character."""
    try:
        text = json.dumps(template, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        problems.add(ROOT, f"contains a value that JSON cannot express ({error})")
        return {}
    if re.search(r"(?<!\\)(?:\\\\)*\\u0000", text):
        problems.add(ROOT, "contains a NUL character, which no field of a VM can have")
        return {}
    written = json.loads(text)
    if not isinstance(written, dict):
        problems.add(ROOT, f"must be a mapping, got {type(written).__name__}")
        return {}
    if not written:
        problems.add(ROOT, "is empty: write at least {image, memory}, or a KubeVirt template with `spec`")
    return written


def _form(written: Manifest) -> TemplateForm:
    if "template" in written:
        return TemplateForm.VM_SPEC
    if "spec" in written:
        spec = written["spec"]
        return TemplateForm.VM if isinstance(spec, dict) and "template" in spec else TemplateForm.VMI
    return TemplateForm.SHORT


def _expand_short(written: Manifest, problems: Problems, *, diskless: bool) -> Manifest:
    if not written:
        return {}
    unknown = [key for key in written if key not in _SHORT_KEYS]
    for key in unknown:
        problems.add(f"{ROOT}.{key}", _explain_unknown(key))
    if unknown and not written.keys() & set(_SHORT_KEYS):
        return {}  # it was meant as a long form: what the short one lacks would only confuse
    sources = _boot_disk(written, problems, diskless=diskless)
    imported = _import(written, problems) if "dataVolume" in sources.get("boot", {}) else None
    cores = rules.check_cores(written.get("cpu", 1), f"{ROOT}.cpu", problems)
    if written.get("memory") is None:
        problems.add(f"{ROOT}.memory", 'is missing: say how much memory the guest has, such as "2Gi"')
    else:
        rules.check_positive(written["memory"], f"{ROOT}.memory", problems)
    rules.check_labels(written.get("labels"), f"{ROOT}.labels", problems, on_vmi=True)
    if written.get("disk") is not None:
        rules.check_positive(written["disk"], f"{ROOT}.disk", problems)
        sources["data"] = {"emptyDisk": {"capacity": written["disk"]}}
    if written.get("user_data") is not None:
        _check_user_data(written["user_data"], problems)
        sources["cloud-init"] = {"cloudInitNoCloud": {"userData": written["user_data"]}}
    vmi_spec: Manifest = {
        "domain": {
            "cpu": {"cores": cores},
            "memory": {"guest": written.get("memory")},
            "devices": {"disks": [{"name": name, "disk": {"bus": VIRTIO}} for name in sources]},
        },
        "terminationGracePeriodSeconds": 0,
        "volumes": [{"name": name, **source} for name, source in sources.items()],
    }
    vmi_template: Manifest = {"spec": vmi_spec}
    if written.get("labels"):
        vmi_template["metadata"] = {"labels": written["labels"]}
    vm_spec: Manifest = {"runStrategy": rules.DEFAULT_RUN_STRATEGY, "template": vmi_template}
    if imported is not None:
        vm_spec["dataVolumeTemplates"] = [imported]
    return vm_spec


def _boot_disk(written: Manifest, problems: Problems, *, diskless: bool) -> dict[str, Manifest]:
    """The volume that the VM boots from, by its name; empty if the VM gets its disk from what it starts from."""
    image = written.get("image")
    imports = isinstance(image, str) and image.startswith(tuple(_IMPORTS))
    for key in ("root_disk", "storage_class"):
        if not imports and written.get(key) is not None:
            problems.add(
                f"{ROOT}.{key}", "needs an image that is imported: one that begins with http(s):// or docker://"
            )
    if image is None and diskless:
        return {}
    if not isinstance(image, str) or not image or re.search(r"\s", image):
        problems.add(
            f"{ROOT}.image",
            "must be the reference of a container disk, such as quay.io/containerdisks/fedora:42, or the URL of a disk "
            "image, such as https://example.com/fedora.qcow2",
        )
    elif not imports and "://" in image:
        problems.add(
            f"{ROOT}.image",
            f"cannot be imported from {image.partition('://')[0]}: use http(s)://, docker://, or the reference of a "
            "container disk; for other sources write a KubeVirt template with dataVolumeTemplates",
        )
    elif imports and image in _IMPORTS:
        problems.add(f"{ROOT}.image", "is only the beginning of a URL: add where the image is")
    return {"boot": {"dataVolume": {"name": "boot"}} if imports else {"containerDisk": {"image": image}}}


def _import(written: Manifest, problems: Problems) -> Manifest:
    """The DataVolume template of a boot disk with an imported image."""
    image, size, storage_class = written["image"], written.get("root_disk"), written.get("storage_class")
    storage: Manifest = {"resources": {"requests": {"storage": _ROOT_DISK if size is None else size}}}
    if size is not None:
        rules.check_positive(size, f"{ROOT}.root_disk", problems)
    if storage_class is not None:
        if not isinstance(storage_class, str) or not storage_class:
            problems.add(f"{ROOT}.storage_class", "must be the name of a storage class")
        storage["storageClassName"] = storage_class
    source = next(source for prefix, source in _IMPORTS.items() if image.startswith(prefix))
    return {"metadata": {"name": "boot"}, "spec": {"source": {source: {"url": image}}, "storage": storage}}


def _explain_unknown(key: str) -> str:
    if key in {"domain", "volumes", "networks"}:
        return "belongs below `spec`, as in a VirtualMachine's `spec.template`"
    return f"is not a key of the short form ({', '.join(_SHORT_KEYS)}); for other fields write a KubeVirt template with `spec`"


def _check_user_data(value: object, problems: Problems) -> None:
    if not isinstance(value, str) or not value.strip():
        problems.add(f"{ROOT}.user_data", "must be cloud-init user data, a string")
    elif len(value.encode()) > _USER_DATA_LIMIT:
        problems.add(
            f"{ROOT}.user_data",
            f"is longer than the {_USER_DATA_LIMIT} bytes that KubeVirt accepts inline: put it into a Secret and write a "
            "KubeVirt template whose cloudInitNoCloud volume has a secretRef",
        )


def _expand_long(written: Manifest, form: TemplateForm, problems: Problems) -> Manifest:
    if form is TemplateForm.VM_SPEC:
        vm_spec, vm_metadata = written, {}
    else:
        _check_wrapper(written, form, problems)
        vm_metadata = problems.mapping(written, "metadata", ROOT) if form is TemplateForm.VM else {}
        problems.mapping(written, "spec", ROOT)
        parts = {key: written[key] for key in ("metadata", "spec") if written.get(key) is not None}
        vm_spec = written["spec"] if form is TemplateForm.VM else {"template": parts}
    rules.check_metadata(vm_metadata, f"{ROOT}.metadata", problems, on_vmi=False)
    vmi_root = _VMI_ROOTS[form]
    if vm_root := _VM_ROOTS.get(form):
        rules.check_vm_spec(vm_spec, vm_root, problems)
    rules.check_vmi_template(vm_spec, vmi_root, problems)
    if problems.found:
        return {}
    vm_spec.pop("running", None)
    vm_spec["runStrategy"] = vm_spec.get("runStrategy") or rules.DEFAULT_RUN_STRATEGY
    _merge_metadata(vm_spec["template"], vm_metadata)
    domain = vm_spec["template"]["spec"]["domain"]
    domain["devices"] = domain.get("devices") or {}  # the schema requires it, even if it is empty (KubeVirt v1.9.0)
    if not domain["devices"].get("disks"):
        domain["devices"].pop("disks", None)  # only the short form has an empty list: see `manifests.added_disk`
    return vm_spec


def _check_wrapper(written: Manifest, form: TemplateForm, problems: Problems) -> None:
    kind = "VirtualMachine" if form is TemplateForm.VM else "VirtualMachineInstance"
    for key in written:
        if key not in _WRAPPER_KEYS:
            problems.add(f"{ROOT}.{key}", "is not allowed beside `spec` here: only `metadata` is")
    if written.get("kind", kind) != kind:
        problems.add(f"{ROOT}.kind", f"must be {kind} for a template of this shape, or be left out")
    version = written.get("apiVersion", "kubevirt.io/v1")
    if not isinstance(version, str) or not version.startswith("kubevirt.io/"):
        problems.add(f"{ROOT}.apiVersion", "must be kubevirt.io/v1, or be left out")


def _merge_metadata(vmi_template: Manifest, vm_metadata: Manifest) -> None:
    """Adds the labels and annotations of the VM to those of its VMI, which take precedence."""
    own = vmi_template.pop("metadata", None) or {}
    merged = {key: {**(vm_metadata.get(key) or {}), **(own.get(key) or {})} for key in ("labels", "annotations")}
    if kept := {key: value for key, value in merged.items() if value}:
        vmi_template["metadata"] = kept
