"""Every manifest that we make, held strictly against KubeVirt's own schema: a field that the schema does not know is an error."""

import pytest
import yaml

from app.compute.kubevirt.templates.expand import expand
from app.compute.kubevirt.templates.manifests import vm_manifest
from app.domain.observation import WarmWhen
from tests.support.checkout import USER_MANIFESTS
from tests.support.crd_schemas import complaints
from tests.support.kubevirt_documents import SHORT, VM_ID, VM_SPEC, VMI_TEMPLATE, WITH_DATA_VOLUME

VM = "kubevirt.io/virtualmachines"


def manifest(template, warm_when=WarmWhen.AGENT):
    spec = expand(template, warm_when).spec
    return vm_manifest(name="pool-a-x", namespace="vms", instance="emberpool", pool="pool-a", vm_id=VM_ID, spec=spec)


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
    assert complaints(VM, manifest(template, warm_when)) == []


@pytest.mark.parametrize("path", ["spec", "spec.template.spec", "spec.template.spec.domain"])
def test_the_schema_refuses_what_it_does_not_know(path):
    document = manifest(VMI_TEMPLATE)
    target = document
    for key in path.split("."):
        target = target[key]
    target["unheard-of"] = 1
    assert [complaint for complaint in complaints(VM, document) if "unheard-of" in complaint]


def test_the_pool_that_users_write_makes_valid_vms():
    template = yaml.safe_load((USER_MANIFESTS / "pool.yaml").read_text())["spec"]["template"]
    assert complaints(VM, manifest(template)) == []
