"""Rows of pools, VMs and claims as the rest of the program reads them: frozen, typed, detached from any connection."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any
from uuid import UUID

from app.domain.handovers import Handover
from app.domain.paths import StartPath
from app.domain.pools import PoolSpec
from app.domain.states import ClaimState, VmState
from app.domain.templates import VmSpec


@dataclass(frozen=True, slots=True)
class PoolRow:
    id: UUID
    name: str
    spec: PoolSpec
    vm_spec: VmSpec
    revision: str
    generation: int
    paused: bool
    refilled_at: datetime
    consecutive_failures: int
    last_failure: str | None
    last_failure_at: datetime | None
    backoff_until: datetime | None
    stalled_at: datetime | None
    created_at: datetime
    updated_at: datetime
    deleting_at: datetime | None
    kind: str = "pool"
    shape: str | None = None
    path: StartPath = StartPath.COLD
    source: str | None = None
    rotated_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class VmRow:
    """`pool` is the name of its pool. Times are the database's."""

    id: UUID
    pool_id: UUID
    pool: str
    name: str
    state: VmState
    state_since: datetime
    revision: str
    uid: str | None
    vmi_uid: str | None
    node: str | None
    addresses: tuple[str, ...]
    health: str | None
    created_at: datetime
    asked_at: datetime | None
    ready_at: datetime | None
    claimed_at: datetime | None
    ended_at: datetime | None
    boot_seconds: float | None
    stages: dict[str, float | None] | None
    reason: str | None
    claim_id: UUID | None
    path: str | None = None
    source: str | None = None
    shape: str | None = None
    pool_kind: str = "pool"
    guest: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ClaimRow:
    """A claim, and what is known of its VM now. `pool` is the name of its pool. Times are the database's."""

    id: UUID
    pool_id: UUID
    pool: str
    state: ClaimState
    labels: dict[str, str]
    path: str | None
    lease_seconds: int
    lease_expires_at: datetime | None
    created_at: datetime
    bound_at: datetime | None
    ended_at: datetime | None
    reason: str | None
    replacements: tuple[dict[str, Any], ...]
    request_hash: str | None
    vm_id: UUID | None
    vm_name: str | None
    vm_uid: str | None
    node: str | None
    addresses: tuple[str, ...]
    health: str | None
    vm_boot_seconds: float | None
    vm_ready_at: datetime | None
    pool_kind: str = "pool"
    shape: str | None = None
    choice: dict[str, Any] | None = None
    allowed: tuple[str, ...] | None = None
    vm_stages: dict[str, float | None] | None = None
    restarts: tuple[dict[str, Any], ...] = ()
    handover: Handover | None = None


def columns(row: type, table: str, **others: str) -> str:
    """The columns that the fields of a row are read from: those of the table, or what `others` name."""
    return ", ".join(f"{others[name]} AS {name}" if name in others else f"{table}.{name}" for name in names_of(row))


def names_of(row: type) -> list[str]:
    """The names of a dataclass's fields."""
    return [field.name for field in fields(row)]


POOL_COLUMNS = columns(PoolRow, "p")
_GUEST = "(SELECT jsonb_build_object('hello_at', g.hello_at, 'conflict', g.conflict) FROM guest g WHERE g.vm_id = v.id)"
VM_COLUMNS = columns(VmRow, "v", pool="p.name", pool_kind="p.kind", guest=_GUEST)
CLAIM_COLUMNS = """
    c.id, c.pool_id, p.name AS pool, c.state, c.labels, c.path, c.lease_seconds, c.lease_expires_at, c.created_at,
    c.bound_at, c.ended_at, c.reason, c.replacements, c.request_hash, c.vm_id, v.name AS vm_name, v.uid AS vm_uid,
    v.node, coalesce(v.addresses, '{}') AS addresses, v.health, v.boot_seconds AS vm_boot_seconds, v.ready_at AS vm_ready_at,
    p.kind AS pool_kind, c.shape, c.choice, c.allowed, v.stages AS vm_stages, coalesce(c.restarts, '[]') AS restarts,
    CASE WHEN h.claim_id IS NOT NULL THEN jsonb_build_object('state', h.state, 'exit_code', h.exit_code, 'output', h.output,
        'taken_at', h.taken_at, 'done_at', h.done_at, 'reason', coalesce(h.reason, CASE WHEN h.state = 'pending' THEN (
            SELECT 'the guest has not said hello yet' FROM guest g WHERE g.vm_id = c.vm_id AND g.hello_at IS NULL) END)) END AS handover
"""


CLAIM_TABLES = (
    "claim c JOIN pool p ON p.id = c.pool_id LEFT JOIN vm v ON v.id = c.vm_id LEFT JOIN handover h ON h.claim_id = c.id"
)


def read_pool(row: Mapping[Any, Any]) -> PoolRow:
    return PoolRow(**{**row, "spec": PoolSpec.model_validate(row["spec"]), "path": StartPath(row["path"])})


def read_vm(row: Mapping[Any, Any]) -> VmRow:
    return VmRow(**{**row, "state": VmState(row["state"]), "addresses": tuple(row["addresses"])})


def read_claim(row: Mapping[Any, Any]) -> ClaimRow:
    return ClaimRow(
        **{
            **row,
            "state": ClaimState(row["state"]),
            "addresses": tuple(row["addresses"]),
            "replacements": tuple(row["replacements"]),
            "restarts": tuple(row["restarts"]),
            "handover": Handover.read(row["handover"]) if row["handover"] is not None else None,
            "allowed": tuple(row["allowed"]) if row["allowed"] is not None else None,
        }
    )
