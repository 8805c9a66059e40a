"""The virt-launcher pod of a VMI: what it asks for, and which nodes it may go to (figures recorded on KubeVirt v1.9.0)."""

from datetime import UTC, datetime

import pytest

from app.devcluster.apiserver.pod_resources import pod_requests, qos_class
from app.devcluster.kubevirt.instances import build_instance
from app.devcluster.kubevirt.launcher import build_pod
from app.devcluster.kubevirt.launcher_resources import memory_overhead

NOW = datetime(2026, 11, 23, tzinfo=UTC)
HUGE = {"hugepages": {"pageSize": "2Mi"}}
PINNED = {"dedicatedCpuPlacement": True}


def launch(domain, *, annotations=None, name="x", **spec):
    template = {
        "metadata": {"labels": {"app": "test"}, "annotations": annotations or {}},
        "spec": {"architecture": "amd64", **spec, "domain": {"machine": {"type": "q35"}, **domain}},
    }
    vm = {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": name, "namespace": "default", "uid": "u", "generation": 1},
        "spec": {"template": template},
    }
    vmi = build_instance(vm, NOW)
    return vmi, build_pod(vmi, "abcde", NOW)


def compute(pod):
    return pod["spec"]["containers"][0]["resources"]


@pytest.mark.parametrize(
    ("domain", "requests", "limits", "qos"),
    [
        (
            {"cpu": {"cores": 4, **PINNED}, "memory": {"guest": "1Gi", **HUGE}},
            {"cpu": "4", "hugepages-2Mi": "1Gi", "memory": "392Mi"},
            {"cpu": "4", "hugepages-2Mi": "1Gi", "memory": "392Mi"},
            "Guaranteed",
        ),
        (
            {"cpu": {"cores": 4, "isolateEmulatorThread": True, **PINNED}, "memory": {"guest": "1Gi", **HUGE}},
            {"cpu": "5", "hugepages-2Mi": "1Gi", "memory": "392Mi"},
            {"cpu": "5", "hugepages-2Mi": "1Gi", "memory": "392Mi"},
            "Guaranteed",
        ),
        (
            {"cpu": PINNED, "memory": {"guest": "128Mi"}},
            {"cpu": "1", "memory": "496Mi"},
            {"cpu": "1", "memory": "496Mi"},
            "Guaranteed",
        ),
        (
            {
                "cpu": {"cores": 2, **PINNED},
                "memory": {"guest": "128Mi"},
                "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "2"}},
            },
            {"cpu": "2", "memory": "504Mi"},
            {"cpu": "2", "memory": "504Mi"},
            "Guaranteed",
        ),
        (
            {"cpu": {"cores": 1}, "memory": {"guest": "2Gi"}, "resources": {"limits": {"memory": "1Gi"}}},
            {"cpu": "100m", "memory": "1292Mi"},
            {"memory": "1292Mi"},
            "Burstable",
        ),
        ({"cpu": {"cores": 1}, "memory": {"guest": "0"}}, {"cpu": "100m", "memory": "268Mi"}, {}, "Burstable"),
    ],
)
def test_pods_ask_for_what_was_recorded(domain, requests, limits, qos):
    devices = dict.fromkeys(
        ("devices.kubevirt.io/kvm", "devices.kubevirt.io/tun", "devices.kubevirt.io/vhost-net"), "1"
    )

    _, pod = launch(domain)

    assert compute(pod) == {
        "requests": {**devices, "ephemeral-storage": "50M", **requests},
        "limits": {**devices, **limits},
    }
    assert pod["status"]["qosClass"] == qos


@pytest.mark.parametrize(
    ("domain", "annotations", "cpu"),
    [
        ({"cpu": {"cores": 15}}, None, "1500m"),
        ({"cpu": {"cores": 10}}, None, "1"),
        ({"cpu": {"sockets": 2, "cores": 2, "threads": 2}}, None, "800m"),
        ({"cpu": {"cores": 2}, "ioThreads": {"supplementalPoolThreadCount": 2}}, None, "400m"),
        ({"cpu": {"cores": 2}, "resources": {"limits": {"cpu": "1500m"}}}, None, "1500m"),
        ({"resources": {"requests": {"cpu": "2500m"}}}, None, "2500m"),
        ({"cpu": {"cores": 2, **PINNED}, "ioThreads": {"supplementalPoolThreadCount": 2}}, None, "4"),
        ({"cpu": {"cores": 2, "isolateEmulatorThread": True, **PINNED}}, "even", "4"),
        ({"cpu": {"cores": 3, "isolateEmulatorThread": True, **PINNED}}, "even", "4"),
    ],
)
def test_a_launcher_pod_requests_the_cpus_of_its_guest(domain, annotations, cpu):
    parity = {"alpha.kubevirt.io/EmulatorThreadCompleteToEvenParity": ""} if annotations else None

    _, pod = launch({"memory": {"guest": "1Gi"}, **domain}, annotations=parity)

    assert compute(pod)["requests"]["cpu"] == cpu


