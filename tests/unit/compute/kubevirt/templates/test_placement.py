"""From `placement` to KubeVirt's own fields, and back to the field that a contradiction is told of."""

import pytest

from app.compute.kubevirt.templates.expand import expand
from app.compute.kubevirt.templates.placement import EVEN_PARITY, fragment_of
from app.domain.observation import WarmWhen
from app.domain.placement import Placement
from app.errors import TemplateRefused
from tests.support.kubevirt_documents import SHORT, VMI_TEMPLATE, changed

OVER_NODES = [
    {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {"app.kubernetes.io/managed-by": "emberpool"}},
        "matchLabelKeys": ["emberpool.io/instance", "emberpool.io/pool"],
    }
]
DOMAIN = {"memory": {"guest": "4Gi"}, "cpu": {"cores": 4}}


def expanded(template, placement=None, **knobs):
    return expand(template, WarmWhen.RUNNING, Placement.model_validate(placement or {}), **knobs)


def fragment(template, placement=None, **knobs):
    return fragment_of(expanded(template, placement, **knobs).spec)


def vmi(domain, **spec):
    return {"spec": {"domain": domain, **spec}}


def problems_of(template, placement=None, **knobs):
    with pytest.raises(TemplateRefused) as refused:
        expanded(template, placement, **knobs)
    return {problem.field: problem.message for problem in refused.value.problems}


class TestFragment:
    def test_everything_at_once_becomes_kubevirts_fields(self):
        asked = {
            "dedicated_cpus": True,
            "isolate_emulator_thread": True,
            "numa_passthrough": True,
            "realtime": True,
            "hugepages": "1Gi",
            "cpu_model": "Skylake-Server",
            "node_selector": {"disk": "fast"},
            "affinity": {"podAntiAffinity": {}},
            "tolerations": [{"key": "vms", "operator": "Exists"}],
            "spread": "zones",
        }
        assert fragment({**SHORT, "cpu": 4, "memory": "4Gi"}, asked) == {
            "domain": {
                "cpu": {
                    "cores": 4,
                    "dedicatedCpuPlacement": True,
                    "isolateEmulatorThread": True,
                    "numa": {"guestMappingPassthrough": {}},
                    "realtime": {},
                    "model": "Skylake-Server",
                },
                "memory": {"guest": "4Gi", "hugepages": {"pageSize": "1Gi"}},
            },
            "nodeSelector": {"disk": "fast"},
            "affinity": {"podAntiAffinity": {}},
            "tolerations": [{"key": "vms", "operator": "Exists"}],
            "topologySpreadConstraints": [{**OVER_NODES[0], "topologyKey": "topology.kubernetes.io/zone"}],
        }

    def test_a_pools_vms_are_spread_over_nodes_unless_somebody_says_otherwise(self):
        assert fragment(SHORT)["topologySpreadConstraints"] == OVER_NODES
        assert "topologySpreadConstraints" not in fragment(SHORT, {"spread": "none"})
        own = [{"maxSkew": 3, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}]
        assert fragment(vmi(DOMAIN, topologySpreadConstraints=own))["topologySpreadConstraints"] == own

    def test_spreading_makes_no_other_vm_and_hugepages_do(self):
        shapes = {spread: expanded(SHORT, {"spread": spread}).shape for spread in ("nodes", "zones", "none")}
        assert set(shapes.values()) == {expanded(SHORT).shape}
        assert expanded(SHORT, {"hugepages": "2Mi"}).shape != expanded(SHORT).shape

    def test_a_placement_and_a_template_that_says_the_same_are_the_same_vm(self):
        written = {**DOMAIN, "cpu": {"cores": 4, "dedicatedCpuPlacement": True}, "resources": {}}
        assert expanded(vmi(DOMAIN), {"dedicated_cpus": True}).shape == expanded(vmi(written)).shape

    @pytest.mark.parametrize("given", [{"requests": {"cpu": "4"}}, {"limits": {"cpu": "4"}}])
    def test_what_is_given_once_is_given_as_request_and_limit_of_pinned_vms(self, given):
        resources = {name: {**amounts, "memory": "4Gi"} for name, amounts in given.items()}
        asked = {"dedicated_cpus": True}
        both = {"cpu": "4", "memory": "4Gi"}
        assert fragment(vmi({**DOMAIN, "resources": resources}), asked)["domain"]["resources"] == {
            "requests": both,
            "limits": both,
        }
        assert fragment(vmi({**DOMAIN, "resources": resources}))["domain"]["resources"] == resources

    def test_an_isolated_emulator_takes_a_second_cpu_where_whole_cores_are_given_out(self):
        asked = {"dedicated_cpus": True, "isolate_emulator_thread": True}
        template = {**SHORT, "cpu": 4}
        assert expanded(template, asked, full_cores=True).spec["template"]["metadata"]["annotations"] == {
            EVEN_PARITY: ""
        }
        assert "annotations" not in expanded(template, asked).spec["template"].get("metadata", {})
        assert "placement.dedicated_cpus" in problems_of({**SHORT, "cpu": 3}, {"dedicated_cpus": True}, full_cores=True)


