"""Every manifest that we make, held strictly against KubeVirt's own schema: a field that the schema does not know is an error."""

import functools
from pathlib import Path

import jsonschema
import pytest
import yaml

from app.compute.kubevirt.templates.expand import expand
from app.compute.kubevirt.templates.manifests import vm_manifest
from app.domain.observation import WarmWhen
from tests.support.kubevirt_documents import SHORT, VM_ID, VM_SPEC, VMI_TEMPLATE, WITH_DATA_VOLUME

SHARED = Path(__file__).parents[5].parent / "shared"
CRD = SHARED / "crds" / "virtualmachines.kubevirt.io.yaml"
POOL = SHARED / "manifests" / "pool.yaml"

needs_crds = pytest.mark.skipif(not CRD.exists(), reason="the upstream CRDs are not beside this checkout")


@functools.cache
def vm_validator():
    crd = yaml.load(CRD.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = (version for version in crd["spec"]["versions"] if version["name"] == "v1")
    return jsonschema.Draft202012Validator(strictly(version["schema"]["openAPIV3Schema"]))


def strictly(schema):
    """The schema with unknown fields forbidden wherever it does not ask to preserve them, as `fieldValidation=Strict` does."""
    if not isinstance(schema, dict):
        return schema
    strict = {key: strictly(value) for key, value in schema.items() if key != "properties"}
    if "properties" in schema:
        strict["properties"] = {key: strictly(value) for key, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            strict.setdefault("additionalProperties", False)
    if schema.get("nullable") and "type" in schema:
        strict["type"] = [schema["type"], "null"]
    return strict


def manifest(template, warm_when=WarmWhen.AGENT):
    spec = expand(template, warm_when).spec
    return vm_manifest(name="pool-a-x", namespace="vms", instance="emberpool", pool="pool-a", vm_id=VM_ID, spec=spec)


@needs_crds
@pytest.mark.parametrize("warm_when", list(WarmWhen))
@pytest.mark.parametrize(
    "template",
    [
        SHORT,
        {**SHORT, "disk": "10Gi", "user_data": "#cloud-config", "labels": {"a": "b"}},
        {**SHORT, "cpu": "2", "memory": 1073741824},
        VMI_TEMPLATE,
        {"metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}}, **VMI_TEMPLATE},
        VM_SPEC,
        {"running": True, "template": VMI_TEMPLATE},
        {"metadata": {"annotations": {"c": "d"}}, "spec": VM_SPEC},
        WITH_DATA_VOLUME,
        {"spec": {"domain": {"memory": {"guest": "1Gi"}}}},
    ],
)
def test_what_we_send_is_what_kubevirt_knows(template, warm_when):
    assert [
        error.json_path + ": " + error.message for error in vm_validator().iter_errors(manifest(template, warm_when))
    ] == []


@needs_crds
@pytest.mark.parametrize("path", ["spec", "spec.template.spec", "spec.template.spec.domain"])
def test_the_schema_refuses_what_it_does_not_know(path):
    document = manifest(VMI_TEMPLATE)
    target = document
    for key in path.split("."):
        target = target[key]
    target["unheard-of"] = 1
    assert not vm_validator().is_valid(document)


@pytest.mark.skipif(not POOL.exists(), reason="the users' manifests are not beside this checkout")
@needs_crds
def test_the_pool_that_users_write_makes_valid_vms():
    template = yaml.safe_load(POOL.read_text())["spec"]["template"]
    assert [error.message for error in vm_validator().iter_errors(manifest(template))] == []
