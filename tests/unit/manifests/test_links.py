"""Volumes that name a preload become volumes of each VM's own."""

import pytest

from app.domain.preloads import PreloadSpec
from app.manifests.links import by_data_source, link, link_sources, names_of_volumes
from app.manifests.requests import Resource
from tests.support.manifest_documents import DISK, DOMAIN, annotated, machine, pool, request_of

NEAR = PreloadSpec.model_validate(
    {
        "image": {"http": {"url": "https://example.com/a"}},
        "size": "1Gi",
        "storage_class": "fast",
        "access_modes": ["ReadWriteOnce"],
    }
)
MADE = {
    "metadata": {"name": "near"},
    "spec": {
        "source": {"http": {"url": "https://example.com/a"}},
        "storage": {
            "resources": {"requests": {"storage": "1Gi"}},
            "storageClassName": "fast",
            "accessModes": ["ReadWriteOnce"],
        },
    },
}


def vmi(*volumes):
    return {"spec": {"domain": DOMAIN, "volumes": list(volumes)}}


ON_DATA_VOLUME = {"name": "root", "dataVolume": {"name": "near"}}
ON_CLAIM = {"name": "root", "persistentVolumeClaim": {"claimName": "near"}}


@pytest.mark.parametrize("volume", [ON_DATA_VOLUME, ON_CLAIM])
def test_a_vm_gets_a_clone(volume):
    request = request_of(machine(template=vmi(DISK, volume)))
    assert names_of_volumes(request) == {"near"}
    linked = link(request, {"near": NEAR}, namespace="default")
    vm = linked.body["vm"]
    assert vm["dataVolumeTemplates"] == [MADE]
    assert vm["template"]["spec"]["volumes"][1] == ON_DATA_VOLUME
    assert linked.body["start_from"] == {"preload": "near"}
    assert linked.references == {(Resource.PRELOAD, "near"): "documents[0].spec.template.spec.volumes[1]"}
    assert linked.place("start_from.preload") == "documents[0].spec.template.spec.volumes[1]"
    assert linked.notes[-1] == "spec.template.spec.volumes[1] became a disk of each VM, a clone of preload near"
    assert request.body["vm"]["template"]["spec"]["volumes"][1] == volume


@pytest.mark.parametrize(
    ("template", "place"),
    [
        (vmi(ON_CLAIM), "documents[0].spec.template.spec.volumes[0]"),
        ({"template": vmi(ON_CLAIM)}, "documents[0].spec.template.template.spec.volumes[0]"),
        ({"spec": {"template": vmi(ON_CLAIM)}}, "documents[0].spec.template.spec.template.spec.volumes[0]"),
    ],
)
def test_a_pools_template_of_any_form_does(template, place):
    linked = link(request_of(pool(template=template)), {"near": NEAR}, namespace="default")
    assert linked.place("start_from") == place
    written = linked.body["template"]
    assert (written if "template" in written else written["spec"])["dataVolumeTemplates"] == [MADE]
    assert linked.place("template.template.spec.domain.cpu") == {
        "documents[0].spec.template.spec.volumes[0]": "documents[0].spec.template.spec.domain.cpu",
        "documents[0].spec.template.template.spec.volumes[0]": "documents[0].spec.template.template.spec.domain.cpu",
    }.get(place, "documents[0].spec.template.template.spec.domain.cpu")


def test_what_the_vm_makes_itself_or_nobody_knows_stays():
    own = machine(template=vmi(ON_DATA_VOLUME), dataVolumeTemplates=[{"metadata": {"name": "near"}, "spec": {}}])
    assert link(request_of(own), {"near": NEAR}, namespace="default") == request_of(own)
    unknown = request_of(machine(template=vmi(ON_DATA_VOLUME)))
    assert link(unknown, {"other": NEAR}, namespace="default") is unknown


def test_a_start_that_is_asked_for_stays():
    request = request_of(annotated(machine(template=vmi(ON_DATA_VOLUME)), start_from_snapshot="taken"))
    linked = link(request, {"near": NEAR}, namespace="default")
    assert linked.body["start_from"] == {"snapshot": "taken"}
    assert linked.body["vm"]["dataVolumeTemplates"] == [MADE]


