"""Settings: frozen, read once, from flags, `EMBERPOOL_*` variables, or the defaults below. Times are in seconds."""

import base64
import binascii
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

MAX_POOL_SIZE = 10_000
MAX_LEASE_SECONDS = 30 * 24 * 3600
MAX_WAIT_SECONDS = 60
MAX_BATCH = 100
MAX_VMS = 100_000
KEY_BYTES = 32
MAX_AGE_SECONDS = 10 * 365 * 24 * 3600
_SECRETS: Final = ("database_url", "api_token", "handover_key")
"""Each can be given as a file too: `<name>_file`."""


class Role(StrEnum):
    ALL = "all"
    API = "api"
    WORKER = "worker"


def _read_secret(setting: str, path: Path) -> str:
    """Raises ValueError for a file that cannot be read, without a word of what is in it."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{setting} names {path}, which cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{setting} names {path}, which is not UTF-8") from error


def read_keys(keys: SecretStr) -> tuple[bytes, ...]:
    """The keys of `handover_key`. Raises ValueError for one that is no key, without a word of what it is."""
    found = []
    for number, each in enumerate(re.split(r"[,\s]+", keys.get_secret_value().strip()), 1):
        try:
            key = base64.b64decode(each, validate=True)
        except binascii.Error:
            key = b"?"
        if key and len(key) != KEY_BYTES:
            raise ValueError(
                f"key {number} is not {KEY_BYTES} bytes in base64; `openssl rand -base64 {KEY_BYTES}` makes one"
            )
        found += [key] if key else []
    return tuple(found)


class Settings(BaseSettings):
    """One process's settings. Every field can be set as `EMBERPOOL_<FIELD>`. Their docstrings become docs/settings.md."""

    model_config = SettingsConfigDict(
        env_prefix="EMBERPOOL_", frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    database_url: SecretStr = SecretStr("postgresql://localhost/emberpool")
    """A libpq URL. The folder of a socket goes into `?host=`, several hosts are separated by commas. A URL without a password takes it from `PGPASSWORD`, or from a file that `PGPASSFILE` names."""
    database_url_file: Path | None = None
    """A file that contains the URL, in place of `DATABASE_URL`."""
    database_pool_size: int = Field(default=8, ge=2, le=100)
    """The most connections for requests, and as many again for reconcilers. Each process has five more, for claims, notices and readiness, and those of `LIST_CONNECTIONS`."""
    list_connections: int = Field(default=1, ge=1, le=16)
    """How many lists one process reads at the same time, on connections of their own. The others wait for their turn. Raise it where Postgres has cores to spare."""

    kubeconfig: Path | None = None
    """A kubeconfig file. Without one, the service account of the pod is used."""
    kube_context: str | None = None
    """A context of the kubeconfig. Without one, its current context is used."""
    namespace: str = "default"
    """The namespace in which the VMs live. Each installation has one."""
    instance: str = Field(default="emberpool", pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
    """Tells the objects of this installation from those of another one in the same namespace."""

    role: Role = Role.ALL
    """Which part of the service this process runs."""
    host: str = "127.0.0.1"
    """The address to listen on."""
    port: int = Field(default=8080, ge=0, le=65535)
    """The port to listen on. 0 takes any free port."""
    api_token: SecretStr | None = None
    """If it is set, every request below `/v1` must carry it as `Authorization: Bearer`. Without one everybody who reaches the service may do everything; one that is set and empty is refused."""
    api_token_file: Path | None = None
    """A file that contains the token, in place of `API_TOKEN`."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """The names under which clients may call the service, separated by commas and without a port; `*.example.com` means all names below it. A request with another `Host` is refused, except for health and metrics. Empty: any name."""

    guest_url: str | None = Field(default=None, pattern=r"^https?://[^\s/?#@]+$")
    """The address at which VMs reach the service, such as `http://emberpool.emberpool.svc:8081`. Without one no pool can have `guest.channel`."""
    guest_port: int | None = Field(default=None, ge=0, le=65535)
    """A port of its own for guests, so that a network policy can open this one to VMs and nothing else. Without one guests call `PORT`."""
    guest_ca_file: Path | None = None
    """A file with the certificates (PEM) that guests trust when `GUEST_URL` begins with https. Without one they trust their system's."""
    max_waiting_guests: int = Field(default=10_000, ge=1)
    """The most guests that wait for their claims in one process. A guest beyond it gets 503 and asks again, on another process with luck."""
    handover_key: SecretStr | None = None
    """The keys that encrypt what claims hand over, separated by commas or spaces: each 32 bytes in base64, as `openssl rand -base64 32` prints. The first one encrypts; the others are former keys that still decrypt. Without one no claim can hand data over. All processes need the same."""
    handover_key_file: Path | None = None
    """A file that contains the keys, in place of `HANDOVER_KEY`."""

    max_target_bytes: int = Field(default=8 * 1024, ge=256)
    """The longest path with its query (414)."""
    max_head_bytes: int = Field(default=64 * 1024, ge=1024)
    """The largest head of a request: its first line and its headers (431)."""
    max_headers: int = Field(default=100, ge=8)
    """The most headers of a request (431)."""
    max_body_bytes: int = Field(default=1024 * 1024, ge=1024)
    """The largest request body that is accepted (413). What a chunked body has beside its content may take twice as much as a head."""
    max_held_bytes: int = Field(default=64 * 1024 * 1024, ge=1024)
    """The most that the requests of one process may hold together while they arrive and wait for their answers. Beyond it the largest one that is still arriving is refused (503)."""
    max_connections: int = Field(default=4000, ge=1)
    """The most connections of one process. Beyond it the connection that has been idle for longest makes room for a new one, or else the one whose head has been arriving for longest; if all others are in use, the new one is refused (503)."""
    max_pipelined_requests: int = Field(default=16, ge=1)
    """The most requests that may wait on one connection for the answer of the one before them. The connection is closed after the last of them."""
    head_timeout_seconds: float = Field(default=10, gt=0)
    """How long the head of a request may take to arrive (408), and how long a new connection may be silent."""
    body_timeout_seconds: float = Field(default=30, gt=0)
    """How long the body of a request may take to arrive (408)."""
    idle_timeout_seconds: float = Field(default=75, gt=0)
    """How long a connection is kept open after an answer. Keep it above the idle time of a proxy in front of the service."""
    unread_timeout_seconds: float = Field(default=30, gt=0)
    """How long a client may read nothing of an answer that waits for it before its connection is closed."""
    max_event_streams: int = Field(default=200, ge=1)
    """The most event streams that one process serves; a client beyond it gets 503 and reads pages, or tries again."""
    max_console_streams: int = Field(default=50, ge=1)
    """The most console logs that one process reads at the same time, those that are followed included; a client beyond it gets 503."""
    console_idle_seconds: float = Field(default=600, gt=0)
    """A console log that is followed ends after so long without a new line."""
    shutdown_grace_seconds: float = Field(default=25, gt=0)
    """How long a process that is told to stop lets running calls finish."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important events that are logged."""
    log_format: Literal["console", "json"] = "json"
    """The form of log lines."""

    cluster_timeout_seconds: float = Field(default=15, gt=0)
    """The longest time that one call to the cluster may take. A hung admission webhook answers with 500 after 10 s (KubeVirt v1.9.0, recorded)."""
    forbidden_seconds: float = Field(default=5, ge=0)
    """A refusal for lack of a right (403) is believed once the cluster has repeated it for this long. An API server that has just started refuses everybody for about a second."""
    relist_seconds: float = Field(default=60, gt=0)
    """How often everything in the cluster is listed, whatever the watches said."""
    boot_lookup_seconds: float = Field(default=3, gt=0)
    """At most so often the pods of VMs that booted are listed, and the disks of VMs that wait for them. One list is for up to 150 VMs."""
    watch_silence_seconds: float = Field(default=90, gt=0)
    """A watch without an event for this long is considered broken. An API server sends a bookmark about once a minute."""
    watch_lease_seconds: float = Field(default=12, gt=0)
    """How long the leader of a watch may be silent before another replica takes over. It renews its lease at least four times in this time."""

    watch_nodes: bool = True
    """Watch the nodes and what runs on them, to say which VMs fit. This needs the ClusterRole."""
    full_cores_only: bool = False
    """Set this if the nodes' CPU managers give out only whole cores of two threads (`full-pcpus-only`). An odd number of pinned CPUs is then refused."""

    plan_seconds: float = Field(default=300, gt=0)
    """How often a pool is planned although nothing of it has changed. Every change has its pool planned at once."""
    reap_seconds: float = Field(default=2, gt=0)
    """How often leases, deadlines and boots are checked."""
    work_lease_seconds: float = Field(default=30, gt=0)
    """How long a reconciler's lease on one VM lasts while it calls the cluster. Keep it above `CLUSTER_TIMEOUT_SECONDS`."""
    provision_concurrency: int = Field(default=8, ge=1, le=64)
    """How many calls to the cluster one reconciler makes at the same time. 200 VMs, eight at a time, took 34 s on a real API server (recorded)."""
    create_concurrency: int = Field(default=32, ge=1, le=256)
    """How many VMs one worker asks the cluster for at the same time, at most. It begins with `PROVISION_CONCURRENCY`, and finds the number that keeps the cluster busy from its answers."""
    creates_per_second: float = Field(default=200, gt=0)
    """The highest rate of creates, for all pools and replicas together. How many the cluster takes is found from its answers."""

    preload_helper_image: str = "docker.io/library/busybox:1.37-musl"
    """The image that brings a static `/bin/busybox` to the pods that hold container disks on nodes. Mirror it if the nodes have no internet."""
    preload_poll_seconds: float = Field(default=1.5, gt=0)
    """How often a running import is looked at."""
    preload_idle_seconds: float = Field(default=60, gt=0)
    """How often a preload is looked at while nothing is imported, and how often objects without a preload are looked for."""
    preload_stall_seconds: float = Field(default=900, gt=0)
    """An import that makes no progress for this long has failed and is started again."""
    preload_keep_seconds: float = Field(default=7 * 86_400, gt=0)
    """How long an unused preload that `remember` created is kept. `ttl_seconds` of a preload takes precedence."""
    preload_max_unused: int = Field(default=20, ge=0)
    """The most unused preloads that `remember` created and that are kept. The most recently used ones stay."""

    unready_grace_seconds: float = Field(default=20, ge=0)
    """How long a VM that was warm may be unready before the service gives it up. It cannot be claimed meanwhile."""
    orphan_grace_seconds: float = Field(default=60, gt=0)
    """How long an object with this installation's label may exist without a row. Keep it above the time between a create and its answer."""
    installation_renew_seconds: float = Field(default=10, gt=0)
    """How often the leading worker renews the installation's Lease in the cluster."""
    installation_lease_seconds: int = Field(default=40, ge=1)
    """How long that Lease lasts. Before it has expired no other database can take over the VMs. Keep it above `WATCH_LEASE_SECONDS` and several times `INSTALLATION_RENEW_SECONDS`."""
    orphans_at_once: int = Field(default=5, ge=0)
    """The most objects of a kind that no row knows and that are removed at once. If there are more, none is removed until an operator decides (`emberpool adopt`, `emberpool disown`)."""
    orphans_share: float = Field(default=0.05, ge=0, le=1)
    """Where this share of the objects of the kind is more than `ORPHANS_AT_ONCE`, it counts instead."""
    replace_window_seconds: float = Field(default=60, ge=0)
    """A VM that dies within this time after its claim is replaced under the same claim."""
    pending_seconds: float = Field(default=600, gt=0)
    """How long an accepted claim (202) may wait for a VM before it fails."""
    max_pending_per_pool: int = Field(default=2000, ge=1)
    """The most claims that may wait for one pool."""

    breaker_failures: int = Field(default=5, ge=1)
    """A pool is stalled after this many failures in a row without a VM becoming ready."""
    backoff_base_seconds: float = Field(default=2, gt=0)
    """The pause after a pool's first failure. It doubles with each further failure."""
    backoff_cap_seconds: float = Field(default=300, gt=0)
    """The longest pause after a failure."""

    migrate_lock_seconds: float = Field(default=0.3, gt=0)
    """How long a migration waits at a time for a table that is in use. What comes after it waits too; then it tries again a little later."""
    migrate_wait_seconds: float = Field(default=300, gt=0)
    """How long `emberpool migrate` tries that, or waits for another process that migrates."""

    history_days: float = Field(default=30, gt=0)
    """How long ended claims, deleted VMs and events are kept."""
    history_rows_per_second: int = Field(default=25_000, ge=100)
    """The highest rate at which rows that are older are deleted. Keep it above the rate at which they appear."""

    @model_validator(mode="before")
    @classmethod
    def _read_files(cls, given: dict[str, Any]) -> dict[str, Any]:
        for name in _SECRETS:
            path = given.get(f"{name}_file")
            if path is not None and given.get(name) is not None:
                raise ValueError(f"{name} and {name}_file are both set; leave one out")
            if path is not None:
                given = {**given, name: _read_secret(f"{name}_file", Path(path))}
        return given

    @field_validator("database_url", mode="before")
    @classmethod
    def _strip_url(cls, url: Any) -> Any:
        return url.strip() if isinstance(url, str) else url

    @field_validator("api_token")
    @classmethod
    def _check_token(cls, token: SecretStr | None) -> SecretStr | None:
        if token is None:
            return None
        value = token.get_secret_value().strip()
        if not value:
            raise ValueError("is empty; give it a value, or unset it if everybody who reaches the service may use it")
        if not re.fullmatch(r"[!-~]+", value):
            raise ValueError(
                "has a space or a character that is not in ASCII, which no header can carry; choose another one"
            )
        return SecretStr(value)

    @field_validator("handover_key")
    @classmethod
    def _check_keys(cls, keys: SecretStr | None) -> SecretStr | None:
        if keys is not None and not read_keys(keys):
            raise ValueError("is empty; give it a key, or unset it if no claim hands data over")
        return keys

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split(cls, given: Any) -> Any:
        return [name.strip().lower() for name in given.split(",") if name.strip()] if isinstance(given, str) else given
