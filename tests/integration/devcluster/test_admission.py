"""What KubeVirt's webhooks refuse, and what becomes of specs they let in (as seen on KubeVirt v1.9.0)."""

import copy

import pytest

from tests.support.devcluster_bench import MACHINES, machine

DOMAIN = "spec.template.spec.domain"
DENIED = 'admission webhook "virtualmachine-validator.kubevirt.io" denied the request: '
QUANTITY = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
DISK = {"name": "data", "disk": {"bus": "virtio"}}
NETWORK_2 = {"name": "n2", "pod": {}}


def vm(**paths):
    """A valid VM with changes: `a__b=value` sets spec.template.spec.a.b; a leading `spec__` sets below spec."""
    obj = copy.deepcopy(machine("x", strategy="Halted"))
    for path, value in paths.items():
        keys = path.split("__")
        place = obj["spec"] if keys[0] == "spec" else obj["spec"]["template"]["spec"]
        keys = keys[1:] if keys[0] == "spec" else keys
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        if value is None:
            place.pop(keys[-1], None)
        else:
            place[keys[-1]] = value
    return obj


def pinned(**more):
    return {"cores": 2, "dedicatedCpuPlacement": True, **more}


def hugepages(guest, size):
    return {"guest": guest, "hugepages": {"pageSize": size}}


def resources(kind, requests=None, limits=None):
    given = {}
    if requests:
        given["requests"] = {kind: requests}
    if limits:
        given["limits"] = {kind: limits}
    return given


VOLUME = {"name": "root", "containerDisk": {"image": "i"}}

