"""What exists once, and what identifies one machine."""

import base64
import json

import pytest

from app.compute.kubevirt.templates.expand import expand
from app.domain.observation import WarmWhen
from tests.support.kubevirt_documents import SHORT, VM_SPEC, VMI_TEMPLATE, WITH_DATA_VOLUME, changed

ROOT = {"name": "root", "persistentVolumeClaim": {"claimName": "data"}}
PVC = "PersistentVolumeClaim data"


def template_with(volume, disk=None, **more):
    spec = changed(VM_SPEC, "template.spec.volumes", [volume])
    if disk is not None:
        spec = changed(spec, "template.spec.domain.devices.disks", [{"name": "root", **disk}])
    for path, value in more.items():
        spec = changed(spec, path.replace("__", "."), value)
    return spec


def exclusives(template):
    return [each.key for each in expand(template, WarmWhen.AGENT).exclusives]


def identity(template):
    return [each.field for each in expand(template, WarmWhen.AGENT).identity]


OWN = {
    "dataVolumeTemplates": WITH_DATA_VOLUME["dataVolumeTemplates"],
    "template": changed(WITH_DATA_VOLUME["template"], "spec.volumes", []),
}


@pytest.mark.parametrize(
    ("template", "found"),
    [
        pytest.param(template_with(ROOT), PVC, id="a PVC that KubeVirt attaches"),
        pytest.param(template_with(ROOT, {"disk": {"bus": "virtio"}}), PVC, id="a PVC with a disk"),
        pytest.param(template_with(ROOT, {"disk": {"readonly": False}}), PVC, id="a disk that is not read-only"),
        pytest.param(template_with(ROOT, {"lun": {"bus": "scsi"}}), PVC, id="a LUN"),
        pytest.param(template_with(ROOT, {"disk": {}, "shareable": False}), PVC, id="a disk that is not shared"),
        pytest.param(template_with(ROOT, {"cdrom": {"readonly": False}}), PVC, id="a CD-ROM that is written to"),
        pytest.param(template_with({"name": "root", "dataVolume": {"name": "data"}}), PVC, id="another's DataVolume"),
        pytest.param(
            changed(OWN, "template.spec.volumes", [{"name": "root", "dataVolume": {"name": "rooot"}}]),
            "PersistentVolumeClaim rooot",
            id="a DataVolume that is not its own",
        ),
        pytest.param(template_with({"name": "root", "memoryDump": {"claimName": "data"}}), PVC, id="a memory dump"),
        pytest.param(
            template_with({"name": "root", "hostDisk": {"path": "/disk.img", "type": "DiskOrCreate"}}),
            "host disk /disk.img",
            id="a host disk",
        ),
        pytest.param(
            changed(VM_SPEC, "template.spec.resourceClaims", [{"name": "gpu", "resourceClaimName": "one"}]),
            "ResourceClaim one",
            id="a resource claim",
        ),
        pytest.param(
            changed(VM_SPEC, "template.spec.utilityVolumes", [{"name": "u", "claimName": "data"}]),
            PVC,
            id="a utility volume",
        ),
        pytest.param(
            changed(WITH_DATA_VOLUME, "dataVolumeTemplates.0.spec.storage.volumeName", "pv-1"),
            "PersistentVolume pv-1",
            id="a volume of the storage",
        ),
    ],
)
def test_what_exists_once_and_is_written_to(template, found):
    assert exclusives(template) == [found]


