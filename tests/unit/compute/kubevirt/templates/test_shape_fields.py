"""Every field of a VirtualMachine's spec, as KubeVirt's schema lists them, is part of the shape, written at the claim, or without
effect for the reason that stands here. A field that a later KubeVirt adds is part of the shape until somebody says otherwise.
"""

import copy
import json

import pytest

from app.compute.kubevirt import labels
from app.compute.kubevirt.templates.expand import expand
from app.compute.kubevirt.templates.manifests import mark_changes, vm_manifest
from app.compute.kubevirt.templates.marks import marks_of
from app.compute.kubevirt.templates.shapes import AGENT_PROBE, shape_of
from app.domain.observation import WarmWhen
from app.domain.placement import Placement, Spread
from tests.support.crd_schemas import open_schema
from tests.support.kubevirt_documents import SHORT, VM_SPEC, changed

WITHOUT_EFFECT = {
    "dataVolumeTemplates[].apiVersion": "a template has one kind and one version",
    "dataVolumeTemplates[].kind": "a template has one kind and one version",
    "dataVolumeTemplates[].metadata.name": "the service gives the DataVolumes of each VM names of their own",
    "dataVolumeTemplates[].status": "written by the cluster, and ignored in a template",
    "template.metadata.name": "refused in a template, and KubeVirt gives a VMI the name of its VM",
}
PATCHED = {"template.metadata.labels{}", "template.metadata.annotations{}"}
"""Free keys; which of them are written at the claim is tested key by key below."""
METADATA = {
    "properties": {
        "name": {"type": "string"},
        "labels": {"additionalProperties": {"type": "string"}},
        "annotations": {"additionalProperties": {"type": "string"}},
    }
}
BASE = {
    "runStrategy": "Always",
    "template": {"spec": {"domain": {"memory": {"guest": "1Gi"}, "devices": {}}, "terminationGracePeriodSeconds": 30}},
}
NAMED = {
    "dataVolumeTemplates": {"metadata": {"name": "root"}, "spec": {"source": {"blank": {}}}},
    "volumes": {"name": "root"},
    "disks": {"name": "root"},
    "filesystems": {"name": "root"},
}
"""What an item of a list needs so that it can be read at all."""


def leaves(schema, path=""):
    """Every field below a schema, with its own schema; `[]` stands for an item of a list, `{}` for a free key."""
    if path in {"template.metadata", "dataVolumeTemplates[].metadata"}:
        schema = METADATA
    if "properties" in schema:
        for name, child in schema["properties"].items():
            yield from leaves(child, f"{path}.{name}" if path else name)
    elif schema.get("type") == "array":
        yield from leaves(schema["items"], f"{path}[]")
    elif isinstance(schema.get("additionalProperties"), dict):
        yield f"{path}{{}}", schema["additionalProperties"]
    else:
        yield path, schema


FIELDS = dict(leaves(open_schema("kubevirt.io/virtualmachines")["properties"]["spec"]))


def two_values(schema):
    """Two values of the field. An object without known fields is there or it is not."""
    if "enum" in schema:
        return [*schema["enum"], *schema["enum"], "other"][:2] if len(schema["enum"]) > 1 else (schema["enum"][0], ...)
    match schema.get("type"):
        case "integer" | "number":
            return 2, 3
        case "boolean":
            return True, False
        case "object":
            return {}, ...
        case _:
            return "1Gi", "2Gi"


def with_value(path, value):
    """The base with one field more, in the first item of each list on the way; `...` leaves the field out."""
    spec = copy.deepcopy(BASE)
    at = spec
    *parents, last = path.replace("[]", ".[]").replace("{}", ".{}").split(".")
    for position, step in enumerate(parents):
        following = parents[position + 1] if position + 1 < len(parents) else last
        if step == "[]":
            if not at:
                at.append([] if following == "[]" else copy.deepcopy(NAMED.get(parents[position - 1], {})))
            at = at[0]
        else:
            at = at.setdefault(step, [] if following == "[]" else {})
    if value is ...:
        if isinstance(at, dict):
            at.pop(last, None)
    elif last == "[]":
        at.append(value)
    else:
        at["key" if last == "{}" else last] = value
    return spec


@pytest.mark.parametrize("path", sorted(FIELDS.keys() - WITHOUT_EFFECT.keys() - PATCHED))
def test_a_field_is_part_of_the_shape(path):
    first, second = two_values(FIELDS[path])
    assert shape_of(with_value(path, first)) != shape_of(with_value(path, second))


