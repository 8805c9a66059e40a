"""The events of a guest in the status of its VMI: started, connected, ended. Each function gives a new VMI."""

from datetime import datetime

from app.devcluster.apiserver.conditions import drop, make, put
from app.devcluster.apiserver.objects import with_annotations, with_status
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.times import stamp
from app.devcluster.guests.runtime import AgentFacts, Domain, End
from app.devcluster.kubevirt.vmi_controller import with_phase

_NOT_SYNCHRONIZED = "Synchronizing with the Domain failed."
"""KubeVirt's own reason."""


def started(vmi: Json, domain: Domain, now: datetime) -> Json:
    """The domain runs, but the guest has not booted yet. The first interface has its address."""
    old = vmi["status"]
    interfaces = [
        {
            "infoSource": "domain",
            **({"ipAddress": domain.address, "ipAddresses": [domain.address]} if number == 0 else {}),
            "linkState": "up",
            "mac": domain.macs[item["name"]],
            "name": item["name"],
            "podInterfaceName": item["podInterfaceName"],
            "queueCount": 1,
        }
        for number, item in enumerate(old.get("interfaces", ()))
    ]
    conditions = put(drop(old.get("conditions"), "Synchronized"), make("LiveMigratable", True, now))
    conditions = put(conditions, make("StorageLiveMigratable", True, now))
    cpu = vmi["spec"]["domain"]["cpu"]
    status: Json = {
        "conditions": conditions,
        "currentCPUTopology": {name: cpu.get(name, 1) for name in ("cores", "sockets", "threads")},
        "machine": {"type": domain.machine},
        "memory": {name: value for name, value in old.get("memory", {}).items() if name != "memoryOverhead"},
        "selinuxContext": "none",
    }
    if interfaces:
        status["interfaces"] = interfaces
    if "volumeStatus" in old:
        status["volumeStatus"] = [
            {**item, "target": f"vd{chr(ord('a') + number)}"} for number, item in enumerate(old["volumeStatus"])
        ]
    noted = with_annotations(vmi, dict(domain.annotations)) if domain.annotations else vmi
    return with_phase(noted, "Running", stamp(now), **status)


def refused(vmi: Json, message: str, now: datetime) -> Json:
    """The domain cannot be started yet, and is tried again."""
    told = make("Synchronized", False, now, reason=_NOT_SYNCHRONIZED, message=message, probed=True)
    return with_status(vmi, conditions=put(vmi["status"].get("conditions"), told))


def connected(vmi: Json, facts: AgentFacts, now: datetime) -> Json:
    """The guest has booted and its agent is connected."""
    conditions = put(vmi["status"].get("conditions"), make("AgentConnected", True, now))
    interfaces = [
        {**item, "infoSource": "domain, guest-agent", "interfaceName": facts.interfaces[item["mac"]]}
        if item["mac"] in facts.interfaces
        else item
        for item in vmi["status"].get("interfaces", ())
    ]
    more = {"interfaces": interfaces} if interfaces else {}
    return with_status(vmi, conditions=conditions, guestOSInfo=facts.system, **more)


def disconnected(vmi: Json) -> Json:
    return with_status(vmi, conditions=drop(vmi["status"].get("conditions"), "AgentConnected"))


def stalled(vmi: Json, now: datetime) -> Json:
    """QEMU stopped the guest because a disk cannot be written."""
    told = "VMI was paused, low-level IO error detected"
    paused = make("Paused", True, now, reason="PausedIOError", message=told, probed=True)
    return with_status(vmi, conditions=put(vmi["status"].get("conditions"), paused))


def ended(vmi: Json, end: End, now: datetime) -> Json:
    conditions = drop(vmi["status"].get("conditions"), "AgentConnected", "Paused")
    if end.reason:
        conditions = put(conditions, make("Synchronized", False, now, reason=end.reason, message=end.message))
    return with_phase(vmi, "Failed" if end.failed else "Succeeded", stamp(now), conditions=conditions)