def test_a_memory_request_is_the_guest_s_memory_and_counts_for_page_tables():
    """The two manifests users write: the second's overhead is written without suffixes, as virt-controller leaves it."""
    pinned = {"cpu": {"cores": 2, "sockets": 1, **PINNED}, "resources": {"requests": {"memory": "2Gi", "cpu": "2"}}}
    vmi, pod = launch(pinned)
    assert vmi["spec"]["domain"]["memory"] == {"guest": "2Gi", "maxGuest": "8Gi"}
    assert compute(pod)["requests"]["memory"] == compute(pod)["limits"]["memory"] == "2428Mi"

    vmi, pod = launch({"memory": HUGE, "resources": {"requests": {"memory": "2Gi", "cpu": "2"}}})
    assert vmi["spec"]["domain"]["cpu"]["sockets"] == 2
    assert compute(pod)["requests"]["hugepages-2Mi"] == "2Gi"
    assert compute(pod)["requests"]["memory"] == str(280 * 2**20)
    assert compute(pod)["requests"]["cpu"] == "2"


def test_memory_beyond_the_guest_s_is_ordinary_memory_beside_hugepages():
    _, pod = launch(
        {"cpu": {"cores": 1}, "memory": {"guest": "1Gi", **HUGE}, "resources": {"requests": {"memory": "2Gi"}}}
    )

    assert compute(pod)["requests"]["hugepages-2Mi"] == "1Gi"
    assert pod_requests(pod)["memory"] == 2**30 + (268 + 4) * 2**20 + 35 * 10**6


@pytest.mark.parametrize(
    ("spec", "mebi"),
    [
        ({"devices": {"autoattachGraphicsDevice": False}}, 236),
        ({"devices": {"gpus": [{"name": "g", "deviceName": "nvidia.com/A100"}]}}, 268 + 1024),
        ({"devices": {"tpm": {}}}, 268 + 53),
        ({"launchSecurity": {"sev": {}}}, 268 + 256),
    ],
)
def test_devices_cost_memory(spec, mebi):
    assert str(memory_overhead({"domain": {"cpu": {"cores": 1}, **spec}})) == f"{mebi}Mi"


def test_the_console_log_runs_beside_and_the_image_s_container_before():
    volumes = [{"name": "root", "containerDisk": {"image": "quay.io/containerdisks/fedora:42"}}]
    _, pod = launch({"cpu": {"cores": 2, **PINNED}, "memory": {"guest": "1Gi"}}, volumes=volumes)

    names = [item["name"] for item in pod["spec"]["initContainers"]]
    assert names == ["guest-console-log", "volumeroot"]
    assert pod["spec"]["volumes"][0]["image"]["reference"] == "quay.io/containerdisks/fedora:42"
    asked = pod_requests(pod)
    # The sidecar's 15m and 60M on top of the guest's; the init container ends before the guest starts.
    assert (asked["cpu"], asked["memory"]) == (2015, 2**30 + 376 * 2**20 + 60 * 10**6)
    assert asked["ephemeral-storage"] == 50 * 10**6


def test_an_init_container_counts_where_it_asks_for_more():
    big = {"name": "a", "resources": {"requests": {"cpu": "3", "memory": "1Gi"}}}
    side = {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "500m"}}}
    main = {"name": "m", "resources": {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"example.com/fpga": 1}}}

    def asked(*init):
        return pod_requests({"spec": {"containers": [main], "initContainers": list(init)}})

    assert asked(big) == {"pods": 1, "cpu": 3000, "memory": 2**31, "example.com/fpga": 1}
    assert asked(side, big)["cpu"] == 3500
    assert asked(big, side)["cpu"] == 3000


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({}, "BestEffort"),
        ({"requests": {"cpu": "1"}}, "Burstable"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}}, "Guaranteed"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}, "Burstable"),
    ],
)
def test_the_qos_class_follows_from_requests_and_limits(resources, expected):
    assert qos_class({"containers": [{"name": "c", "resources": resources}]}) == expected