@pytest.mark.parametrize("path", sorted(WITHOUT_EFFECT))
def test_a_field_without_effect_is_no_part_of_it(path):
    first, second = two_values(FIELDS[path])
    second = {"phase": "Succeeded"} if second is ... else second
    assert shape_of(with_value(path, first)) == shape_of(with_value(path, second))


def test_the_tables_name_fields_that_there_are():
    assert WITHOUT_EFFECT.keys() <= FIELDS.keys()
    assert FIELDS.keys() >= PATCHED
    assert len(FIELDS) > 400


def test_a_field_that_nobody_knows_yet_is_part_of_the_shape():
    for path in ("futureField", "template.spec.futureField", "template.spec.domain.devices.futureField"):
        assert shape_of(with_value(path, "1Gi")) != shape_of(BASE)


PATCHED_KEYS = [
    ("labels", "app"),
    ("labels", "team"),
    ("labels", "app.kubernetes.io/name"),
    ("labels", "kubevirt.io/domain"),
    ("labels", "kubevirt.io/vm"),
    ("labels", "kubevirt.io/size"),
    ("labels", "vm.kubevirt.io/name"),
    ("annotations", "description"),
    ("annotations", "app.kubernetes.io/version"),
    ("annotations", "kubectl.kubernetes.io/last-applied-configuration"),
]
READ_KEYS = [
    ("annotations", "kubevirt.io/ignitiondata"),
    ("annotations", "hooks.kubevirt.io/hookSidecars"),
    ("annotations", "kubevirt.io/placePCIDevicesOnRootComplex"),
    ("annotations", "kubevirt.io/something-new"),
    ("annotations", "kubevirt.io/domain"),
    ("annotations", "k8s.v1.cni.cncf.io/networks"),
    ("annotations", "v1.multus-cni.io/default-network"),
    ("annotations", "k8s.ovn.org/pod-networks"),
    ("annotations", "cni.projectcalico.org/ipv4pools"),
    ("annotations", "sidecar.istio.io/inject"),
    ("annotations", "linkerd.io/inject"),
    ("annotations", "descheduler.alpha.kubernetes.io/evict"),
    ("annotations", "cpu-load-balancing.crio.io"),
    ("annotations", "example.com/anything"),
    ("annotations", "alpha.kubevirt.io/EmulatorThreadCompleteToEvenParity"),
    ("labels", "debugLogs"),
    ("labels", "logVerbosity"),
    ("labels", "virtiofsdDebugLogs"),
    ("labels", "istio.io/rev"),
    ("labels", "kueue.x-k8s.io/queue-name"),
    ("labels", "np.kubevirt.io/allow-access-cluster-services"),
    ("labels", "example.com/anything"),
]


def with_key(kind, key, value="a", spec=BASE):
    spec = copy.deepcopy(spec)
    spec["template"].setdefault("metadata", {}).setdefault(kind, {})[key] = value
    return spec


@pytest.mark.parametrize(("kind", "key"), PATCHED_KEYS)
def test_what_nothing_reads_at_boot_is_written_at_the_claim(kind, key):
    spec = with_key(kind, key)
    assert shape_of(spec) == shape_of(BASE)
    assert marks_of(spec).as_json()[kind] == {key: "a"}


@pytest.mark.parametrize(("kind", "key"), READ_KEYS)
def test_what_may_be_read_at_boot_is_part_of_the_shape(kind, key):
    shapes = {shape_of(BASE), shape_of(with_key(kind, key)), shape_of(with_key(kind, key, "b"))}
    assert len(shapes) == 3
    assert marks_of(with_key(kind, key)).as_json() == {"labels": {}, "annotations": {}}


