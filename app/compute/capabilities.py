"""What a cluster may or may not be able to do. Ask `Gateway.unavailable`."""

from enum import StrEnum


class Capability(StrEnum):
    """Something that not every cluster offers, and that the service does without."""

    WATCH_NODES = "watch-nodes"
    """The gateway may list and watch nodes; without it nothing is known about free capacity."""
    MEMORY = "memory"
    """Snapshots may keep the memory of VMs, and VMs start from it."""
    VM_POOLS = "vm-pools"
    """The cluster fills pools of VMs by itself (`VmPoolGateway`)."""
    IDENTITIES = "identities"
    """VMs get identities (`IdentityGateway`) with which their guests find the service. It is answered without a call to the cluster."""
    CONSOLE_LOGS = "console-logs"
    """The cluster collects what VMs write to their serial consoles (`ConsoleGateway`)."""
