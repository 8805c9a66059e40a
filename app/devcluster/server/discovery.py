"""Discovery: /version, /api, /apis and the lists of served resources."""

from app.devcluster.apiserver import registry
from app.devcluster.apiserver.registry import VM_SNAPSHOTS, Resource
from app.devcluster.apiserver.status import Json
from app.devcluster.guests.memory import GROUP as MEMORY_GROUP
from app.devcluster.kubevirt.memory import VERSION as MEMORY_VERSION
from app.devcluster.kubevirt.subresources import GROUP, VERSIONS

VERSION: Json = {
    "major": "1",
    "minor": "36",
    "emulationMajor": "1",
    "emulationMinor": "36",
    "minCompatibilityMajor": "1",
    "minCompatibilityMinor": "35",
    "gitVersion": "v1.36.2+emberpool-devcluster",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "none",
    "compiler": "none",
    "platform": "simulated",
}
_SUBRESOURCES = (
    ("virtualmachineinstances", ("pause", "unpause", "softreboot")),
    ("virtualmachines", ("start", "stop", "restart")),
)

_MEMORY: Json = {
    "name": "virtualmachinesnapshots/memory",
    "singularName": "",
    "namespaced": True,
    "kind": VM_SNAPSHOTS.kind,
    "verbs": ["get"],
}


def core_versions(address: str) -> Json:
    return {
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    }


def group_list(*, keeps_memory: bool) -> Json:
    names = [*registry.groups(), GROUP, *([MEMORY_GROUP] if keeps_memory else [])]
    groups = [
        {
            key: value
            for key, value in (group(name, keeps_memory=keeps_memory) or {}).items()
            if key not in {"kind", "apiVersion"}
        }
        for name in names
    ]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def group(name: str, *, keeps_memory: bool) -> Json | None:
    versions = list(VERSIONS) if name == GROUP else registry.versions(name)
    if name == MEMORY_GROUP and keeps_memory:
        versions = [MEMORY_VERSION]
    if name == "kubevirt.io":
        versions = ["v1", "v1alpha3"]
    if not versions:
        return None
    listed = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"kind": "APIGroup", "apiVersion": "v1", "name": name, "versions": listed, "preferredVersion": listed[0]}


def resource_list(group_name: str, version: str, *, keeps_memory: bool) -> Json | None:
    resources: list[Json] = []
    if (group_name, version) == (MEMORY_GROUP, MEMORY_VERSION) and keeps_memory:
        resources = [_MEMORY]
    if group_name == GROUP and version in VERSIONS:
        resources = [
            {"name": f"{plural}/{verb}", "singularName": "", "namespaced": True, "kind": "", "verbs": None}
            for plural, verbs in _SUBRESOURCES
            for verb in verbs
        ]
    for resource in registry.served(group_name, version):
        resources += _entries(resource)
    if not resources:
        return None
    full = f"{group_name}/{version}" if group_name else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": full, "resources": resources}


def _entries(resource: Resource) -> list[Json]:
    entry: Json = {
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": list(resource.verbs),
    }
    if resource.short_names:
        entry["shortNames"] = list(resource.short_names)
    if resource.categories:
        entry["categories"] = list(resource.categories)
    entry["storageVersionHash"] = resource.storage_hash
    common = {"singularName": "", "namespaced": resource.namespaced}
    entries = [entry]
    verbs = ["get", "patch", "update"]
    if resource.status:
        entries.append({"name": f"{resource.plural}/status", **common, "kind": resource.kind, "verbs": verbs})
    if resource is registry.PODS:
        entries.append({"name": "pods/log", **common, "kind": "Pod", "verbs": ["get"]})
    if resource.scale:
        entries.append(
            {
                "name": f"{resource.plural}/scale",
                **common,
                "group": "autoscaling",
                "version": "v1",
                "kind": "Scale",
                "verbs": verbs,
            }
        )
    return entries
