"""What a VM will cost a node, against what the dev cluster's virt-controller renders and its scheduler counts."""

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.compute.kubevirt.templates.demand import demand_of
from app.compute.kubevirt.templates.expand import expand
from app.compute.kubevirt.templates.manifests import vm_manifest
from app.devcluster.apiserver.pod_resources import pod_requests
from app.devcluster.kubevirt.instances import build_instance
from app.devcluster.kubevirt.launcher import build_pod
from app.domain.observation import WarmWhen
from app.domain.placement import Placement
from app.errors import TemplateRefused
from tests.support.kubevirt_documents import SHORT

NOW = datetime(2030, 1, 1, tzinfo=UTC)
GI, MI = 2**30, 2**20


def expanded(template, placement=None, **knobs):
    return expand(template, WarmWhen.AGENT, Placement.model_validate(placement or {}), **knobs).spec


def pod_of(spec):
    vm = vm_manifest(name="vm-1", namespace="default", instance="emberpool", pool="pool-a", vm_id="1", spec=spec)
    vm["metadata"] |= {"uid": "u", "generation": 1}
    return build_pod(build_instance(vm, NOW), "abcde", NOW)


def vmi(domain, **spec):
    return {"spec": {"domain": domain, **spec}}


CPUS = st.sampled_from(["500m", "1", "2", "3", "4", "1500m", 2])
MEMORY = st.sampled_from(["512Mi", "1Gi", "2Gi", "1000M", "3Gi", "1536Mi", 2 * GI])
FLAGS = st.booleans()


@st.composite
def domains(draw):
    cpu = {name: draw(st.integers(1, 4)) for name in draw(st.sets(st.sampled_from(["cores", "sockets", "threads"])))}
    resources = {
        kind: amounts
        for kind in ("requests", "limits")
        if (
            amounts := {
                name: draw(values)
                for name, values in (("cpu", CPUS), ("memory", MEMORY), ("ephemeral-storage", MEMORY))
                if draw(st.sampled_from([True, False, False]))
            }
        )
    }
    memory = {"guest": draw(MEMORY)} if draw(FLAGS) or not resources else {}
    devices = {
        name: value
        for name, value in (
            ("autoattachGraphicsDevice", False),
            ("autoattachPodInterface", False),
            ("logSerialConsole", False),
            ("autoattachVSOCK", True),
            ("tpm", {}),
            ("hostDevices", [{"name": "a", "deviceName": "vendor.example/nic"}]),
            (
                "gpus",
                [{"name": "b", "deviceName": "vendor.example/gpu"}, {"name": "c", "deviceName": "vendor.example/gpu"}],
            ),
        )
        if draw(st.sampled_from([True, False, False]))
    }
    domain = {"cpu": cpu, "memory": memory, "resources": resources, "devices": devices}
    if draw(st.sampled_from([True, False, False])):
        domain["ioThreads"] = {"supplementalPoolThreadCount": draw(st.integers(1, 3))}
        domain["ioThreadsPolicy"] = "supplementalPool"
    return domain


@st.composite
def placements(draw):
    asked = {
        name: True
        for name in ("dedicated_cpus", "isolate_emulator_thread", "numa_passthrough", "realtime")
        if draw(FLAGS)
    }
    hugepages = draw(st.sampled_from([None, None, "2Mi", "1Gi"]))
    return {**asked, **({"hugepages": hugepages} if hugepages else {})}


@settings(max_examples=300)
@given(domains(), placements(), st.booleans(), st.booleans())
def test_it_is_what_the_scheduler_counts(domain, placement, full_cores, with_disk):
    volumes = [{"name": "root", "containerDisk": {"image": "a.example/b:1"}}] if with_disk else []
    try:
        spec = expanded(vmi(domain, volumes=volumes), placement, full_cores=full_cores)
    except TemplateRefused:
        return
    demand, pod = demand_of(spec), pod_of(spec)
    assert demand.amounts == pod_requests(pod)
    assert demand.selector == pod["spec"]["nodeSelector"]


@pytest.mark.parametrize(
    ("template", "placement", "amounts"),
    [
        # Recorded on KubeVirt v1.9.0 (accepted-then.txt), and 35M of memory and 5m of CPU for the console's log beside them.
        (
            vmi({"cpu": {"cores": 4}, "memory": {"guest": "1Gi"}}),
            {"dedicated_cpus": True, "hugepages": "2Mi"},
            {"cpu": 4015, "hugepages-2Mi": GI, "memory": 392 * MI + 60_000_000},
        ),
        (
            vmi({"cpu": {"cores": 4}, "memory": {"guest": "1Gi"}}),
            {
                "dedicated_cpus": True,
                "hugepages": "2Mi",
                "isolate_emulator_thread": True,
                "numa_passthrough": True,
            },
            {"cpu": 5015, "hugepages-2Mi": GI, "memory": 392 * MI + 60_000_000},
        ),
        (
            vmi({"cpu": {"cores": 1}, "memory": {"guest": "2Gi"}, "resources": {"limits": {"memory": "1Gi"}}}),
            {},
            {"cpu": 105, "memory": 1292 * MI + 35_000_000},
        ),
    ],
)
def test_the_demand_is_what_virt_controller_was_recorded_to_ask_for(template, placement, amounts):
    found = demand_of(expanded(template, placement)).amounts
    assert {name: found[name] for name in amounts} == amounts


def test_an_instance_type_leaves_it_unknown():
    spec = expanded(SHORT)
    assert demand_of({**spec, "instancetype": {"name": "u1.small"}}) is None
    assert demand_of({**spec, "preference": {"name": "fedora"}}) is None


def test_what_is_not_compared_is_said():
    rule = {"labelSelector": {}, "topologyKey": "kubernetes.io/hostname"}
    affinity = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [rule]}}
    spread = [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]
    domain = {"memory": {"guest": "1Gi"}}
    unseen = demand_of(expanded(vmi(domain, affinity=affinity, topologySpreadConstraints=spread))).unseen
    assert [words.split(" ")[1] for words in unseen] == ["pod", "constraints"]
    assert demand_of(expanded(vmi(domain, schedulerName="mine"))).unseen == (
        "what scheduler 'mine' goes by is not known",
    )
    assert demand_of(expanded(SHORT)).unseen == ()
