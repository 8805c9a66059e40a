"""Whatever stands in a field of a template, it is taken or refused with a sentence: no field makes the service stumble."""

import copy

import pytest

from app.compute.kubevirt.templates.demand import demand_of
from app.compute.kubevirt.templates.expand import expand
from app.compute.kubevirt.templates.placement import fragment_of
from app.domain.observation import WarmWhen
from app.errors import TemplateRefused

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
RULES = [{"key": "k", "operator": "In", "values": ["v"]}]
SPEC = {
    "dataVolumeTemplates": [
        {
            "metadata": {"name": "data"},
            "spec": {
                "source": {"http": {"url": "u"}, "registry": {"url": "r"}, "pvc": {"name": "p"}},
                "storage": {"resources": {"requests": {"storage": "1Gi"}}},
            },
        }
    ],
    "template": {
        "metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}},
        "spec": {
            "architecture": "amd64",
            "nodeSelector": {"a": "b"},
            "tolerations": [{"key": "a", "operator": "Exists"}],
            "topologySpreadConstraints": [{"topologyKey": "a", "whenUnsatisfiable": "DoNotSchedule"}],
            "affinity": {
                "nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [{"matchExpressions": RULES, "matchFields": RULES}]}},
                "podAffinity": {REQUIRED: [{"topologyKey": "a"}]},
                "podAntiAffinity": {REQUIRED: [{"topologyKey": "a"}]},
            },
            "livenessProbe": {"exec": {"command": ["a"]}},
            "readinessProbe": {"exec": {"command": ["a"]}},
            "volumes": [
                {"name": "a", "containerDisk": {"image": "x"}},
                {"name": "b", "dataVolume": {"name": "data"}},
                {"name": "c", "persistentVolumeClaim": {"claimName": "p"}},
                {"name": "d", "emptyDisk": {"capacity": "1Gi"}},
            ],
            "domain": {
                "cpu": {
                    "cores": 2,
                    "model": "m",
                    "dedicatedCpuPlacement": True,
                    "features": [{"name": "f", "policy": "require"}],
                    "numa": {"guestMappingPassthrough": {}},
                },
                "memory": {
                    "guest": "2Gi",
                    "hugepages": {"pageSize": "1Gi"},
                    "reservedOverhead": {"addedOverhead": "1Mi"},
                },
                "resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "2Gi"}},
                "ioThreads": {"supplementalPoolThreadCount": 2},
                "machine": {"type": "q35"},
                "launchSecurity": {"sev": {}},
                "firmware": {"kernelBoot": {"container": {"image": "k"}}},
                "devices": {
                    "disks": [{"name": "a", "disk": {"bus": "virtio"}}],
                    "filesystems": [{"name": "c", "virtiofs": {}}],
                    "interfaces": [{"name": "n", "masquerade": {}}],
                    "gpus": [{"name": "g", "deviceName": "d/x"}],
                    "hostDevices": [{"name": "h", "deviceName": "d/y"}],
                    "tpm": {"enabled": True},
                },
            },
        },
    },
}
ODD = (7, -1, 1.5, "x", "", [], [None], [7], ["x"], [{}], [[]], {}, {"a": 7}, {"a": None}, True, False, None)


def paths(value, at=()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*at, key)
        yield from paths(item, (*at, key))


def replaced(path, odd):
    spec = copy.deepcopy(SPEC)
    parent = spec
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = odd
    return spec


def judge(spec):
    """Whether it was taken."""
    try:
        taken = expand(spec, WarmWhen.AGENT).spec
    except TemplateRefused:
        return False
    demand_of(taken)
    fragment_of(taken)
    return True


def test_the_template_itself_is_taken():
    assert judge(SPEC)


@pytest.mark.parametrize("path", list(paths(SPEC)), ids=lambda path: ".".join(map(str, path)))
def test_no_value_of_a_field_is_more_than_refused(path):
    for odd in ODD:
        judge(replaced(path, odd))


@pytest.mark.parametrize(
    ("path", "odd", "field", "message"),
    [
        ("readinessProbe", 7, "readinessProbe", "must be a mapping, got int"),
        ("domain.devices.interfaces", {}, "domain.devices.interfaces", "must be a list, got dict"),
        ("domain.cpu.features", [None], "domain.cpu.features[0]", "must be a mapping, got NoneType"),
        ("domain.cpu.model", ["a"], "domain.cpu.model", "must be a string, got list"),
        (
            "domain.ioThreads.supplementalPoolThreadCount",
            "x",
            "domain.ioThreads.supplementalPoolThreadCount",
            "must be an integer, got str",
        ),
        ("affinity.podAffinity", 7, "affinity.podAffinity", "must be a mapping, got int"),
    ],
)
def test_it_is_told_where_it_was_written(path, odd, field, message):
    with pytest.raises(TemplateRefused) as refused:
        expand(replaced(("template", "spec", *path.split(".")), odd), WarmWhen.AGENT)
    assert [(each.field, each.message) for each in refused.value.problems] == [
        (f"template.template.spec.{field}", message)
    ]
