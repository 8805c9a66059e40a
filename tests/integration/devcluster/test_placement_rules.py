"""What KubeVirt's validator refuses of a VM's placement, through the API."""

import pytest

from tests.support.devcluster_bench import MACHINES, machine

SPEC = "spec.template.spec"
CPU = f"{SPEC}.domain.cpu"
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
RULE = {"key": "disk", "operator": "In", "values": ["fast"]}
SPREAD = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}


def node_rules(*rules, fields=()):
    term = {"matchExpressions": list(rules), "matchFields": list(fields)}
    return {"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [term]}}}}


def pinned(**more):
    return {"cores": 2, "dedicatedCpuPlacement": True, **more}


async def dry_run(bench, domain=None, **spec):
    vm = machine("x", strategy="Halted", **(domain or {}))
    vm["spec"]["template"]["spec"].update(spec)
    return await bench.call("POST", f"{MACHINES}?dryRun=All", vm)


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        (
            {"cpu": pinned(), "resources": {"requests": {"cpu": "4"}}},
            f"limits.cpu must not be provided at the same time with {CPU}.cores when DedicatedCPUPlacement is true ",
        ),
        (
            {"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}},
            f"{SPEC}.domain.resources.requests.cpu '2' is greater than {SPEC}.domain.resources.limits.cpu '1'",
        ),
        (
            {"cpu": {"cores": 1, "features": [{"name": "vmx", "policy": "please"}]}},
            "CPU feature vmx uses policy please that is not supported.",
        ),
        (
            {"cpu": pinned(realtime={})},
            f"{CPU}.numa.guestMappingPassthrough must be defined when {CPU}.realtime is used",
        ),
        (
            {"cpu": {"cores": 1, "realtime": {}}},
            f"{CPU}.dedicatedCpuPlacement must be set to true when {CPU}.realtime is used",
        ),
    ],
)
async def test_cpus_that_contradict_themselves(bench, domain, message):
    status, answer = await dry_run(bench, domain)

    assert status == 422
    assert message in answer["message"]


@pytest.mark.parametrize(
    ("spec", "field", "why"),
    [
        (
            {"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": []}}}},
            f"nodeAffinity.{REQUIRED}.nodeSelectorTerms",
            "Required value: must have at least one node selector term",
        ),
        (
            node_rules({"key": "disk", "operator": "In"}),
            f"nodeAffinity.{REQUIRED}.nodeSelectorTerms[0].matchExpressions[0].values",
            "Required value: must be specified when `operator` is 'In' or 'NotIn'",
        ),
        (
            node_rules(RULE, {"key": "disk", "operator": "Exists", "values": ["x"]}),
            f"nodeAffinity.{REQUIRED}.nodeSelectorTerms[0].matchExpressions[1].values",
            "Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
        ),
        (
            node_rules({"key": "disk", "operator": "Like", "values": ["x"]}),
            f"nodeAffinity.{REQUIRED}.nodeSelectorTerms[0].matchExpressions[0].operator",
            'Invalid value: "Like": not a valid selector operator',
        ),
        (
            node_rules(fields=[{"key": "metadata.uid", "operator": "In", "values": ["x"]}]),
            f"nodeAffinity.{REQUIRED}.nodeSelectorTerms[0].matchFields[0].key",
            'Invalid value: "metadata.uid": not a valid field selector key',
        ),
        (
            {"affinity": {"nodeAffinity": {PREFERRED: [{"weight": 101, "preference": {"matchExpressions": [RULE]}}]}}},
            f"nodeAffinity.{PREFERRED}[0].weight",
            "Invalid value: 101: must be in the range 1-100",
        ),
        (
            {"affinity": {"podAntiAffinity": {REQUIRED: [{"labelSelector": {}, "topologyKey": ""}]}}},
            f"podAntiAffinity.{REQUIRED}[0].topologyKey",
            "Required value: can not be empty",
        ),
        (
            {"topologySpreadConstraints": [{**SPREAD, "maxSkew": 0}]},
            "topologySpreadConstraints[0].maxSkew",
            "Invalid value: 0: must be greater than zero",
        ),
        (
            {"topologySpreadConstraints": [{**SPREAD, "whenUnsatisfiable": "Never"}]},
            "topologySpreadConstraints[0].whenUnsatisfiable",
            'Unsupported value: "Never": supported values: "DoNotSchedule", "ScheduleAnyway"',
        ),
        (
            {"topologySpreadConstraints": [SPREAD, SPREAD]},
            "topologySpreadConstraints[0].{topologyKey, whenUnsatisfiable}",
            'Duplicate value: "{zone, DoNotSchedule}"',
        ),
    ],
)
async def test_rules_that_say_nothing(bench, spec, field, why):
    status, answer = await dry_run(bench, **spec)

    assert status == 422
    assert f"{SPEC}.{field}: {why}" in answer["message"]


async def test_what_makes_sense_is_let_in(bench):
    term = {"labelSelector": {"matchLabels": {"app": "test"}}, "topologyKey": "zone"}
    affinity = {
        "nodeAffinity": {
            REQUIRED: {
                "nodeSelectorTerms": [
                    {"matchExpressions": [RULE, {"key": "rank", "operator": "Gt", "values": ["1"]}]},
                    {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node1"]}]},
                ]
            }
        },
        "podAntiAffinity": {PREFERRED: [{"weight": 1, "podAffinityTerm": term}]},
    }
    constraints = [SPREAD, {**SPREAD, "whenUnsatisfiable": "ScheduleAnyway"}]
    domain = {"cpu": pinned(numa={"guestMappingPassthrough": {}}, realtime={}), "resources": {"limits": {"cpu": "2"}}}
    domain["memory"] = {"guest": "1Gi", "hugepages": {"pageSize": "2Mi"}}

    status, answer = await dry_run(bench, domain, affinity=affinity, topologySpreadConstraints=constraints)

    assert status == 201, answer
