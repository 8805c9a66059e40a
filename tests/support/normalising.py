"""Takes out of an API answer what differs between two runs, so that two answers can be compared.

What is noise: uids, resource versions, times, generated names, addresses, MACs, firmware ids, the node chosen, the order
of conditions, and how often the server tells the same cause.
"""

import re

_TIMES = frozenset(
    {
        "creationTimestamp",
        "deletionTimestamp",
        "lastTransitionTime",
        "lastProbeTime",
        "phaseTransitionTimestamp",
        "retryAfterTimestamp",
        "lastHeartbeatTime",
        "creationTime",
        "restoreTime",
        "error_time",
    }
)
_PLAIN = {
    "uid": "<uid>",
    "resourceVersion": "<version>",
    "ipAddress": "<ip>",
    "mac": "<mac>",
    "nodeName": "<node>",
    "kubevirt.io/nodeName": "<node>",
    "serial": "<serial>",
    "lastFailedVMIUID": "<uid>",
    "volume.kubernetes.io/selected-node": "<node>",
    "storageVersionHash": "<hash>",
    "kubevirt.io/heartbeat": "<time>",
    "serverAddress": "<address>",
    "storageClassName": "<class>",
    "volumeSnapshotClassName": "<class>",
    "volume.beta.kubernetes.io/storage-provisioner": "<driver>",
    "volume.kubernetes.io/storage-provisioner": "<driver>",
    "providerID": "<id>",
    "podCIDR": "<network>",
    "topology.kubernetes.io/region": "<region>",
    "topology.kubernetes.io/zone": "<zone>",
}
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})")
_OBJECT = re.compile(r'patch: Invalid value: ".*": (?=strict|illegal|parsing)', re.DOTALL)
_INVALID_OBJECT = re.compile(r'^Invalid value: "\{.*\}": (?=strict|illegal|parsing)', re.DOTALL)
_OLD = re.compile(r"too old resource version: \d+ \(\d+\)")
_FUTURE = re.compile(r"Too large resource version: \d+, current: \d+")
_RECORD = re.compile(r"\((\d+)\) does not match the ResourceVersion in record \(\d+\)")
_GENERATED = re.compile(r"^(made|l|virt-launcher-\S+|vmsnapshot-content|s)-[a-z0-9]{5}$")
# The rig's own orders, a label that one node of three had, and where the dev cluster keeps a node's shape.
_LEFT_OUT = ("fakehost/", "devcluster/", "scheduling.node.kubevirt.io/tsc-frequency-")


def normalise(value, key=""):
    """Objects, lists and texts with their noise replaced by marks."""
    if value is None:
        return None
    if key in _TIMES:
        return "<time>"
    if key in _PLAIN:
        return _PLAIN[key]
    if isinstance(value, dict):
        return _object(value, key)
    if isinstance(value, list):
        if key in {"ipAddresses", "podCIDRs"}:
            return ["<ip>" for _ in value]
        items = [normalise(item) for item in value]
        if key == "conditions":
            items.sort(key=lambda item: item["type"])
        if key == "causes":
            items = [item for number, item in enumerate(items) if item not in items[:number]]
        return items
    if isinstance(value, str):
        return _text(value, key)
    return value


def _object(value, key):
    if value.get("kind") == "APIResourceList":
        return {**value, "resources": {item["name"]: normalise(item) for item in value["resources"]}}
    if "gitVersion" in value:
        return {name: item if name in {"major", "minor"} else "<build>" for name, item in value.items()}
    if "nodeInfo" in value:
        return _node_status(value)
    if key == "guestOSInfo" and value:
        return dict.fromkeys(value, "<text>")
    if key == "activePods":
        return {"<uid>": "<node>"} if value else {}
    if key == "firmware":
        return dict.fromkeys(value, "<id>")
    result = {
        UUID.sub("<uid>", name): normalise(item, name) for name, item in value.items() if not name.startswith(_LEFT_OUT)
    }
    if value.get("kind") == "VirtualMachineInstance" and "generation" in result.get("metadata", {}):
        result["metadata"]["generation"] = "<count>"
    return result


