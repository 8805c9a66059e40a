"""The shipped schemas: what they prune and refuse."""

import pytest

from app.devcluster.apiserver import schemas
from app.devcluster.apiserver.registry import DATA_VOLUMES, POOLS, RESOURCES, SECRETS, VIRTUAL_MACHINES
from tests.support.crd_schemas import SchemaTable, kind_names, open_schema, shipped
from tests.support.devcluster_bench import machine


def test_the_shipped_file_opened_and_compiled_again_is_the_same():
    table = SchemaTable()
    kinds = {kind: table.add(open_schema(kind)) for kind in kind_names()}
    assert (kinds, table.nodes) == (shipped()["kinds"], shipped()["nodes"])


def test_every_custom_kind_has_a_schema():
    known = shipped()["kinds"]
    assert {resource.id for resource in RESOURCES if resource.custom} == set(known)


def test_unknown_fields_are_pruned_and_named_wherever_they_stand():
    obj = machine("x")
    obj["spec"]["foo"] = 1
    obj["spec"]["template"]["spec"]["domain"]["devices"]["disks"][0]["disk"]["speed"] = "fast"
    obj["metadata"]["colour"] = "red"
    checked = schemas.check(VIRTUAL_MACHINES, obj)

    assert checked.unknown == [
        "metadata.colour",
        "spec.foo",
        "spec.template.spec.domain.devices.disks[0].disk.speed",
    ]
    assert checked.obj == machine("x")
    assert checked.causes == []


@pytest.mark.parametrize(
    ("resource", "spec", "field", "reason"),
    [
        (VIRTUAL_MACHINES, {"runStrategy": "Always"}, "spec.template", "FieldValueRequired"),
        (
            VIRTUAL_MACHINES,
            {"running": "yes", "template": {"spec": {"domain": {"devices": {}}}}},
            "spec.running",
            "FieldValueTypeInvalid",
        ),
        (
            POOLS,
            {"replicas": 1.5, "selector": {}, "virtualMachineTemplate": {}},
            "spec.replicas",
            "FieldValueTypeInvalid",
        ),
        (DATA_VOLUMES, {"source": {"http": {}}}, "spec.source.http.url", "FieldValueRequired"),
        (
            DATA_VOLUMES,
            {"pvc": {"resources": {"requests": {"storage": "ten"}}}},
            "spec.pvc.resources.requests.storage",
            "FieldValueInvalid",
        ),
    ],
)
def test_what_a_schema_refuses_is_told_by_field(resource, spec, field, reason):
    causes = schemas.check(resource, {"metadata": {"name": "x"}, "spec": spec}).causes

    assert [(item["field"], item["reason"]) for item in causes] == [(field, reason)]


def test_kinds_without_a_schema_pass_as_they_are():
    obj = {"metadata": {"name": "x"}, "anything": 1}
    assert schemas.check(SECRETS, obj).obj is obj