def test_nodes_are_selected_by_what_the_guest_needs():
    cpu = {
        "cores": 1,
        "model": "Skylake-Server",
        "features": [{"name": "vmx"}, {"name": "pdpe1gb", "policy": "forbid"}, {"name": "pcid", "policy": "optional"}],
        "realtime": {},
        **PINNED,
    }
    _, pod = launch({"cpu": cpu, "memory": {"guest": "1Gi"}}, nodeSelector={"disk": "fast"})

    assert pod["spec"]["nodeSelector"] == {
        "kubernetes.io/arch": "amd64",
        "kubevirt.io/schedulable": "true",
        "machine-type.node.kubevirt.io/q35": "true",
        "kubevirt.io/cpumanager": "true",
        "kubevirt.io/realtime": "true",
        "cpu-model.node.kubevirt.io/Skylake-Server": "true",
        "cpu-feature.node.kubevirt.io/vmx": "true",
        "disk": "fast",
    }
    terms = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert terms == {
        "nodeSelectorTerms": [
            {"matchExpressions": [{"key": "cpu-feature.node.kubevirt.io/pdpe1gb", "operator": "DoesNotExist"}]}
        ]
    }


def test_a_host_model_avoids_nodes_where_it_is_obsolete_in_each_term():
    """Terms are alternatives: each must rule it out."""
    fast = {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["fast"]}]}
    named = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node1"]}]}
    affinity = {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [fast, named]}}
    }

    _, pod = launch({"cpu": {"cores": 1}, "memory": {"guest": "1Gi"}}, affinity=affinity)

    rule = {"key": "node-labeller.kubevirt.io/obsolete-host-model", "operator": "DoesNotExist"}
    required = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert required["nodeSelectorTerms"] == [
        {"matchExpressions": [*fast["matchExpressions"], rule]},
        {**named, "matchExpressions": [rule]},
    ]


def test_labels_name_the_vmi_and_come_from_its_template():
    _, pod = launch({"memory": {"guest": "1Gi"}}, name="a" * 70)

    labels = pod["metadata"]["labels"]
    assert (labels["app"], labels["kubevirt.io"]) == ("test", "virt-launcher")
    assert labels["vm.kubevirt.io/name"] == "a" * 63
    assert len(labels["vmi.kubevirt.io/id"]) == 63


@pytest.mark.parametrize(
    ("domain", "cpu", "memory"),
    [
        ({"cpu": {"cores": 2, "sockets": 2}}, {"cores": 2, "sockets": 2, "maxSockets": 8}, {}),
        ({"resources": {"limits": {"cpu": "1500m"}}}, {"cores": 1, "sockets": 2, "threads": 1, "maxSockets": 8}, {}),
        ({"cpu": {"cores": 32, "sockets": 8, "threads": 1}}, {"maxSockets": 16}, {}),
        ({"resources": {"limits": {"memory": "2048Mi"}}}, {}, {"guest": "2Gi", "maxGuest": "8Gi"}),
        ({"memory": {"hugepages": {"pageSize": "1Gi"}}}, {}, {"guest": "1Gi", "maxGuest": "4Gi"}),
        ({"memory": {"guest": "1536Mi", "hugepages": {"pageSize": "1Gi"}}}, {}, {"maxGuest": None}),
        ({"cpu": {"realtime": {}}, "memory": {"guest": "2Gi"}}, {}, {"maxGuest": None}),
    ],
)
def test_what_the_webhooks_fill_in(domain, cpu, memory):
    vmi, _ = launch(domain)

    built = vmi["spec"]["domain"]
    assert {name: built["cpu"].get(name) for name in cpu} == cpu
    assert {name: built["memory"].get(name) for name in memory} == memory


def test_a_pod_gets_the_labels_and_annotations_of_its_vmi():
    carried = {"k8s.v1.cni.cncf.io/networks": "a", "example.com/b": "c"}
    _, pod = launch({}, annotations={**carried, "kubectl.kubernetes.io/last-applied-configuration": "{}"})
    assert pod["metadata"]["annotations"] == {
        **carried,
        "kubevirt.io/domain": "x",
        "kubevirt.io/vm-generation": "1",
    }
    assert pod["metadata"]["labels"]["app"] == "test"


def test_volumes_without_a_disk_are_attached_on_sata_after_those_that_have_one():
    devices = {
        "disks": [{"name": "b", "disk": {"bus": "virtio"}}, {"name": "c", "cdrom": {}}],
        "filesystems": [{"name": "d", "virtiofs": {}}],
    }
    volumes = [{"name": name, "configMap": {"name": "c"}} for name in "abcd"]
    vmi, _ = launch({"devices": devices}, volumes=volumes)
    assert vmi["spec"]["domain"]["devices"]["disks"] == [
        {"name": "b", "disk": {"bus": "virtio"}},
        {"name": "c", "cdrom": {"bus": "sata"}},
        {"name": "a", "disk": {"bus": "sata"}},
    ]
