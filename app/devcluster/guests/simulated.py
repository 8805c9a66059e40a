"""Guests that run nothing: their events come from timers, as long after each other as `Durations` says.

They are no more than the status of their VMIs, so they outlive a restart of a cluster that keeps its state.
"""

import uuid
from collections.abc import Callable, Hashable, Mapping

from app.devcluster.apiserver.conditions import holds
from app.devcluster.apiserver.quantities import whole
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.store import Store
from app.devcluster.apiserver.work import Timers
from app.devcluster.clock import Clock
from app.devcluster.durations import Durations, Jitter
from app.devcluster.guests.memory import MemoryOutcome, restored_from
from app.devcluster.guests.runtime import AgentFacts, Console, Domain, End, Guest, GuestListener
from app.devcluster.storage.volumes import boot_seconds

_FINGERPRINT = "simulated"
_MACHINE = "pc-q35-rhel9.6.0"
_SYSTEM = {
    "id": "devcluster",
    "kernelRelease": "6.1.0",
    "kernelVersion": "#1 SMP",
    "machine": "x86_64",
    "name": "Simulated Linux",
    "prettyName": "Simulated Linux 1",
    "version": "1",
    "versionId": "1",
}
_STAGES = ("guest", "agent", "probe", "end")


class SimulatedGuests:
    """A GuestRuntime. A guest has one timer for each of: its start, its agent, its probe, its end."""

    def __init__(self, store: Store, clock: Clock, durations: Durations, jitter: Jitter) -> None:
        self._store = store
        self._durations = durations
        self._jitter = jitter
        self._clock = clock
        self._timers: Timers[Hashable] = Timers(clock)

    def listen(self, listener: GuestListener) -> None:
        self._listener = listener

    def stop(self) -> None:
        self._timers.cancel_all()

    def start(self, guest: Guest, *, held: bool, fails: bool) -> None:
        if held:
            self._timers.cancel((guest.uid, "guest"))
            return
        restores = restored_from(guest.vmi) is not None
        delay = self._jitter.spread(self._durations.memory_restore if restores else self._durations.domain_start)
        if fails:
            self._timers.ensure((guest.uid, "guest"), "fail", delay, lambda: self.kill(guest))
        else:
            self._timers.ensure((guest.uid, "guest"), "start", delay, lambda: self._start(guest))

    def attend(self, guest: Guest, *, heard: bool) -> None:
        if not heard:
            self._timers.cancel((guest.uid, "agent"))
        elif not holds(guest.vmi["status"].get("conditions"), "AgentConnected"):
            delay = self._jitter.spread(self._boot_seconds(guest.vmi))
            self._timers.ensure((guest.uid, "agent"), "agent", delay, lambda: self._connect(guest))

    def probe(self, guest: Guest, *, ready: bool) -> None:
        if not ready:
            delay = self._jitter.spread(self._durations.probe)
            self._timers.ensure(
                (guest.uid, "probe"), "probe", delay, lambda: self._listener.probed(guest.key, healthy=True)
            )

    def leave_unprobed(self, uid: str) -> None:
        self._timers.cancel((uid, "probe"))

    def probe_needs_agent(self, vmi: Json) -> bool:  # noqa: ARG002  # every simulated probe asks the agent
        return True

    def shut_down(self, guest: Guest) -> None:
        for stage in ("guest", "agent", "probe"):
            self._timers.cancel((guest.uid, stage))
        delay = self._jitter.spread(self._durations.graceful_stop)
        end = End(failed=False, message="The VirtualMachineInstance was shut down.")
        self._timers.ensure((guest.uid, "end"), "stop", delay, lambda: self._listener.ended(guest.key, end))

    def kill(self, guest: Guest) -> None:
        self._listener.ended(guest.key, End(failed=True, message="The VirtualMachineInstance crashed."))

    def forget(self, uid: str) -> None:
        for stage in _STAGES:
            self._timers.cancel((uid, stage))

    def switch_off(self, node: str) -> None:
        """A simulated guest runs on when its node is back."""

    def console(self, uid: str) -> Console | None:  # noqa: ARG002  # no simulated guest has one
        return None

    @property
    def keeps_memory(self) -> bool:
        return True

    def memory_fingerprint(self, vmi: Json) -> str | None:  # noqa: ARG002  # all simulated guests are alike
        return _FINGERPRINT

    def save_memory(
        self, guest: Guest, handle: str, disks: Mapping[str, str], done: Callable[[MemoryOutcome], None]
    ) -> None:
        del handle, disks  # there is nothing to keep
        seconds = self._jitter.spread(self._durations.memory_save)
        size = whole((guest.vmi["spec"]["domain"].get("memory") or {}).get("guest", 0))
        kept = MemoryOutcome(bytes=size, fingerprint=_FINGERPRINT, stood_still=seconds)
        self._clock.call_later(seconds, lambda: done(kept))

    def remove_memory(self, handle: str) -> None:
        """There is none."""

    def _boot_seconds(self, vmi: Json) -> float:
        if restored_from(vmi) is not None:
            return self._durations.memory_identity
        return boot_seconds(self._store, vmi, self._durations)

    async def pause(self, guest: Guest) -> None:
        """The condition of the VMI is all that a pause is."""

    async def unpause(self, guest: Guest) -> None:
        """See `pause`."""

    async def reboot(self, guest: Guest) -> None:
        self._listener.disconnected(guest.key)

    def _start(self, guest: Guest) -> None:
        interfaces = guest.vmi["status"].get("interfaces", ())
        macs = {item["name"]: _mac(guest.vmi, item["name"]) for item in interfaces}
        domain = Domain(guest.pod["status"].get("podIP", ""), macs, _MACHINE)
        self._listener.started(guest.key, domain)

    def _connect(self, guest: Guest) -> None:
        named = {item["mac"]: item["podInterfaceName"] for item in guest.vmi["status"].get("interfaces", ())}
        self._listener.connected(guest.key, AgentFacts(_SYSTEM, named))


def _mac(vmi: Json, interface: str) -> str:
    """The address in the spec, or a random one for this run of the guest."""
    for item in vmi["spec"]["domain"]["devices"].get("interfaces", ()):
        if item["name"] == interface and "macAddress" in item:
            return str(item["macAddress"])
    raw = uuid.uuid4().bytes
    return f"02:00:00:{raw[0]:02x}:{raw[1]:02x}:{raw[2]:02x}"