@pytest.mark.parametrize(
    "template",
    [
        pytest.param(SHORT, id="the short form"),
        pytest.param(VM_SPEC, id="a container disk"),
        pytest.param(WITH_DATA_VOLUME, id="a DataVolume of its own"),
        pytest.param(
            changed(OWN, "template.spec.volumes", [{"name": "r", "persistentVolumeClaim": {"claimName": "root"}}]),
            id="the PVC of a DataVolume of its own",
        ),
        pytest.param(template_with(ROOT, {"disk": {}, "shareable": True}), id="a disk that is shared"),
        pytest.param(template_with(ROOT, {"lun": {}, "shareable": True}), id="a LUN that is shared"),
        pytest.param(template_with(ROOT, {"cdrom": {"bus": "sata"}}), id="a driver ISO"),
        pytest.param(template_with(ROOT, {"disk": {"readonly": True}}), id="a disk that is read-only"),
        pytest.param(
            template_with({**ROOT, "persistentVolumeClaim": {"claimName": "data", "readOnly": True}}),
            id="a PVC that is read-only",
        ),
        pytest.param(
            template_with(ROOT, template__spec__domain__devices__filesystems=[{"name": "root", "virtiofs": {}}]),
            id="a folder",
        ),
        pytest.param(
            template_with({"name": "root", "ephemeral": {"persistentVolumeClaim": {"claimName": "data"}}}),
            id="a layer above a PVC",
        ),
        pytest.param(
            template_with({"name": "root", "hostDisk": {"path": "/d", "type": "Disk", "shared": True}}),
            id="a host disk that is shared",
        ),
        pytest.param(template_with({"name": "root", "secret": {"secretName": "data"}}), id="a Secret"),
        pytest.param(template_with({"name": "root", "configMap": {"name": "data"}}), id="a ConfigMap"),
        pytest.param(
            changed(VM_SPEC, "template.spec.resourceClaims", [{"name": "gpu", "resourceClaimTemplateName": "each"}]),
            id="a template of resource claims",
        ),
    ],
)
def test_what_each_vm_has_of_its_own_or_may_share(template):
    assert exclusives(template) == []


@pytest.mark.parametrize(
    ("template", "field"),
    [
        ({"spec": template_with(ROOT)["template"]["spec"]}, "template.spec.volumes[0].persistentVolumeClaim.claimName"),
        (template_with(ROOT), "template.template.spec.volumes[0].persistentVolumeClaim.claimName"),
        ({"spec": template_with(ROOT)}, "template.spec.template.spec.volumes[0].persistentVolumeClaim.claimName"),
    ],
)
def test_it_is_named_where_its_author_wrote_it_and_with_what_to_do(template, field):
    (found,) = expand(template, WarmWhen.AGENT).exclusives
    assert (found.field, found.volume) == (field, "root")
    assert found.message.startswith("PersistentVolumeClaim data exists once, and each VM needs a disk of its own: use ")


DOMAIN = "template.spec.domain"
INTERFACE = {"name": "default", "masquerade": {}}


def network_data(config, kind="cloudInitNoCloud", *, encoded=False):
    text = json.dumps(config)
    given = {"networkDataBase64": base64.b64encode(text.encode()).decode()} if encoded else {"networkData": text}
    return template_with({"name": "root", kind: given})


def annotated(key, value):
    return changed(VM_SPEC, "template.metadata.annotations", {key: value})


V2 = {"version": 2, "ethernets": {"eth0": {"addresses": ["192.0.2.7/24"]}}}
V1 = {"version": 1, "config": [{"type": "physical", "subnets": [{"type": "static", "address": "192.0.2.7/24"}]}]}


