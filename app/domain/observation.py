"""What the cluster says of one VM, in our words, whatever API version said it."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


class WarmWhen(StrEnum):
    """What proves that a guest has booted.

    `agent`: the conditions Ready and AgentConnected are True. `ready`: only Ready, for guests without an agent but with a
    readiness probe. `running`: the domain runs, for guests that have neither.
    """

    AGENT = "agent"
    READY = "ready"
    RUNNING = "running"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a VM will not come up, as the cluster says it: `reason` in one word, `message` whole.

    `transient` failures may heal by themselves (no room on the nodes, an image or a disk that is not there yet); the others
    will not, or only by starting over.
    """

    reason: str
    message: str
    transient: bool = False


@dataclass(frozen=True, slots=True)
class Observation:
    """One VirtualMachine and its VirtualMachineInstance, as last seen.

    `vm_id` and `claim_id` are what our labels say (None where a label is missing or is no UUID). `phase` is the VMI's
    (None without one), as is `vmi_created_at`. `agent_at`: since when its agent is connected. `failure` is set where the cluster reports a start that failed. `phase_times` maps a VMI phase to
    when it was entered (KubeVirt's `status.phaseTransitionTimestamps`). `owner` is the UID of the VirtualMachinePool that owns
    the VM, `pool_id` the pool that its label stands for, `revision` that of the template which it was made from there.
    """

    name: str
    namespace: str
    uid: str
    pool: str | None = None
    vm_id: str | None = None
    claim_id: str | None = None
    created_at: datetime | None = None
    deleting: bool = False
    printable_status: str | None = None
    vmi_uid: str | None = None
    phase: str | None = None
    ready: bool = False
    agent_connected: bool = False
    paused: bool = False
    node: str | None = None
    addresses: tuple[str, ...] = ()
    failure: Failure | None = None
    phase_times: dict[str, datetime] = field(default_factory=dict)
    vmi_created_at: datetime | None = None
    agent_at: datetime | None = None
    owner: str | None = None
    pool_id: str | None = None
    revision: str | None = None

    def is_warm(self, when: WarmWhen) -> bool:
        """Booted and fit to be claimed. A paused VM never is: KubeVirt's start strategy `Paused` runs a guest that has not booted."""
        if self.deleting or self.paused or self.phase != "Running" or self.vmi_uid is None:
            return False
        match when:
            case WarmWhen.AGENT:
                return self.ready and self.agent_connected
            case WarmWhen.READY:
                return self.ready
            case WarmWhen.RUNNING:
                return True


@dataclass(frozen=True, slots=True)
class PodTimes:
    """Of the pod that a VM runs in: when a node was found for it, and when its containers ran."""

    scheduled_at: datetime | None
    started_at: datetime | None
