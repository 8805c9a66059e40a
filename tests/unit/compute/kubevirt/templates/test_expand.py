import datetime as dt
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.compute.kubevirt.templates.expand import TemplateForm, expand, locate
from app.domain.observation import WarmWhen
from app.domain.placement import Placement, Spread
from app.errors import TemplateRefused
from tests.support.kubevirt_documents import SHORT, VM_SPEC, VMI_TEMPLATE, WITH_DATA_VOLUME, changed

VM_FORM = {"metadata": {"labels": {"team": "a"}}, "spec": VM_SPEC}
BARE_VMI = {"domain": {"memory": {"guest": "1Gi"}, "devices": {}}}


def spec_of(template, warm_when=WarmWhen.RUNNING):
    """With no word of where it may run: that is the affair of `test_placement`."""
    return expand(template, warm_when, Placement(spread=Spread.NONE)).spec


def problems_of(template):
    with pytest.raises(TemplateRefused) as refused:
        expand(template, WarmWhen.AGENT)
    return [(problem.field, problem.message) for problem in refused.value.problems]


class TestForms:
    def test_a_vmi_template_becomes_the_template_of_a_vm_that_always_runs(self):
        assert spec_of(VMI_TEMPLATE) == {
            "runStrategy": "Always",
            "template": {
                "spec": {
                    "domain": {
                        "resources": {"requests": {"memory": "2Gi", "cpu": "2"}},
                        "devices": {},
                    },
                    "volumes": [{"name": "bootdisk", "containerDisk": {"image": "ubuntu:22.04"}}],
                }
            },
        }

    @pytest.mark.parametrize(
        ("template", "form"),
        [
            (SHORT, TemplateForm.SHORT),
            (VMI_TEMPLATE, TemplateForm.VMI),
            ({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", **VMI_TEMPLATE}, TemplateForm.VMI),
            (VM_SPEC, TemplateForm.VM_SPEC),
            (VM_FORM, TemplateForm.VM),
            ({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", **VM_FORM}, TemplateForm.VM),
        ],
    )
    def test_forms_are_told_apart_by_their_keys(self, template, form):
        assert expand(template, WarmWhen.AGENT).form is form

    def test_forms_that_make_the_same_vm_have_one_fingerprint(self):
        running = {"running": True, "template": VMI_TEMPLATE}
        nulls = {"runStrategy": None, "template": {"metadata": {"creationTimestamp": None}, **VMI_TEMPLATE}}
        forms = [VMI_TEMPLATE, VM_SPEC, {"spec": VM_SPEC}, running, nulls]
        assert len({expand(form, WarmWhen.AGENT).fingerprint for form in forms}) == 1

    def test_the_labels_of_a_vm_go_to_its_vmi_too_whose_own_come_first(self):
        template = changed(
            VM_FORM, "spec.template.metadata", {"labels": {"team": "b", "tier": "1"}, "annotations": {"a": "b"}}
        )
        template["metadata"]["labels"]["from"] = "vm"
        assert spec_of(template)["template"]["metadata"] == {
            "labels": {"team": "b", "tier": "1", "from": "vm"},
            "annotations": {"a": "b"},
        }

    def test_the_short_form_boots_from_its_image(self):
        spec = spec_of({**SHORT, "disk": "10Gi", "user_data": "#cloud-config\n", "labels": {"team": "a"}})
        virtio = {"bus": "virtio"}
        assert spec == {
            "runStrategy": "Always",
            "template": {
                "metadata": {"labels": {"team": "a"}},
                "spec": {
                    "domain": {
                        "cpu": {"cores": 2},
                        "memory": {"guest": "2Gi"},
                        "devices": {
                            "disks": [{"name": name, "disk": virtio} for name in ("boot", "data", "cloud-init")]
                        },
                    },
                    "terminationGracePeriodSeconds": 0,
                    "volumes": [
                        {"name": "boot", "containerDisk": {"image": "quay.io/containerdisks/fedora:42"}},
                        {"name": "data", "emptyDisk": {"capacity": "10Gi"}},
                        {"name": "cloud-init", "cloudInitNoCloud": {"userData": "#cloud-config\n"}},
                    ],
                },
            },
        }

    @pytest.mark.parametrize(
        ("image", "source"),
        [
            ("https://images.example/fedora.qcow2", "http"),
            ("http://images.example/fedora.qcow2", "http"),
            ("docker://registry.example/fedora:42", "registry"),
        ],
    )
    def test_the_short_form_imports_a_disk_image_for_each_vm(self, image, source):
        spec = spec_of({"image": image, "memory": "2Gi"})
        assert spec["template"]["spec"]["volumes"] == [{"name": "boot", "dataVolume": {"name": "boot"}}]
        assert spec["dataVolumeTemplates"] == [
            {
                "metadata": {"name": "boot"},
                "spec": {
                    "source": {source: {"url": image}},
                    "storage": {"resources": {"requests": {"storage": "10Gi"}}},
                },
            }
        ]

    def test_the_short_form_says_how_large_an_imported_disk_is_and_of_which_class(self):
        url = "https://images.example/fedora.qcow2"
        spec = spec_of({"image": url, "memory": "2Gi", "root_disk": "30Gi", "storage_class": "fast"})
        assert spec["dataVolumeTemplates"][0]["spec"]["storage"] == {
            "resources": {"requests": {"storage": "30Gi"}},
            "storageClassName": "fast",
        }

    def test_without_an_image_the_short_form_leaves_the_disk_to_what_the_vm_starts_from(self):
        spec = expand({"memory": "2Gi", "disk": "1Gi"}, WarmWhen.RUNNING, diskless=True).spec
        assert [volume["name"] for volume in spec["template"]["spec"]["volumes"]] == ["data"]
        assert expand({"memory": "2Gi"}, WarmWhen.RUNNING, diskless=True).images == ()

    @pytest.mark.parametrize(("cpu", "cores"), [(..., 1), (4, 4), ("4", 4), (4.0, 4), ("4000m", 4)])
    def test_the_short_form_takes_cpus_as_people_write_them(self, cpu, cores):
        assert spec_of(changed(SHORT, "cpu", cpu))["template"]["spec"]["domain"]["cpu"] == {"cores": cores}

    def test_the_template_as_written_is_left_as_it_is(self):
        before = json.dumps(VM_FORM)
        expand(VM_FORM, WarmWhen.AGENT)
        assert json.dumps(VM_FORM) == before


class TestWhatIsFilledIn:
    @pytest.mark.parametrize("template", [VMI_TEMPLATE, VM_SPEC, WITH_DATA_VOLUME, {"spec": VM_SPEC}])
    @pytest.mark.parametrize("disks", [..., [], None, [{"name": "other", "disk": {"bus": "sata"}}]])
    def test_the_cluster_attaches_the_volumes_of_the_long_forms(self, template, disks):
        vmi = "spec" if template is VMI_TEMPLATE else "template.spec"
        vmi = f"spec.{vmi}" if "template" in template.get("spec", {}) else vmi
        written = template if disks is ... else changed(template, f"{vmi}.domain.devices.disks", disks)
        found = spec_of(written)["template"]["spec"]["domain"]["devices"]
        assert found == ({} if disks in (..., [], None) else {"disks": disks})

    def test_the_short_form_has_virtio_disks(self):
        disks = spec_of({**SHORT, "disk": "1Gi"})["template"]["spec"]["domain"]["devices"]["disks"]
        assert disks == [{"name": name, "disk": {"bus": "virtio"}} for name in ("boot", "data")]

    def test_devices_are_there_even_where_there_is_no_volume(self):
        pinned = {"spec": {"domain": {"cpu": {"cores": 2, "dedicatedCpuPlacement": True}, "memory": {"guest": "2Gi"}}}}
        assert spec_of(pinned)["template"]["spec"]["domain"]["devices"] == {}

    @pytest.mark.parametrize("warm_when", list(WarmWhen))
    def test_the_agent_is_asked_only_where_the_pool_goes_by_it(self, warm_when):
        probe = spec_of(VMI_TEMPLATE, warm_when)["template"]["spec"].get("readinessProbe")
        assert (probe is not None and probe["guestAgentPing"] == {}) is (warm_when is WarmWhen.AGENT)

    def test_a_probe_of_the_template_stays(self):
        own = {"tcpSocket": {"port": 22}, "periodSeconds": 7}
        template = changed(VMI_TEMPLATE, "spec.readinessProbe", own)
        assert spec_of(template, WarmWhen.AGENT)["template"]["spec"]["readinessProbe"] == own

    @pytest.mark.parametrize("strategy", ["Always", "RerunOnFailure", "Once"])
    def test_strategies_that_start_the_vm_stay(self, strategy):
        assert spec_of({**VM_SPEC, "runStrategy": strategy})["runStrategy"] == strategy


VMI_PROBLEMS = [
    ("spec", {}, "spec", "is empty"),
    ("spec", "x", "spec", "must be a mapping"),
    ("spec.domain", ..., "spec.domain", "is missing"),
    ("spec.domain", [], "spec.domain", "is missing"),
    ("spec.domain.resources", ..., "spec.domain.memory.guest", "is missing"),
    ("spec.domain.resources", {"requests": {"cpu": "2"}}, "spec.domain.memory.guest", "is missing"),
    ("spec.domain.memory", {"guest": "1Gb"}, "spec.domain.memory.guest", "must be a quantity"),
    ("spec.domain.memory", {"guest": 0}, "spec.domain.memory.guest", "above zero"),
    ("spec.domain.memory", {"guest": True}, "spec.domain.memory.guest", "must be a quantity"),
    (
        "spec.domain.memory",
        {"hugepages": {"pageSize": "2M!"}},
        "spec.domain.memory.hugepages.pageSize",
        "must be a quantity",
    ),
    ("spec.domain.memory", [], "spec.domain.memory", "must be a mapping"),
    ("spec.domain.resources.requests.memory", "-1Gi", "spec.domain.resources.requests.memory", "above zero"),
    ("spec.domain.resources.requests.cpu", "0", "spec.domain.resources.requests.cpu", "above zero"),
    ("spec.domain.resources.limits", {"cpu": 1.5}, "spec.domain.resources.limits.cpu", "must be a quantity"),
    (
        "spec.domain.resources.limits",
        {"example.com/gpu": "-1"},
        "spec.domain.resources.limits.example.com/gpu",
        "below zero",
    ),
    (
        "spec.domain.resources.limits",
        {"example.com/gpu": "x"},
        "spec.domain.resources.limits.example.com/gpu",
        "must be a quantity",
    ),
    ("spec.domain.cpu", {"cores": 0}, "spec.domain.cpu.cores", "1 or more"),
    ("spec.domain.cpu", {"sockets": -1}, "spec.domain.cpu.sockets", "1 or more"),
    ("spec.domain.cpu", {"threads": "2"}, "spec.domain.cpu.threads", "must be an integer"),
    ("spec.domain.cpu", {"cores": True}, "spec.domain.cpu.cores", "must be an integer"),
    ("spec.startStrategy", "Paused", "spec.startStrategy", "never be warm"),
    ("spec.volumes", {"name": "a"}, "spec.volumes", "must be a list"),
    ("spec.volumes", ["a"], "spec.volumes[0]", "must be a mapping"),
    ("spec.volumes", [{"name": "a"}, {"name": "b"}, {"name": "a"}], "spec.volumes[2].name", "is the name of"),
    ("spec.volumes", [{"emptyDisk": {}}], "spec.volumes[0].name", "is missing"),
    (
        "spec.volumes",
        [{"name": "a", "emptyDisk": {"capacity": "x"}}],
        "spec.volumes[0].emptyDisk.capacity",
        "must be a quantity",
    ),
    (
        "spec.domain.devices",
        {"disks": [{"name": "a"}, {"name": "a"}]},
        "spec.domain.devices.disks[1].name",
        "is the name of",
    ),
    ("metadata", {"name": "mine"}, "metadata.name", "set by the service"),
    ("metadata", {"namespace": "mine"}, "metadata.namespace", "set by the service"),
    ("metadata", {"finalizers": ["a"]}, "metadata.finalizers", "cannot be set"),
    (
        "metadata",
        {"labels": {"kubevirt.io/nodeName": "n"}},
        "metadata.labels.kubevirt.io/nodeName",
        "reserved by KubeVirt",
    ),
    ("metadata", {"labels": {"emberpool.io/claim": "c"}}, "metadata.labels.emberpool.io/claim", "set by the service"),
    (
        "metadata",
        {"labels": {"app.kubernetes.io/managed-by": "x"}},
        "metadata.labels.app.kubernetes.io/managed-by",
        "set by the service",
    ),
    ("metadata", {"labels": {"v": 2}}, "metadata.labels.v", "must be a string"),
    ("metadata", {"annotations": ["a"]}, "metadata.annotations", "must be a mapping"),
    (
        "metadata",
        {"annotations": {"memory.emberpool.io/start-from": "another"}},
        "metadata.annotations.memory.emberpool.io/start-from",
        "is set for each VM by what it starts from",
    ),
]


class TestRefusals:
    @pytest.mark.parametrize(("path", "value", "field", "message"), VMI_PROBLEMS)
    @pytest.mark.parametrize("prefix", ["template", "template.template", "template.spec.template"])
    def test_a_field_is_named_where_its_author_wrote_it(self, prefix, path, value, field, message):
        template = changed(VMI_TEMPLATE, path, value)
        for key in reversed(prefix.split(".")[1:]):
            template = {key: template}
        ((found_field, found_message),) = problems_of(template)
        assert found_field == f"{prefix}.{field}"
        assert message in found_message

    @pytest.mark.parametrize(
        ("change", "field", "message"),
        [
            ({"running": True}, "running", "excludes runStrategy"),
            ({"runStrategy": ..., "running": False}, "running", "running VMs"),
            ({"runStrategy": ..., "running": "yes"}, "running", "must be true"),
            ({"runStrategy": "Halted"}, "runStrategy", "does not start"),
            ({"runStrategy": "Manual"}, "runStrategy", "does not start"),
            ({"runStrategy": "WaitAsReceiver"}, "runStrategy", "does not start"),
            ({"runStrategy": "Sometimes"}, "runStrategy", "must be one of"),
            ({"runStrategy": ["Always"]}, "runStrategy", "must be one of"),
            ({"dataVolumeTemplates": {}}, "dataVolumeTemplates", "must be a list"),
            ({"dataVolumeTemplates": [{"metadata": {}}]}, "dataVolumeTemplates[0].metadata.name", "is missing"),
        ],
    )
    @pytest.mark.parametrize("prefix", ["template", "template.spec"])
    def test_fields_of_the_vm(self, prefix, change, field, message):
        template = {key: value for key, value in {**VM_SPEC, **change}.items() if value is not ...}
        ((found_field, found_message),) = problems_of({"spec": template} if prefix == "template.spec" else template)
        assert found_field == f"{prefix}.{field}"
        assert message in found_message

    def test_a_disk_that_waits_for_an_upload_unless_the_vm_starts_from_something_else(self):
        template = changed(WITH_DATA_VOLUME, "dataVolumeTemplates.0.spec.source", {"upload": {}})
        ((field, message),) = problems_of(template)
        assert field == "template.dataVolumeTemplates[0].spec.source.upload"
        assert "name its PVC as source.pvc" in message
        assert expand(template, WarmWhen.AGENT, diskless=True).spec["dataVolumeTemplates"]

    def test_data_volume_templates(self):
        template = changed(WITH_DATA_VOLUME, "dataVolumeTemplates.0.spec.storage.resources.requests.storage", "10GB")
        template["dataVolumeTemplates"].append({"metadata": {"name": "root", "namespace": "n"}, "spec": {}})
        assert [field for field, _ in problems_of(template)] == [
            "template.dataVolumeTemplates[1].metadata.name",
            "template.dataVolumeTemplates[0].spec.storage.resources.requests.storage",
            "template.dataVolumeTemplates[1].metadata.namespace",
        ]

    @pytest.mark.parametrize(
        ("change", "field", "message"),
        [
            ({"image": ...}, "image", "container disk"),
            ({"image": "a b"}, "image", "container disk"),
            ({"image": 5}, "image", "container disk"),
            ({"image": "ftp://images.example/fedora"}, "image", "cannot be imported from ftp"),
            ({"image": "https://"}, "image", "add where the image is"),
            ({"root_disk": "10Gi"}, "root_disk", "an image that is imported"),
            ({"storage_class": "fast"}, "storage_class", "an image that is imported"),
            ({"image": "https://images.example/a", "root_disk": "x"}, "root_disk", "must be a quantity"),
            ({"image": "https://images.example/a", "storage_class": 5}, "storage_class", "name of a storage class"),
            ({"memory": ...}, "memory", "is missing"),
            ({"memory": "2GB"}, "memory", "must be a quantity"),
            ({"memory": 0}, "memory", "above zero"),
            ({"cpu": 0}, "cpu", "1 or more"),
            ({"cpu": 1.5}, "cpu", "whole number"),
            ({"cpu": 1e300}, "cpu", "4294967295 CPUs at most"),
            ({"cpu": "9" * 30}, "cpu", "at most; got 999"),
            ({"cpu": "500m"}, "cpu", "whole number"),
            ({"cpu": True}, "cpu", "whole number"),
            ({"disk": "x"}, "disk", "must be a quantity"),
            ({"user_data": ""}, "user_data", "a string"),
            ({"user_data": "é" * 1025}, "user_data", "2048 bytes"),
            ({"labels": {"emberpool.io/x": "y"}}, "labels.emberpool.io/x", "set by the service"),
            ({"gpu": 1}, "gpu", "not a key of the short form"),
        ],
    )
    def test_the_short_form(self, change, field, message):
        template = {key: value for key, value in {**SHORT, **change}.items() if value is not ...}
        ((found_field, found_message),) = problems_of(template)
        assert found_field == f"template.{field}"
        assert message in found_message

    @pytest.mark.parametrize(
        ("template", "field", "message"),
        [
            ({}, "template", "is empty"),
            (BARE_VMI, "template.domain", "below `spec`"),
            ({**VMI_TEMPLATE, "image": "x"}, "template.image", "beside `spec`"),
            ({**VMI_TEMPLATE, "kind": "VirtualMachine"}, "template.kind", "VirtualMachineInstance"),
            ({**VM_FORM, "apiVersion": "v1"}, "template.apiVersion", "kubevirt.io/v1"),
            ({**VM_FORM, "metadata": {"name": "mine"}}, "template.metadata.name", "set by the service"),
            ({"template": "x"}, "template.template", "must be a mapping"),
            ({**SHORT, "user_data": dt.date(2026, 1, 1)}, "template", "JSON cannot express"),
            ({**SHORT, "cpu": float("nan")}, "template", "JSON cannot express"),
            ({**SHORT, "user_data": "a\0b"}, "template", "NUL"),
        ],
    )
    def test_documents_of_no_known_form(self, template, field, message):
        ((found_field, found_message),) = problems_of(template)
        assert found_field == field
        assert message in found_message

    def test_several_problems_are_told_together_and_in_the_sentence(self):
        template = changed(VMI_TEMPLATE, "spec.domain", {"cpu": {"cores": 0}})
        template["metadata"] = {"name": "x"}
        with pytest.raises(TemplateRefused) as refused:
            expand(template, WarmWhen.AGENT)
        fields = [problem.field for problem in refused.value.problems]
        assert fields == [
            "template.metadata.name",
            "template.spec.domain.cpu.cores",
            "template.spec.domain.memory.guest",
        ]
        assert all(field in refused.value.detail for field in fields)

    def test_memory_may_come_from_an_instancetype(self):
        template = {"instancetype": {"name": "u1.small"}, "template": {"spec": {"domain": {"devices": {}}}}}
        assert spec_of(template)["instancetype"] == {"name": "u1.small"}

    def test_a_label_that_kubevirt_only_uses_is_no_reserved_one(self):
        template = {**VMI_TEMPLATE, "metadata": {"labels": {"kubevirt.io/domain": "web"}}}
        assert spec_of(template)["template"]["metadata"]["labels"] == {"kubevirt.io/domain": "web"}


class TestLocate:
    @pytest.mark.parametrize(
        ("form", "field", "written"),
        [
            (TemplateForm.VMI, "spec.template.spec.domain.memory.guest", "template.spec.domain.memory.guest"),
            (TemplateForm.VMI, "spec.template.metadata.labels", "template.metadata.labels"),
            (TemplateForm.VMI, "spec.template", "template"),
            (TemplateForm.VMI, "spec.runStrategy", "template"),
            (TemplateForm.VM_SPEC, "spec.template.spec.domain", "template.template.spec.domain"),
            (TemplateForm.VM_SPEC, "spec.dataVolumeTemplate[0]", "template.dataVolumeTemplates[0]"),
            (TemplateForm.VMI, "metadata.labels", "template.metadata.labels"),
            (TemplateForm.SHORT, "metadata.labels", "template.labels"),
            (TemplateForm.SHORT, "spec.template.metadata.labels", "template.labels"),
            (TemplateForm.VM, "spec.template.spec.domain", "template.spec.template.spec.domain"),
            (TemplateForm.VM, "spec.running", "template.spec.running"),
            (TemplateForm.VM, "metadata.labels", "template.metadata.labels"),
            (TemplateForm.SHORT, "spec.template.spec.domain.memory.guest", "template.memory"),
            (TemplateForm.SHORT, "spec.template.spec.domain.cpu", "template.cpu"),
            (TemplateForm.SHORT, "spec.template.spec.domain.cpus", "template"),
            (TemplateForm.SHORT, "spec.template.spec.volumes[0]", "template"),
            (TemplateForm.SHORT, "spec.dataVolumeTemplate[0].spec.source", "template.image"),
            (TemplateForm.SHORT, "spec.dataVolumeTemplate[0].spec.storage", "template.root_disk"),
            (TemplateForm.VM_SPEC, "metadata.labels", "template.template.metadata.labels"),
            (TemplateForm.VM_SPEC, "metadata.name", "template"),
            (TemplateForm.VM_SPEC, "", "template"),
            (TemplateForm.VMI, "specimen", "template"),
        ],
    )
    def test_the_clusters_field_is_found_in_what_was_written(self, form, field, written):
        assert locate(form, field) == written


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(
    [
        "spec",
        "template",
        "metadata",
        "labels",
        "name",
        "domain",
        "memory",
        "guest",
        "cpu",
        "cores",
        "devices",
        "disks",
        "volumes",
        "resources",
        "requests",
        "running",
        "runStrategy",
        "dataVolumeTemplates",
        "image",
        "disk",
        "user_data",
    ]
)
LIKELY = st.recursive(
    JSON | st.sampled_from(["2Gi", "Always", {"name": "a"}]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)


@given(LIKELY | st.dictionaries(KEYS, LIKELY, min_size=1))
def test_any_document_is_expanded_or_refused_with_its_fields(document):
    try:
        found = expand(document, WarmWhen.AGENT)
    except TemplateRefused as error:
        found = error
    if isinstance(found, TemplateRefused):
        assert found.problems
        assert all(problem.field.startswith("template") and problem.message for problem in found.problems)
    else:
        assert found.spec["runStrategy"] in {"Always", "RerunOnFailure", "Once"}
        assert found.spec["template"]["spec"]["domain"] is not None


@given(st.permutations(list(SHORT.items())))
def test_the_order_of_keys_is_no_part_of_the_fingerprint(items):
    assert expand(dict(items), WarmWhen.AGENT).fingerprint == expand(SHORT, WarmWhen.AGENT).fingerprint


@pytest.mark.parametrize("change", [{"cpu": 3}, {"memory": "3Gi"}, {"disk": "1Gi"}, {"labels": {"a": "b"}}])
def test_another_vm_has_another_fingerprint(change):
    assert expand({**SHORT, **change}, WarmWhen.AGENT).fingerprint != expand(SHORT, WarmWhen.AGENT).fingerprint
