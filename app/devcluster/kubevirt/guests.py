"""The events of a guest in the status of its VMI: started, connected, failed, stopped. Each function gives a new VMI."""

import uuid
from datetime import datetime

from app.devcluster.apiserver.conditions import drop, make, put
from app.devcluster.apiserver.objects import with_status
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.times import stamp
from app.devcluster.kubevirt.vmi_controller import with_phase

_FACTS = {
    "id": "devcluster",
    "kernelRelease": "6.1.0",
    "kernelVersion": "#1 SMP",
    "machine": "x86_64",
    "name": "Simulated Linux",
    "prettyName": "Simulated Linux 1",
    "version": "1",
    "versionId": "1",
}


def started(vmi: Json, address: str, now: datetime) -> Json:
    """The domain runs, but the guest has not booted yet. `address` is that of the pod; the first interface has it."""
    old = vmi["status"]
    interfaces = [
        {
            "infoSource": "domain",
            **({"ipAddress": address, "ipAddresses": [address]} if number == 0 else {}),
            "linkState": "up",
            "mac": _mac(vmi, item["name"]),
            "name": item["name"],
            "podInterfaceName": item["podInterfaceName"],
            "queueCount": 1,
        }
        for number, item in enumerate(old.get("interfaces", ()))
    ]
    conditions = put(old.get("conditions"), make("LiveMigratable", True, now))
    conditions = put(conditions, make("StorageLiveMigratable", True, now))
    cpu = vmi["spec"]["domain"]["cpu"]
    status: Json = {
        "conditions": conditions,
        "currentCPUTopology": {name: cpu.get(name, 1) for name in ("cores", "sockets", "threads")},
        "machine": {"type": "pc-q35-rhel9.6.0"},
        "memory": {name: value for name, value in old.get("memory", {}).items() if name != "memoryOverhead"},
        "selinuxContext": "none",
    }
    if interfaces:
        status["interfaces"] = interfaces
    if "volumeStatus" in old:
        status["volumeStatus"] = [
            {**item, "target": f"vd{chr(ord('a') + number)}"} for number, item in enumerate(old["volumeStatus"])
        ]
    return with_phase(vmi, "Running", stamp(now), **status)


def connected(vmi: Json, now: datetime) -> Json:
    """The guest has booted and its agent is connected."""
    conditions = put(vmi["status"].get("conditions"), make("AgentConnected", True, now))
    interfaces = [
        {**item, "infoSource": "domain, guest-agent", "interfaceName": item["podInterfaceName"]}
        for item in vmi["status"].get("interfaces", ())
    ]
    more = {"interfaces": interfaces} if interfaces else {}
    return with_status(vmi, conditions=conditions, guestOSInfo=_FACTS, **more)


def disconnected(vmi: Json) -> Json:
    return with_status(vmi, conditions=drop(vmi["status"].get("conditions"), "AgentConnected"))


def failed(vmi: Json, now: datetime) -> Json:
    return _ended(vmi, "Failed", now)


def stopped(vmi: Json, now: datetime) -> Json:
    return _ended(vmi, "Succeeded", now)


def _ended(vmi: Json, phase: str, now: datetime) -> Json:
    conditions = drop(vmi["status"].get("conditions"), "AgentConnected", "Paused")
    return with_phase(vmi, phase, stamp(now), conditions=conditions)


def _mac(vmi: Json, interface: str) -> str:
    """The address in the spec, or a random one for this run of the guest."""
    for item in vmi["spec"]["domain"]["devices"].get("interfaces", ()):
        if item["name"] == interface and "macAddress" in item:
            return str(item["macAddress"])
    raw = uuid.uuid4().bytes
    return f"02:00:00:{raw[0]:02x}:{raw[1]:02x}:{raw[2]:02x}"
