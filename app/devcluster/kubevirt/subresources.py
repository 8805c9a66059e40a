"""KubeVirt's aggregated API: start, stop, restart, pause, unpause, softreboot."""

from collections.abc import Awaitable, Callable

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.conditions import drop, holds, make, put
from app.devcluster.apiserver.deletion import DeleteOptions, delete
from app.devcluster.apiserver.objects import phase_of, with_status
from app.devcluster.apiserver.registry import VIRTUAL_MACHINE_INSTANCES, VIRTUAL_MACHINES
from app.devcluster.apiserver.status import ApiError, Json, conflict, not_found
from app.devcluster.apiserver.store import Stored
from app.devcluster.guests.runtime import Guest, GuestRuntime
from app.devcluster.kubevirt.admission import VALIDATOR, check_snapshotted
from app.devcluster.kubevirt.vm_controller import instance_of, strategy_of
from app.devcluster.kubevirt.vmi_controller import FINAL, guest_of

GROUP = "subresources.kubevirt.io"
VERSIONS = ("v1", "v1alpha3")
_KUBEVIRT = "kubevirt.io"


class Subresources:
    def __init__(self, api: Api, guests: GuestRuntime) -> None:
        self._api = api
        self._guests = guests
        self._verbs: dict[tuple[str, str], Callable[[str, str], Awaitable[int]]] = {
            ("virtualmachines", "start"): self._start,
            ("virtualmachines", "stop"): self._stop,
            ("virtualmachines", "restart"): self._restart,
            ("virtualmachineinstances", "pause"): self._pause,
            ("virtualmachineinstances", "unpause"): self._unpause,
            ("virtualmachineinstances", "softreboot"): self._softreboot,
        }

    def knows(self, plural: str, verb: str) -> bool:
        return (plural, verb) in self._verbs

    async def call(self, plural: str, namespace: str, name: str, verb: str) -> int:
        """Perform the verb; gives the status code. Raises ApiError 404 or 409."""
        return await self._verbs[plural, verb](namespace, name)

    def _machine(self, namespace: str, name: str) -> Stored:
        stored = self._api.store.get(VIRTUAL_MACHINES, namespace, name)
        if stored is None:
            raise not_found(_KUBEVIRT, "virtualmachine", name)
        return stored

    def _instance(self, namespace: str, name: str) -> Stored:
        stored = self._api.store.get(VIRTUAL_MACHINE_INSTANCES, namespace, name)
        if stored is None:
            raise not_found(_KUBEVIRT, "virtualmachineinstance", name)
        return stored

    async def _start(self, namespace: str, name: str) -> int:
        stored = self._machine(namespace, name)
        instance = instance_of(self._api, stored.obj)
        if instance is not None and phase_of(instance.obj) not in FINAL:
            raise self._refused("virtualmachine", name, "VM is already running")
        strategy = strategy_of(stored.obj)
        if strategy == "Halted":
            self._set_strategy(stored, "Always")
        else:
            self._request(stored, {"action": "Start"})
        return 202

    async def _stop(self, namespace: str, name: str) -> int:
        stored = self._machine(namespace, name)
        instance = instance_of(self._api, stored.obj)
        strategy = strategy_of(stored.obj)
        if instance is None and strategy != "Always":
            raise self._refused("virtualmachine", name, "VM is not running")
        if strategy == "Always":
            self._set_strategy(stored, "Halted")
        elif instance is not None:
            self._request(stored, {"action": "Stop", "uid": instance.uid})
        return 202

    async def _restart(self, namespace: str, name: str) -> int:
        stored = self._machine(namespace, name)
        instance = instance_of(self._api, stored.obj)
        if instance is None:
            raise self._refused("virtualmachine", name, "VM is not running: Halted")
        if strategy_of(stored.obj) in {"Manual", "RerunOnFailure"}:
            self._request(stored, {"action": "Stop", "uid": instance.uid}, {"action": "Start"})
        elif not instance.deleting:
            delete(self._api, VIRTUAL_MACHINE_INSTANCES, namespace, name, DeleteOptions(uid=instance.uid))
        return 202

    async def _pause(self, namespace: str, name: str) -> int:
        stored = self._instance(namespace, name)
        self._refuse_idle(stored)
        if holds(stored.obj["status"].get("conditions"), "Paused"):
            raise self._refused("virtualmachineinstance", name, "VMI is already paused")
        await self._guests.pause(self._guest(stored))
        now, why = self._api.clock.now(), "VMI was paused by user"
        paused = make("Paused", True, now, reason="PausedByUser", message=why, probed=True)
        self._change_conditions(stored, lambda old: put(old, paused))
        return 200

    async def _unpause(self, namespace: str, name: str) -> int:
        stored = self._instance(namespace, name)
        self._refuse_idle(stored)
        if not holds(stored.obj["status"].get("conditions"), "Paused"):
            raise self._refused("virtualmachineinstance", name, "VMI is not paused")
        await self._guests.unpause(self._guest(stored))
        self._change_conditions(stored, lambda old: drop(old, "Paused"))
        return 200

    async def _softreboot(self, namespace: str, name: str) -> int:
        stored = self._instance(namespace, name)
        self._refuse_idle(stored)
        if not holds(stored.obj["status"].get("conditions"), "AgentConnected"):
            raise self._refused(
                "virtualmachineinstance", name, "VMI neither have the agent connected nor the ACPI feature enabled"
            )
        await self._guests.reboot(self._guest(stored))
        return 200

    def _refuse_idle(self, stored: Stored) -> None:
        if phase_of(stored.obj) != "Running":
            raise self._refused("virtualmachineinstance", stored.obj["metadata"]["name"], "VM is not running")

    def _refused(self, kind: str, name: str, why: str) -> ApiError:
        return conflict(_KUBEVIRT, kind, name, why)

    def _set_strategy(self, stored: Stored, strategy: str) -> None:
        def change(vm: Json) -> Json:
            spec = {key: value for key, value in vm["spec"].items() if key not in {"running", "runStrategy"}}
            if "running" in vm["spec"]:
                spec["running"] = strategy == "Always"
            else:
                spec["runStrategy"] = strategy
            return {**vm, "spec": spec}

        causes = check_snapshotted(change(stored.obj), stored.obj)
        if causes:
            told = f'admission webhook "{VALIDATOR}" denied the request: {causes[0]["message"]}'
            raise ApiError(500, "InternalError", f"Internal error occurred: {told}")
        self._api.modify(VIRTUAL_MACHINES, stored, change)

    def _request(self, stored: Stored, *requests: Json) -> None:
        self._api.modify(VIRTUAL_MACHINES, stored, lambda vm: with_status(vm, stateChangeRequests=list(requests)))

    def _guest(self, stored: Stored) -> Guest:
        guest = guest_of(self._api, stored.obj)
        if guest is None:
            raise self._refused("virtualmachineinstance", stored.key[1], "VM is not running")
        return guest

    def _change_conditions(self, stored: Stored, change: Callable[[list[Json]], list[Json]]) -> None:
        """Change the conditions of the instance as they are now; one that ended meanwhile is left alone."""
        latest = self._api.store.get(VIRTUAL_MACHINE_INSTANCES, *stored.key)
        if latest is not None and latest.uid == stored.uid and phase_of(latest.obj) == "Running":
            conditions = change(latest.obj["status"].get("conditions") or [])
            self._api.modify(VIRTUAL_MACHINE_INSTANCES, latest, lambda vmi: with_status(vmi, conditions=conditions))