@pytest.mark.parametrize(
    ("template", "field"),
    [
        (changed(VM_SPEC, f"{DOMAIN}.firmware", {"uuid": "1-2"}), f"{DOMAIN}.firmware.uuid"),
        (changed(VM_SPEC, f"{DOMAIN}.firmware", {"serial": "SN-1"}), f"{DOMAIN}.firmware.serial"),
        (changed(VM_SPEC, f"{DOMAIN}.chassis", {"serial": "SN-1"}), f"{DOMAIN}.chassis.serial"),
        (changed(VM_SPEC, f"{DOMAIN}.chassis", {"asset": "A-1"}), f"{DOMAIN}.chassis.asset"),
        (changed(VM_SPEC, "template.spec.hostname", "db-1"), "template.spec.hostname"),
        (
            changed(VM_SPEC, f"{DOMAIN}.devices.interfaces", [INTERFACE, {**INTERFACE, "macAddress": "02:00"}]),
            f"{DOMAIN}.devices.interfaces[1].macAddress",
        ),
        (
            changed(VM_SPEC, f"{DOMAIN}.devices.disks", [{"name": "bootdisk", "disk": {}, "serial": "S1"}]),
            f"{DOMAIN}.devices.disks[0].serial",
        ),
        *(
            (annotated(key, value), f"template.metadata.annotations.{key}")
            for key, value in {
                "cni.projectcalico.org/ipAddrs": '["192.0.2.7"]',
                "cni.projectcalico.org/hwAddr": "02:00",
                "cni.cilium.io/mac-address": "02:00",
                "ipam.antrea.io/pod-ips": "192.0.2.7",
                "ovn.kubernetes.io/ip_address": "192.0.2.7",
                "net1.vms.ovn.kubernetes.io/mac_address": "02:00",
                "k8s.v1.cni.cncf.io/networks": '[{"name": "a"}, {"name": "b", "ips": ["192.0.2.7"]}]',
                "v1.multus-cni.io/default-network": '{"name": "a", "mac": "02:00"}',
                "network.kubevirt.io/addresses": '{"default": ["192.0.2.7/24"]}',
                "k8s.ovn.org/primary-udn-ipamclaim": "vm-a.net",
            }.items()
        ),
        *(
            (
                annotated("k8s.v1.cni.cncf.io/networks", f'[{{"name": "a", {given}}}]'),
                "template.metadata.annotations.k8s.v1.cni.cncf.io/networks",
            )
            for given in ('"ipam-claim-reference": "vm-a.net"', '"cni-args": {"ips": ["192.0.2.7"]}')
        ),
        (network_data(V2), "template.spec.volumes[0].cloudInitNoCloud.networkData"),
        (network_data({"network": V2}), "template.spec.volumes[0].cloudInitNoCloud.networkData"),
        (
            network_data(V2, "cloudInitConfigDrive", encoded=True),
            "template.spec.volumes[0].cloudInitConfigDrive.networkDataBase64",
        ),
        (
            network_data({"version": 2, "ethernets": {"eth0": {"macaddress": "02:00"}}}),
            "template.spec.volumes[0].cloudInitNoCloud.networkData",
        ),
        (
            network_data({"version": 2, "ethernets": {"eth0": {"addresses": ["10.0.2.2/24", {"2001:db8::7/64": {}}]}}}),
            "template.spec.volumes[0].cloudInitNoCloud.networkData",
        ),
        (network_data(V1), "template.spec.volumes[0].cloudInitNoCloud.networkData"),
    ],
)
def test_what_identifies_one_machine(template, field):
    assert identity(template) == [f"template.{field}"]


@pytest.mark.parametrize(
    "template",
    [
        SHORT,
        VMI_TEMPLATE,
        WITH_DATA_VOLUME,
        changed(VM_SPEC, f"{DOMAIN}.chassis", {"manufacturer": "m", "version": "1", "sku": "s"}),
        changed(VM_SPEC, f"{DOMAIN}.firmware", {"bootloader": {"efi": {}}}),
        changed(VM_SPEC, f"{DOMAIN}.devices.interfaces", [INTERFACE]),
        changed(VM_SPEC, "template.spec.subdomain", "web"),
        annotated("k8s.v1.cni.cncf.io/networks", "default/net-a, net-b"),
        annotated("k8s.v1.cni.cncf.io/networks", '[{"name": "a", "cni-args": {"mtu": 9000}}]'),
        annotated("k8s.v1.cni.cncf.io/networks", '[{"name": "a"}]'),
        annotated("ovn.kubernetes.io/ip_pool", "192.0.2.0/24"),
        annotated("ipam.cilium.io/ip-pool", "blue"),
        network_data({"version": 2, "ethernets": {"eth0": {"dhcp4": True}}}),
        network_data({"version": 1, "config": [{"type": "physical", "subnets": [{"type": "dhcp"}]}]}),
        network_data({"version": 2, "ethernets": {"eth0": {"addresses": ["fd10:0:2::2/120"], "dhcp4": True}}}),
        network_data({"version": 2, "ethernets": {"eth0": {"addresses": [{"10.0.2.2/24": {"label": "eth0:0"}}]}}}),
        network_data({"version": 2, "bridges": {"lo0": {"addresses": ["127.0.0.2/8", "169.254.1.1/16", "{{ ip }}"]}}}),
        changed(network_data(V2), "template.spec.networks", [{"name": "n", "pod": {"vmNetworkCIDR": "192.0.2.0/24"}}]),
        template_with({"name": "root", "cloudInitNoCloud": {"networkData": "a: [", "userData": "x"}}),
        template_with({"name": "root", "cloudInitNoCloud": {"networkDataBase64": "%", "userData": "x"}}),
        template_with({"name": "root", "configMap": {"name": "c"}}, {"disk": {}, "serial": "CONFIG"}),
        template_with(ROOT, {"disk": {}, "shareable": True, "serial": "SHARED"}),
    ],
)
def test_what_many_machines_may_have(template):
    assert identity(template) == []