def test_a_claim_of_another_namespace_is_named_whole():
    near = PreloadSpec.model_validate({"image": {"pvc": {"name": "golden"}}})
    linked = link(request_of(machine(template=vmi(ON_DATA_VOLUME))), {"near": near}, namespace="here")
    assert linked.body["vm"]["dataVolumeTemplates"][0]["spec"] == {
        "source": {"pvc": {"name": "golden", "namespace": "here"}},
        "storage": {},
    }


@pytest.mark.parametrize(
    "broken", [{"spec": 1}, {"spec": {"volumes": 1}}, {"spec": {"volumes": [1, {"dataVolume": 1}]}}, {}]
)
def test_what_is_no_template_is_left_to_the_rules(broken):
    request = request_of(pool(template=broken))
    assert link(request, {"near": NEAR}, namespace="default") is request


def cloning(name="golden", storage=None, **reference):
    spec = {"sourceRef": {"kind": "DataSource", "name": name, **reference}, "storage": storage}
    return [{"metadata": {"name": "root"}, "spec": spec}]


def linked_to_golden(**reference):
    request = request_of(machine(template=vmi(ON_ROOT), dataVolumeTemplates=cloning(**reference)))
    return link_sources(request, {"golden": ("nightly", NEAR)}, namespace="default")


ON_ROOT = {"name": "root", "dataVolume": {"name": "root"}}


def test_a_preload_takes_the_place_of_the_data_source_that_it_names_or_else_of_that_with_its_name():
    golden = NEAR.model_copy(update={"data_source": "golden"})
    newest = NEAR.model_copy(update={"data_source": "golden"})
    assert by_data_source({"near": NEAR}) == {"near": ("near", NEAR)}
    assert by_data_source({"nightly": golden}) == {"golden": ("nightly", golden)}
    assert by_data_source({"nightly": golden, "golden": NEAR}) == {"golden": ("nightly", golden)}
    assert by_data_source({"nightly": golden, "weekly": newest})["golden"][0] == "weekly"


def test_a_data_source_that_no_preload_stands_for_is_told():
    request = request_of(machine(template=vmi(ON_ROOT), dataVolumeTemplates=cloning()))
    told = link_sources(request, {}, namespace="default").notes[-1]
    assert told.startswith(
        "dataVolumeTemplates[0].spec.sourceRef golden: no preload takes the place of this DataSource"
    )
    far = request_of(machine(template=vmi(ON_ROOT), dataVolumeTemplates=cloning(namespace="images")))
    assert link_sources(far, {}, namespace="default") is far


@pytest.mark.parametrize("namespace", [None, "default"])
def test_a_template_that_clones_a_data_source_becomes_a_clone_of_its_preload(namespace):
    linked = linked_to_golden(namespace=namespace)
    (template,) = linked.body["vm"]["dataVolumeTemplates"]
    assert template["spec"] == {
        "source": {"http": {"url": "https://example.com/a"}},
        "storage": {"resources": {"requests": {"storage": "1Gi"}}},
    }
    place = "documents[0].spec.dataVolumeTemplates[0].spec.sourceRef.name"
    assert linked.body["start_from"] == {"preload": "nightly"}
    assert linked.references == {(Resource.PRELOAD, "nightly"): place}
    assert (
        linked.notes[-1] == "spec.dataVolumeTemplates[0].spec.sourceRef.name golden became a clone of preload nightly"
    )


def test_the_size_that_the_clone_asks_for_is_kept():
    linked = linked_to_golden(storage={"resources": {"requests": {"storage": "5Gi"}}})
    (template,) = linked.body["vm"]["dataVolumeTemplates"]
    assert template["spec"]["storage"] == {"resources": {"requests": {"storage": "5Gi"}}}


@pytest.mark.parametrize("reference", [{"name": "other"}, {"namespace": "images"}, {"kind": "Other"}])
def test_another_data_source_is_left_to_the_cluster(reference):
    linked = linked_to_golden(**reference)
    assert "sourceRef" in linked.body["vm"]["dataVolumeTemplates"][0]["spec"]
    assert "start_from" not in linked.body


@pytest.mark.parametrize("storage", ["much", {"resources": "much"}, {"resources": {"requests": []}}])
def test_a_size_in_the_wrong_place_is_left_for_the_check_of_the_template(storage):
    linked = linked_to_golden(storage=storage)
    assert linked.body["vm"]["dataVolumeTemplates"][0]["spec"]["storage"] == storage
