"""The labels by which we find our objects in the cluster, and what belongs together."""

from app.compute.kubevirt.kinds import Manifest

MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "emberpool"
PREFIX = "emberpool.io/"
MEMORY_GROUP = "memory.emberpool.io"
"""The API group of a cluster that keeps memory of VMs, and the prefix of its annotations."""
INSTANCE = f"{PREFIX}instance"
INSTALLATION = f"{PREFIX}installation"
"""The id of the installation, which is that of its database."""
POOL = f"{PREFIX}pool"
VM_ID = f"{PREFIX}vm-id"
POOL_ID = f"{PREFIX}pool-id"
"""The id of the pool. A VirtualMachinePool of ours selects its VMs by it."""
CLAIM = f"{PREFIX}claim"
NAME = f"{PREFIX}name"
"""The name that people gave the claim (its label `name`)."""
RECORD = f"{PREFIX}claim-record"
"""An annotation: what the claim can be rebuilt from (`ClaimRecord`)."""
SNAPSHOT = f"{PREFIX}snapshot"
TAKE = f"{PREFIX}take"
PRELOAD = f"{PREFIX}preload-id"
GENERATION = f"{PREFIX}generation"
REVISION = f"{PREFIX}revision"
"""An annotation: the revision of the template from which a VirtualMachinePool makes its VMs."""
MEMBERS = f"{PREFIX}members"
"""A finalizer: a VirtualMachinePool that is being deleted waits until its VMs are detached."""


def is_ours(key: str) -> bool:
    """Whether only this service may set the label."""
    return key == MANAGED_BY or key.startswith(PREFIX)


def ours(instance: str) -> dict[str, str]:
    """The labels that every object of one installation has."""
    return {MANAGED_BY: MANAGER, INSTANCE: instance}


def has(item: Manifest, wanted: dict[str, str]) -> bool:
    """Whether an object has these labels."""
    return wanted.items() <= (item["metadata"].get("labels") or {}).items()


def selector(instance: str) -> str:
    """Selects the objects of one installation."""
    return ",".join(f"{key}={value}" for key, value in ours(instance).items())