REFUSED = [
    (
        {"domain__memory": hugepages("1001Mi", "2Mi")},
        f"{DOMAIN}.resources.requests.memory '0' is not a multiple of the page size {DOMAIN}.memory.hugepages.pageSize '2Mi'",
    ),
    (
        {"domain__memory": hugepages("512Mi", "1Gi")},
        f"{DOMAIN}.resources.requests.memory '0' must be equal to or larger than page size {DOMAIN}.memory.hugepages.pageSize '1Gi'",
    ),
    ({"domain__memory": hugepages("1Gi", "2M!")}, f"{DOMAIN}.memory.hugepages.pageSize '2M!': {QUANTITY}"),
    (
        {"domain__cpu": pinned(), "domain__resources": resources("cpu", "2", "4")},
        f"{DOMAIN}.resources.requests.cpu or {DOMAIN}.resources.limits.cpu must be equal when DedicatedCPUPlacement is true ",
    ),
    (
        {"domain__cpu": pinned(), "domain__resources": resources("cpu", "1500m", "1500m")},
        "provided resources CPU requests must be an interger, provided resources CPU limits must be an interger",
    ),
    (
        {"domain__cpu": pinned(threads=4)},
        f"Not more than two threads must be provided at {DOMAIN}.cpu.threads (got 4) when DedicatedCPUPlacement is true",
    ),
    (
        {"domain__cpu": {"cores": 1, "isolateEmulatorThread": True}},
        "IsolateEmulatorThread should be only set in combination with DedicatedCPUPlacement",
    ),
    (
        {"domain__cpu": pinned(numa={"guestMappingPassthrough": {}})},
        f"{DOMAIN}.memory.hugepages must be requested when NUMA topology strategy is set in {DOMAIN}.cpu.numa.guestMappingPassthrough",
    ),
    (
        {"domain__cpu": pinned(), "domain__resources": resources("memory", "1Gi", "2Gi")},
        f"{DOMAIN}.resources.requests.memory must be equal to {DOMAIN}.resources.limits.memory",
    ),
    ({"spec__runStrategy": None}, "RunStrategy must be specified"),
    ({"spec__runStrategy": "Sometimes"}, "Invalid RunStrategy (Sometimes)"),
    (
        {"spec__running": True},
        "Running and RunStrategy are mutually exclusive. Note that Running is deprecated, please use RunStrategy instead",
    ),
    (
        {"domain__devices__disks": [{"name": "root", "disk": {}}, DISK]},
        f"{DOMAIN}.devices.disks[1].Name 'data' not found.",
    ),
    (
        {"domain__devices__disks": [{"name": "root", "disk": {}}, {"name": "root", "disk": {}}]},
        f"{DOMAIN}.devices.disks[1] and {DOMAIN}.devices.disks[0] must not have the same Name.",
    ),
    (
        {"domain__devices__disks": [{"name": "root", "disk": {"bus": "foo"}}]},
        f"{DOMAIN}.devices.disks[0] is set with an unrecognized bus foo, must be one of: [virtio scsi sata usb]",
    ),
    (
        {"volumes": [{**VOLUME, "emptyDisk": {"capacity": "1Gi"}}]},
        "spec.template.spec.volumes[0] must have exactly one source type set",
    ),
    (
        {"spec__dataVolumeTemplates": [{"metadata": {"name": "dv"}, "spec": {"source": {"blank": {}}}}]},
        "DataVolumeTemplate entry spec.dataVolumeTemplate[0] must be referenced in the VMI template's 'volumes' list",
    ),
    (
        {"networks": [{"name": "default", "pod": {}}, {"name": "n2", "multus": {"networkName": "m"}}]},
        "spec.template.spec.networks[1].name 'n2' not found.",
    ),
    (
        {"domain__devices__interfaces": [{"name": "default", "masquerade": {}}, {"name": "n2", "bridge": {}}]},
        f"{DOMAIN}.devices.interfaces[1].name 'n2' not found.",
    ),
    (
        {
            "networks": [{"name": "default", "pod": {}}, NETWORK_2],
            "domain__devices__interfaces": [{"name": "default", "masquerade": {}}, {"name": "n2", "bridge": {}}],
        },
        "more than one interface is connected to a pod network in spec.template.spec.interfaces",
    ),
    (
        {"domain__devices__interfaces": [{"name": "default", "masquerade": {}, "macAddress": "zz:00"}]},
        f"interface {DOMAIN}.devices.interfaces[0].name has malformed MAC address (zz:00).",
    ),
    (
        {"domain__devices__interfaces": [{"name": "default", "masquerade": {}, "model": "foo"}]},
        f"interface {DOMAIN}.devices.interfaces[0].name uses model foo that is not supported.",
    ),
    (
        {"volumes": [VOLUME, {"name": "ci", "cloudInitNoCloud": {"userData": "x" * 2049}}]},
        "spec.template.spec.volumes[1].cloudInitNoCloud userdata exceeds 2048 byte limit. Should use UserDataSecretRef for larger data.",
    ),
    (
        {"volumes": [VOLUME, {"name": "ci", "cloudInitNoCloud": {}}]},
        "spec.template.spec.volumes[1].cloudInitNoCloud must have at least one userdatasource or one networkdatasource set.",
    ),
    ({"evictionStrategy": "Foo"}, "spec.template.spec.evictionStrategy is set with an unrecognized option: Foo"),
    ({"startStrategy": "Foo"}, "spec.template.spec.startStrategy is set with an unrecognized option: Foo"),
    (
        {"volumes": [VOLUME, {"name": "h", "hostDisk": {"path": "/x", "type": "Disk"}}]},
        "HostDisk feature gate is not enabled",
    ),
    (
        {"spec__template__metadata__labels": {"kubevirt.io/nodeName": "n"}},
        "creation of the following reserved kubevirt.io/ labels on a VMI object is prohibited",
    ),
    (
        {"spec__instancetype": {"name": "u1.small"}, "domain__memory": None, "domain__cpu": {"cores": 1}},
        f"VM field(s) {DOMAIN}.cpu.cores conflicts with selected instance type",
    ),
    (
        {"domain__cpu": {"sockets": 4, "maxSockets": 2}},
        (
            "Number of sockets in CPU topology is greater than the maximum sockets allowed, "
            "Number of sockets in CPU topology is greater than the maximum sockets allowed"
        ),
    ),
    (
        {"livenessProbe": {"guestAgentPing": {}, "tcpSocket": {"port": 1}}},
        "spec.template.spec.livenessProbe must have exactly one probe type set",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=range(len(REFUSED)))
async def test_refused_specs_are_told_in_kubevirts_words(bench, changes, message):
    status, body = await bench.call("POST", MACHINES, vm(**changes))

    assert (status, body["message"]) == (422, DENIED + message)
    assert body["details"]["causes"][0]["reason"] == "FieldValueInvalid"


TAKEN = [
    {"domain__cpu": pinned(cores=4), "domain__memory": hugepages("1Gi", "2Mi")},
    {
        "domain__cpu": pinned(isolateEmulatorThread=True, numa={"guestMappingPassthrough": {}}),
        "domain__memory": hugepages("1Gi", "2Mi"),
    },
    {"domain__memory": hugepages("1Gi", "3Mi") | {"guest": "1023Mi"}},
    {"domain__cpu": {"dedicatedCpuPlacement": True}},
    {"domain__resources": resources("memory", "256Mi")},
    {"domain__resources": resources("memory", None, "1Gi"), "domain__memory": {"guest": "2Gi"}},
    {"domain__memory": None},
    {"domain__memory": {"guest": "0"}},
    {"architecture": "riscv"},
    {"spec__instancetype": {"name": "nope"}, "domain__cpu": None, "domain__memory": None},
    {"terminationGracePeriodSeconds": -1},
    {"volumes": [VOLUME, {"name": "spare", "containerDisk": {"image": "i"}}]},
]


@pytest.mark.parametrize("changes", TAKEN, ids=range(len(TAKEN)))
async def test_specs_that_fail_late_or_never_are_let_in(bench, changes):
    status, body = await bench.call("POST", MACHINES, vm(**changes))

    assert status == 201, body


async def test_a_bad_quantity_is_the_mutators_400(bench):
    status, body = await bench.call("POST", MACHINES, vm(domain__memory={"guest": "1Gb"}))

    told = f'admission webhook "virtualmachines-mutator.kubevirt.io" denied the request: {QUANTITY}'
    assert (status, body["message"]) == (400, told)


@pytest.mark.parametrize("key", ["instancetype", "preference"])
async def test_what_would_be_inferred_from_a_volume_is_cleared_or_refused(bench, key):
    inferred = {"inferFromVolume": VOLUME["name"], "inferFromVolumeFailurePolicy": "Ignore"}
    status, body = await bench.call("POST", MACHINES, vm(**{f"spec__{key}": inferred}))
    assert status == 201, body
    assert key not in body["spec"]
    assert "guest" in body["spec"]["template"]["spec"]["domain"]["memory"]

    status, body = await bench.call("POST", MACHINES, vm(**{f"spec__{key}": {"inferFromVolume": VOLUME["name"]}}))
    assert status == 400
    assert body["message"].endswith(
        f"unable to find required instancetype.kubevirt.io/default-{key} label on the volume"
    )


async def test_running_alone_is_taken_with_a_warning(bench):
    obj = vm(spec__runStrategy=None, spec__running=True)
    async with bench.session.post(bench.cluster.url + MACHINES, json=obj) as answer:
        assert answer.status == 201
        told = '299 - "spec.running is deprecated, please use spec.runStrategy instead."'
        assert answer.headers.getall("Warning") == [told]


PODS = [
    (
        {"domain__cpu": pinned(cores=4), "domain__memory": hugepages("1Gi", "2Mi")},
        {"cpu": "4", "memory": "392Mi", "hugepages-2Mi": "1Gi"},
    ),
    (
        {"domain__cpu": pinned(cores=4, isolateEmulatorThread=True), "domain__memory": hugepages("1Gi", "2Mi")},
        {"cpu": "5", "memory": "392Mi", "hugepages-2Mi": "1Gi"},
    ),
    (
        {"domain__cpu": {"dedicatedCpuPlacement": True}, "domain__memory": {"guest": "128Mi"}},
        {"cpu": "1", "memory": "496Mi"},
    ),
    (
        {
            "domain__cpu": pinned(),
            "domain__memory": {"guest": "128Mi"},
            "domain__resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "2"}},
        },
        {"cpu": "2", "memory": "504Mi"},
    ),
    (
        {"domain__memory": {"guest": "2Gi"}, "domain__resources": resources("memory", None, "1Gi")},
        {"cpu": "100m", "memory": "1292Mi"},
    ),
    ({"domain__memory": {"guest": "0"}}, {"cpu": "100m", "memory": "268Mi"}),
]


@pytest.mark.parametrize(("changes", "requests"), PODS, ids=range(len(PODS)))
async def test_the_launcher_pod_asks_for_what_kubevirt_asks(bench, changes, requests):
    await bench.create(vm(spec__runStrategy="Always", **changes))
    await bench.clock.advance(1)

    pods = await bench.get("/api/v1/namespaces/default/pods")
    asked = pods["items"][0]["spec"]["containers"][0]["resources"]["requests"]
    devices = {f"devices.kubevirt.io/{name}": "1" for name in ("kvm", "tun", "vhost-net")}
    assert asked == {**requests, **devices, "ephemeral-storage": "50M"}


LATE = [
    (
        {"domain__memory": None},
        "FailedCreate",
        (
            'Failure while starting VMI: admission webhook "virtualmachineinstances-create-validator.kubevirt.io" denied the '
            "request: no memory requested, at least one of 'spec.domain.memory.guest', "
            "'spec.domain.memory.hugepages.pageSize' or 'spec.domain.resources.requests.memory' must be set"
        ),
    ),
    (
        {"architecture": "riscv"},
        "FailedCreate",
        (
            'Failure while starting VMI: admission webhook "virtualmachineinstances-create-validator.kubevirt.io" denied the '
            "request: unsupported architecture: riscv"
        ),
    ),
    (
        {"spec__instancetype": {"name": "nope"}, "domain__cpu": None, "domain__memory": None},
        "FailedFindInstancetype",
        'virtualmachineclusterinstancetypes.instancetype.kubevirt.io "nope" not found',
    ),
]


@pytest.mark.parametrize(("changes", "reason", "message"), LATE, ids=range(len(LATE)))
async def test_what_admission_let_in_fails_at_the_start(bench, changes, reason, message):
    await bench.create(vm(spec__runStrategy="Always", **changes))
    await bench.clock.advance(1)

    status = (await bench.get(f"{MACHINES}/x"))["status"]
    failure = next(item for item in status["conditions"] if item["type"] == "Failure")
    assert status["printableStatus"] == "Stopped"
    assert (failure["reason"], failure["message"]) == (reason, message)


@pytest.mark.parametrize(
    ("changes", "lacking"),
    [
        ({"domain__memory": {"guest": "1023Mi", "hugepages": {"pageSize": "3Mi"}}}, "Insufficient hugepages-3Mi"),
        ({"domain__devices__gpus": [{"name": "g", "deviceName": "nvidia.com/A100"}]}, "Insufficient nvidia.com/A100"),
        ({"domain__cpu": {"cores": 500}, "domain__memory": {"guest": "1Gi"}}, "Insufficient cpu"),
    ],
)
async def test_what_no_node_offers_is_unschedulable(bench, changes, lacking):
    await bench.create(vm(spec__runStrategy="Always", **changes))
    await bench.clock.advance(5)

    assert (await bench.status("x"))[0] == "ErrorUnschedulable"
    told = (
        f"0/3 nodes are available: 3 {lacking}. no new claims to deallocate, preemption: 0/3 nodes are available: 3 "
        "Preemption is not helpful for scheduling."
    )
    assert (await bench.condition("x", "PodScheduled"))["message"] == told
