"""Fills pools quickly: one VM of each boots, and the others are copies of its objects and rows, with names and ids of their own.

Booting ten thousand VMs takes a dev cluster on two cores the better part of an hour, and what is measured afterwards is the same.
"""

import sqlite3
import uuid
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import orjson

from app.ids import new_id, vm_name

_VM_ID = "emberpool.io/vm-id"
_SOURCES = """
    SELECT v.id, v.name, p.id AS pool_id, p.name AS pool FROM vm v JOIN pool p ON p.id = v.pool_id
    WHERE v.state = 'ready' ORDER BY p.name, v.id
"""
_COLUMNS = "SELECT column_name FROM information_schema.columns WHERE table_name = $1 AND is_generated = 'NEVER'"
_COPY = """
    INSERT INTO {table} ({columns}) SELECT {values} FROM {table} t
    JOIN unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[]) AS n(source, id, name, uid, vmi_uid) ON t.{key} = n.source
"""


@dataclass(slots=True)
class Copy:
    """A VM to be made like `source`. `uids` are those of its objects, by kind."""

    source: uuid.UUID
    source_name: str
    id: uuid.UUID
    name: str
    uids: dict[str, str] = field(default_factory=dict)


async def plan_copies(database: "asyncpg.Connection[Any]", sizes: Mapping[str, int]) -> list[Copy]:
    """What each pool lacks, by its name and size."""
    copies = []
    for row in await database.fetch(_SOURCES):
        for _ in range(sizes[row["pool"]] - 1):
            vm_id = new_id()
            copies.append(Copy(row["id"], row["name"], vm_id, vm_name(row["pool"], vm_id)))
    return copies


def copy_objects(state: Path, copies: list[Copy]) -> None:
    """In the state of a dev cluster that does not run."""
    with sqlite3.connect(state) as cluster:
        found = defaultdict(list)
        for resource, namespace, name, body in cluster.execute("SELECT resource, namespace, name, body FROM objects"):
            vm_id = orjson.loads(body)["metadata"].get("labels", {}).get(_VM_ID)
            if vm_id is not None:
                found[vm_id].append((resource, namespace, name, bytes(body)))
        for copy in copies:
            cluster.executemany("INSERT INTO objects VALUES (?, ?, ?, ?)", _copies(copy, found[str(copy.source)]))


def _copies(copy: Copy, objects: list[tuple[str, str, str, bytes]]) -> list[tuple[str, str, str, bytes]]:
    """The names of objects contain the VM's; their UIDs appear in each other."""
    changes = {copy.source_name: copy.name, str(copy.source): str(copy.id)}
    for _, _, _, body in objects:
        item = orjson.loads(body)
        uid = str(uuid.uuid4())
        changes[item["metadata"]["uid"]] = uid
        copy.uids[item["kind"]] = uid
    return [
        (resource, namespace, name.replace(copy.source_name, copy.name), _replace(body, changes))
        for resource, namespace, name, body in objects
    ]


def _replace(body: bytes, changes: Mapping[str, str]) -> bytes:
    for old, new in changes.items():
        body = body.replace(old.encode(), new.encode())
    return body


async def copy_rows(database: "asyncpg.Connection[Any]", copies: list[Copy]) -> None:
    """After their objects were made."""
    given = (
        [copy.source for copy in copies],
        [copy.id for copy in copies],
        [copy.name for copy in copies],
        [copy.uids["VirtualMachine"] for copy in copies],
        [copy.uids["VirtualMachineInstance"] for copy in copies],
    )
    own = {"id": "n.id", "vm_id": "n.id", "name": "n.name", "uid": "n.uid", "vmi_uid": "n.vmi_uid"}
    async with database.transaction():
        for table, key, others in (("vm", "id", {}), ("ready_slot", "vm_id", {"seq": "nextval('ready_seq')"})):
            columns = [row["column_name"] for row in await database.fetch(_COLUMNS, table)]
            values = [(own | others).get(column, f"t.{column}") for column in columns]
            query = _COPY.format(table=table, key=key, columns=", ".join(columns), values=", ".join(values))
            await database.execute(query, *given)
