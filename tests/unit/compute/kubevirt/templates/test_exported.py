"""Templates that were read from a VM of the cluster."""

import copy

from app.compute.kubevirt.templates.expand import expand
from app.compute.kubevirt.templates.exported import without_identity
from app.domain.observation import WarmWhen
from tests.support.kubevirt_documents import VM_SPEC, changed

ROUTED = {"name": "default", "masquerade": {}}
WRITTEN = changed(VM_SPEC, "template.spec.domain.devices", {"interfaces": [ROUTED]})


def exported():
    spec = changed(WRITTEN, "template.spec.domain.firmware", {"uuid": "1-2", "serial": "SN"})
    spec = changed(spec, "template.spec.domain.devices.interfaces", [{**ROUTED, "macAddress": "02:00"}])
    return changed(spec, "template.metadata.annotations", {"kubevirt.io/pci-topology-version": "v3"})


def test_what_identifies_the_vm_is_left_out_and_named():
    given = exported()
    before = copy.deepcopy(given)
    found, taken = without_identity(given)
    assert taken == (
        "template.spec.domain.firmware.uuid",
        "template.spec.domain.firmware.serial",
        "template.spec.domain.devices.interfaces[0].macAddress",
        "template.metadata.annotations.kubevirt.io/pci-topology-version",
    )
    assert given == before
    assert expand(found, WarmWhen.AGENT).shape == expand(WRITTEN, WarmWhen.AGENT).shape
    assert expand(given, WarmWhen.AGENT).shape != expand(WRITTEN, WarmWhen.AGENT).shape


def test_all_else_stays():
    kept = changed(WRITTEN, "template.spec.domain.firmware", {"uuid": "1-2", "bootloader": {"efi": {}}})
    found, _ = without_identity(kept)
    assert found == changed(WRITTEN, "template.spec.domain.firmware", {"bootloader": {"efi": {}}})
    assert without_identity(WRITTEN) == (WRITTEN, ())


def test_a_template_of_the_wrong_types_is_left_for_the_rules_to_refuse():
    for wrong in ({}, {"template": 1}, changed(WRITTEN, "template.spec.domain.devices.interfaces", [1, "a"])):
        assert without_identity(wrong) == (wrong, ())