class TestContradictions:
    def test_what_the_placement_asks_for_is_told_of_the_placement(self):
        asked = {"numa_passthrough": True, "isolate_emulator_thread": True, "realtime": True}
        assert set(problems_of(SHORT, asked)) == {f"placement.{name}" for name in asked}

    def test_what_the_template_says_is_told_of_the_template(self):
        cpu = {"threads": 4, "dedicatedCpuPlacement": True, "isolateEmulatorThread": True}
        assert set(problems_of(vmi({**DOMAIN, "cpu": cpu}))) == {"template.spec.domain.cpu.threads"}
        alone = {"cores": 2, "isolateEmulatorThread": True}
        assert set(problems_of(vmi({**DOMAIN, "cpu": alone}))) == {"template.spec.domain.cpu.isolateEmulatorThread"}

    def test_the_short_forms_memory_is_called_so(self):
        found = problems_of({**SHORT, "memory": "1001Mi"}, {"hugepages": "2Mi"})
        assert found == {"template.memory": "must be a multiple of the page of 2Mi; write 1000Mi or 1002Mi"}

    def test_a_template_may_bring_what_a_placement_needs(self):
        domain = {**DOMAIN, "memory": {"guest": "4Gi", "hugepages": {"pageSize": "2Mi"}}}
        found = fragment(vmi(domain), {"dedicated_cpus": True, "numa_passthrough": True})
        assert found["domain"]["cpu"]["numa"] == {"guestMappingPassthrough": {}}

    @pytest.mark.parametrize(
        ("domain", "spec", "asked"),
        [
            ({"memory": {"guest": "4Gi", "hugepages": {"pageSize": "2Mi"}}}, {}, {"hugepages": "1Gi"}),
            ({"cpu": {"model": "EPYC"}}, {}, {"cpu_model": "Skylake-Server"}),
            ({"cpu": {"dedicatedCpuPlacement": False}}, {}, {"dedicated_cpus": True}),
            ({}, {"nodeSelector": {"disk": "slow"}}, {"node_selector": {"disk": "fast"}}),
            ({}, {"affinity": {"podAffinity": {}}}, {"affinity": {"podAntiAffinity": {}}}),
            ({}, {"topologySpreadConstraints": [{"maxSkew": 1}]}, {"spread": "nodes"}),
        ],
    )
    def test_two_that_say_different_things_are_refused(self, domain, spec, asked):
        (field,) = problems_of(vmi({**DOMAIN, **domain}, **spec), asked)
        assert field.startswith(f"placement.{next(iter(asked))}")

    @pytest.mark.parametrize(
        ("spec", "field"),
        [
            ({"tolerations": "all"}, "template.spec.tolerations"),
            ({"nodeSelector": ["a"]}, "template.spec.nodeSelector"),
            ({"topologySpreadConstraints": ["a"]}, "template.spec.topologySpreadConstraints"),
            ({"affinity": {"nodeAffinity": 3}}, "template.spec.affinity.nodeAffinity"),
        ],
    )
    def test_what_cannot_be_read_is_refused(self, spec, field):
        assert field in problems_of(vmi(DOMAIN, **spec))

    def test_an_affinity_without_a_key_is_refused(self):
        term = {"matchExpressions": [{"operator": "In"}]}
        affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}
        (field,) = problems_of(SHORT, {"affinity": affinity})
        assert field.startswith("placement.affinity.nodeAffinity")
        assert field.endswith("matchExpressions[0]")

    def test_kubevirts_own_fields_stand_beside_a_placement_that_says_nothing(self):
        template = changed(VMI_TEMPLATE, "spec.nodeSelector", {"disk": "fast"})
        assert fragment(template)["nodeSelector"] == {"disk": "fast"}