def _node_status(status):
    """A node's status is its own; what a client can rely on is which members there are, and the conditions.

    The recorded nodes were played, and told no images; a kubelet does.
    """
    result = {
        name: sorted(item) if isinstance(item, dict) else item for name, item in status.items() if name != "images"
    }
    result["addresses"] = [item["type"] for item in status["addresses"]]
    result["conditions"] = sorted([item["type"], item["status"], item["reason"]] for item in status["conditions"])
    return result


def _text(value, key):
    if value.startswith("[+]ping ok"):
        return "<checks>"
    if key == "progress" and value not in {"N/A", "100.0%"}:
        return "<percent>"
    if key == "continue":
        return "<token>" if value else ""
    if key == "name" and (match := _GENERATED.match(value)):
        return f"{match.group(1)}-<generated>"
    value = _OBJECT.sub("patch: Invalid value: <object>: ", value)
    value = _INVALID_OBJECT.sub("Invalid value: <object>: ", value)
    value = UUID.sub("<uid>", value)
    value = _OLD.sub("too old resource version: <version> (<version>)", value)
    value = _FUTURE.sub("Too large resource version: <version>, current: <version>", value)
    value = _RECORD.sub("(<version>) does not match the ResourceVersion in record (<version>)", value)
    if "parsing time" not in value:
        value = _TIME.sub("<time>", value)
    return value


def tracks(events):
    """For each object of a watch: how its phase, conditions and finalizers went, and its last state.

    `events` are (seconds, type, object). A value's turn is (value, lasting): it lasted if it stood for a while, or to the
    end; shorter ones may be missing from another run.
    """
    objects = {}
    for seconds, kind, obj in events:
        if kind in {"BOOKMARK", "ERROR"}:
            continue
        entry = objects.setdefault(UUID.sub("<uid>", obj["metadata"]["name"]), {"turns": {}, "last": None})
        for track, value in _observe(kind, obj).items():
            turns = entry["turns"].setdefault(track, [])
            if not turns or turns[-1][0] != value:
                turns.append([value, seconds])
        for track in entry["turns"].keys() - _observe(kind, obj).keys():
            if entry["turns"][track][-1][0] is not None:
                entry["turns"][track].append([None, seconds])
        entry["gone"] = seconds if kind == "DELETED" else None
        # What an object looked like on its way out is a matter of milliseconds; what it was is not.
        entry["last"] = normalise(obj if kind != "DELETED" else {"spec": obj.get("spec")})
    return {
        name: {"tracks": _lasting(entry["turns"], entry["gone"]), "last": entry["last"]}
        for name, entry in objects.items()
    }


def _observe(kind, obj):
    status = obj.get("status") or {}
    metadata = obj["metadata"]
    seen = {
        "life": "gone" if kind == "DELETED" else "there",
        "going": "deletionTimestamp" in metadata,
        "finalizers": metadata.get("finalizers", []),
        "labels": normalise(metadata.get("labels") or {}),
        "owners": [UUID.sub("<uid>", item["name"]) for item in metadata.get("ownerReferences", [])],
    }
    for name in ("phase", "printableStatus", "ready", "created", "progress", "replicas", "readyReplicas", "readyToUse"):
        if name in status:
            seen[name] = normalise(status[name], name)
    for condition in status.get("conditions") or []:
        told = [condition["status"], condition.get("reason"), normalise(condition.get("message"))]
        seen[f"condition {condition['type']}"] = told
    return seen


_LASTING_SECONDS = 0.4


def _lasting(turns, gone):
    result = {}
    for track, changes in turns.items():
        end = float("inf") if gone is None or track == "life" else gone
        ends = [change[1] for change in changes[1:]] + [end]
        result[track] = [
            [value, end - start >= _LASTING_SECONDS] for (value, start), end in zip(changes, ends, strict=True)
        ]
    return result
