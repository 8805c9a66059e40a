"""Settings: frozen, read once, from flags, `EMBERPOOL_*` variables, or the defaults below. Times are in seconds."""

from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

MAX_POOL_SIZE = 10_000
MAX_LEASE_SECONDS = 30 * 24 * 3600
MAX_WAIT_SECONDS = 60
MAX_BATCH = 100


class Role(StrEnum):
    ALL = "all"
    API = "api"
    WORKER = "worker"


class Settings(BaseSettings):
    """One process's settings. Every field can be set as `EMBERPOOL_<FIELD>`."""

    model_config = SettingsConfigDict(env_prefix="EMBERPOOL_", frozen=True, extra="forbid")

    database_url: SecretStr = SecretStr("postgresql://localhost/emberpool")
    """A libpq URL; a socket folder goes into `?host=`."""
    database_pool_size: int = Field(default=8, ge=2, le=100)
    """Connections at most for requests, and as many for the workers; a process has three more, for claims and notices."""

    kubeconfig: Path | None = None
    """None: the service account of the pod that we run in."""
    kube_context: str | None = None
    namespace: str = "default"
    """Where our VMs live. One namespace an installation: its Role grants no more."""
    instance: str = Field(default="emberpool", pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
    """Tells our objects from those of another installation in the same namespace."""

    role: Role = Role.ALL
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    api_token: SecretStr | None = None
    """Where set, every `/v1` request must carry it as `Authorization: Bearer`."""
    max_body_bytes: int = Field(default=1024 * 1024, ge=1024)
    shutdown_grace_seconds: float = Field(default=25, gt=0)

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "json"

    cluster_timeout_seconds: float = Field(default=15, gt=0)
    """One call to the cluster. A hung admission webhook answers with 500 after 10 s (KubeVirt v1.9.0, recorded)."""
    relist_seconds: float = Field(default=60, gt=0)
    """How often the cluster is listed whole, whatever the watches said."""
    watch_silence_seconds: float = Field(default=90, gt=0)
    """A watch with no event and no bookmark for so long is dead: an API server sends a bookmark about once a minute."""
    watch_lease_seconds: float = Field(default=12, gt=0)
    """How long the replica that watches may be silent before another takes the watch over; it renews at least four times in it."""

    watch_nodes: bool = True
    """Watch nodes, and what runs on them, to say which VMs fit. It needs a ClusterRole; without it nothing is known of nodes."""
    full_cores_only: bool = False
    """The nodes' CPU managers give out whole cores of two threads (`full-pcpus-only`): an odd number of pinned CPUs is refused."""

    plan_seconds: float = Field(default=1, gt=0)
    """How often each pool is planned when nothing wakes it."""
    reap_seconds: float = Field(default=2, gt=0)
    """How often leases, deadlines and boots are checked."""
    work_lease_seconds: float = Field(default=30, gt=0)
    """How long a worker may hold one VM's cluster call before another takes it over; above `cluster_timeout_seconds`."""
    provision_concurrency: int = Field(default=8, ge=1, le=64)
    """Calls to the cluster at once in one worker. 200 VMs, eight at a time, took 34 s on a real API server (recorded)."""
    creates_per_second: float = Field(default=20, gt=0)
    """The global pace of creates, all pools and replicas together."""

    preload_helper_image: str = "docker.io/library/busybox:1.37-musl"
    """Brings a static `/bin/busybox` to the pods that hold a container image on the nodes: a container disk has none."""
    preload_poll_seconds: float = Field(default=1.5, gt=0)
    """How often a preload is looked at while its import is under way."""
    preload_idle_seconds: float = Field(default=60, gt=0)
    """How often a preload is looked at when nothing is under way, and how often objects of no preload are looked for."""
    preload_stall_seconds: float = Field(default=900, gt=0)
    """An import whose phase and progress stand still for so long has failed, and is begun anew."""
    preload_keep_seconds: float = Field(default=7 * 86_400, gt=0)
    """How long a preload that a remembered claim made is kept unused; `ttl_seconds` of a preload comes first."""
    preload_max_unused: int = Field(default=20, ge=0)
    """At most so many unused preloads that remembered claims made are kept, those used last."""

    unready_grace_seconds: float = Field(default=20, ge=0)
    """How long a VM that was warm may be unready before it is given up. It cannot be claimed meanwhile."""
    orphan_grace_seconds: float = Field(default=60, gt=0)
    """How long an object with our label may live without a row: above the time between a create and its answer."""
    replace_window_seconds: float = Field(default=60, ge=0)
    """A bound VM that dies so soon after its claim is replaced under the same claim."""
    pending_seconds: float = Field(default=600, gt=0)
    """How long an accepted claim (202) may wait for a VM before it fails."""
    max_pending_per_pool: int = Field(default=2000, ge=1)

    breaker_failures: int = Field(default=5, ge=1)
    """So many failures in a row, with no VM becoming ready between, stall a pool."""
    backoff_base_seconds: float = Field(default=2, gt=0)
    backoff_cap_seconds: float = Field(default=300, gt=0)

    history_days: float = Field(default=30, gt=0)
    """How long ended claims, deleted VMs and events are kept."""
