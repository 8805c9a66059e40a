"""What the cluster reports about one VM, in a form that does not depend on the cluster's API."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class WarmWhen(StrEnum):
    """What proves that a guest has booted.

    `agent`: the conditions Ready and AgentConnected are True. `ready`: only Ready, for guests without an agent but with a
    readiness probe. `running`: the domain runs, for guests that have neither. `hello`: the guest said so itself, through its
    channel.
    """

    AGENT = "agent"
    READY = "ready"
    RUNNING = "running"
    HELLO = "hello"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a VM does not start, as the cluster reports it: `reason` is one word, `message` the full text.

    `transient` failures may end by themselves (no room on the nodes, an image or a disk that does not exist yet). Others end only
    with a new start, or never.
    """

    reason: str
    message: str
    transient: bool = False


@dataclass(frozen=True, slots=True)
class Observation:
    """The last observation of one VirtualMachine and its VirtualMachineInstance (VMI).

    `vm_id` and `claim_id` are read from our labels (None if a label is missing or not a UUID). `phase` and `vmi_created_at` are
    those of the VMI (None without one). `agent_at`: since when the guest agent is connected. `failure` is set if the cluster
    reports a failed start. `scheduled_at` and `running_at` say when the VMI entered the phases Scheduled and Running (KubeVirt's
    `status.phaseTransitionTimestamps`).
    `owner` is the UID of the VirtualMachinePool that owns the VM, `pool_id` the pool in its label, `revision` the revision of the
    template from which that VirtualMachinePool made it. `disks`: the VM's status while it waits for its disks, otherwise None.
    `installation`: the id that it carries of the installation that made it.
    """

    name: str
    namespace: str
    uid: str
    pool: str | None = None
    vm_id: str | None = None
    claim_id: str | None = None
    created_at: datetime | None = None
    deleting: bool = False
    vmi_uid: str | None = None
    phase: str | None = None
    ready: bool = False
    agent_connected: bool = False
    paused: bool = False
    node: str | None = None
    addresses: tuple[str, ...] = ()
    failure: Failure | None = None
    scheduled_at: datetime | None = None
    running_at: datetime | None = None
    vmi_created_at: datetime | None = None
    agent_at: datetime | None = None
    owner: str | None = None
    pool_id: str | None = None
    revision: str | None = None
    disks: str | None = None
    installation: str | None = None

    def is_warm(self, when: WarmWhen, *, greeted: bool = False) -> bool:
        """Whether it can be claimed. A paused VM cannot: with KubeVirt's start strategy `Paused` the guest has not booted.

        `greeted`: the guest that runs now has said hello.
        """
        if self.deleting or self.paused or self.phase != "Running" or self.vmi_uid is None:
            return False
        match when:
            case WarmWhen.AGENT:
                return self.ready and self.agent_connected
            case WarmWhen.READY:
                return self.ready
            case WarmWhen.RUNNING:
                return True
            case WarmWhen.HELLO:
                return greeted


@dataclass(frozen=True, slots=True)
class PodTimes:
    """When the pod of a VM was scheduled to a node, and when all its containers were running."""

    scheduled_at: datetime | None
    started_at: datetime | None