@pytest.mark.parametrize(
    "reader",
    [
        pytest.param(with_key("annotations", "hooks.kubevirt.io/hookSidecars", "[]"), id="a hook sidecar"),
        pytest.param(
            changed(BASE, "template.spec.volumes", [{"name": "info", "downwardAPI": {"fields": []}}]), id="the guest"
        ),
        pytest.param(
            changed(
                BASE,
                "template.spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution",
                [{"labelSelector": {"matchLabels": {"app": "a"}}, "topologyKey": "kubernetes.io/hostname"}],
            ),
            id="its own affinity",
        ),
        pytest.param(
            changed(
                BASE,
                "template.spec.topologySpreadConstraints",
                [{"maxSkew": 1, "labelSelector": {"matchExpressions": [{"key": "app", "operator": "Exists"}]}}],
            ),
            id="its own spreading",
        ),
        pytest.param(
            changed(BASE, "template.spec.topologySpreadConstraints", [{"maxSkew": 1, "matchLabelKeys": ["app"]}]),
            id="a key that its own spreading compares",
        ),
    ],
)
def test_a_label_that_this_vm_itself_is_placed_or_booted_by_is_part_of_its_shape(reader):
    assert shape_of(with_key("labels", "app", "a", reader)) != shape_of(with_key("labels", "app", "b", reader))
    assert marks_of(with_key("labels", "app", "a", reader)).labels == {}


def test_quantities_are_compared_by_value_but_never_in_texts_of_the_user():
    same = "template.spec.domain.memory.guest"
    assert shape_of(changed(BASE, same, "1Gi")) == shape_of(changed(BASE, same, "1024Mi"))
    selected = "template.spec.nodeSelector"
    assert shape_of(changed(BASE, selected, {"memory": "1Gi"})) != shape_of(
        changed(BASE, selected, {"memory": "1024Mi"})
    )


def test_what_the_service_adds_by_itself_is_no_part_of_the_shape():
    probed = changed(BASE, "template.spec.readinessProbe", AGENT_PROBE)
    assert shape_of(probed) == shape_of(BASE)
    shapes = {expand(SHORT, WarmWhen.AGENT, Placement(spread=spread)).shape for spread in Spread}
    assert len(shapes) == 1


def test_a_pvc_keeps_how_it_is_used_when_a_template_makes_it():
    made = with_value("dataVolumeTemplates[].spec.contentType", "kubevirt")
    volumes = [
        {"name": "root", "persistentVolumeClaim": {"claimName": "root"}},
        {"name": "root", "persistentVolumeClaim": {"claimName": "root", "readOnly": True}},
        {"name": "root", "dataVolume": {"name": "root"}},
        {"name": "root", "ephemeral": {"persistentVolumeClaim": {"claimName": "root"}}},
    ]
    assert len({shape_of(changed(made, "template.spec.volumes", [volume])) for volume in volumes}) == len(volumes)


IDENTITY = {"namespace": "vms", "instance": "emberpool", "pool": "web", "vm_id": "1", "name": "web-a"}


@pytest.mark.parametrize("kind", ["labels", "annotations"])
@pytest.mark.parametrize(
    ("pooled", "claimed"),
    [
        pytest.param({}, {"app": "web"}, id="added"),
        pytest.param({"app": "pool"}, {"app": "web"}, id="changed"),
        pytest.param({"pool": "c07"}, {}, id="removed"),
        pytest.param({"pool": "c07", "app": "a"}, {"app": "web", "description": "it"}, id="all of it"),
        pytest.param({"example.com/read": "a", "x": "1"}, {"example.com/read": "a"}, id="beside what is read"),
    ],
)
def test_a_warm_vm_with_the_marks_written_is_the_vm_that_was_asked_for(kind, pooled, claimed):
    def template(found):
        return changed(VM_SPEC, f"template.metadata.{kind}", found) if found else VM_SPEC

    warm, cold = (expand(template(found), WarmWhen.AGENT) for found in (pooled, claimed))
    assert warm.shape == cold.shape
    vm = vm_manifest(spec=warm.spec, **IDENTITY)
    patch = mark_changes(cold.marks, vm["spec"])
    for metadata in (vm["metadata"], vm["spec"]["template"]["metadata"]):
        merge(metadata, patch)
    assert tidy(vm) == tidy(vm_manifest(spec=cold.spec, **IDENTITY))


def merge(target, patch):
    """A JSON merge patch."""
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            merge(target.setdefault(key, {}), value)
        else:
            target[key] = value


def tidy(vm):
    for metadata in (vm["metadata"], vm["spec"]["template"]["metadata"]):
        if not metadata.get("annotations"):
            metadata.pop("annotations", None)
    return json.loads(json.dumps(vm))


def test_our_own_labels_are_never_removed():
    vm = vm_manifest(spec=expand(VM_SPEC, WarmWhen.AGENT).spec, **IDENTITY)
    assert not any(labels.is_ours(key) for key in mark_changes(marks_of(BASE), vm["spec"])["labels"])
