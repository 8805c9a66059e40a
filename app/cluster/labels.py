"""The labels by which our objects are known, in the cluster and to each other."""

MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "emberpool"
PREFIX = "emberpool.io/"
INSTANCE = f"{PREFIX}instance"
POOL = f"{PREFIX}pool"
VM_ID = f"{PREFIX}vm-id"
CLAIM = f"{PREFIX}claim"
SNAPSHOT = f"{PREFIX}snapshot"
TAKE = f"{PREFIX}take"
PRELOAD = f"{PREFIX}preload-id"
GENERATION = f"{PREFIX}generation"


def is_ours(key: str) -> bool:
    """Whether only this service may set the label."""
    return key == MANAGED_BY or key.startswith(PREFIX)


def selector(instance: str) -> str:
    """Selects the objects of one installation."""
    return f"{MANAGED_BY}={MANAGER},{INSTANCE}={instance}"
