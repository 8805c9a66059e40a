"""A thousand waiting requests, and VMs that become ready at a steady rate through the service's own code."""

import asyncio
import json
import sys
import time
from datetime import datetime
from uuid import UUID

from app.lifecycle.readiness import follow_ready, make_ready
from app.store.database import Database
from app.store.vms import observed
from app.store.vms.observed import ObservedVm
from bench.rig import connected

_TICK_SECONDS = 0.01


async def serve_waiters(url: str, port: int, pool: str, pool_id: UUID, *, count: int, rate: int) -> list[float]:
    """Milliseconds from the moment in which a VM became ready to the moment in which its waiter has read the answer."""
    waiting = [asyncio.create_task(_wait(port, pool)) for _ in range(count)]
    await _until_queued(url, pool_id, count)
    ready_at = await _run_readier(url, pool_id, rate)
    answers = await asyncio.gather(*waiting)
    return [(answered - ready_at[UUID(vm_id)]) * 1000 for vm_id, answered in answers]


async def _wait(port: int, pool: str) -> tuple[str, float]:
    """The VM that a waiting claim got, and when its answer was there (seconds since the epoch)."""
    body = json.dumps({"pool": pool, "wait_seconds": 60})
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"POST /v1/claim HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.lower().splitlines() if line.startswith(b"content-length"))
    answer = await reader.readexactly(length)
    answered = time.time()
    writer.close()
    if b" 201 " not in head.splitlines()[0]:
        raise SystemExit(f"a waiter was not served: {head.splitlines()[0].decode()}: {answer.decode()}")
    return json.loads(answer)["vm"]["id"], answered


async def _until_queued(url: str, pool_id: UUID, count: int) -> None:
    async with connected(url) as connection:
        deadline = time.monotonic() + 60
        while await connection.fetchval("SELECT count(*) FROM claim_queue WHERE pool_id = $1", pool_id) < count:
            if time.monotonic() > deadline:
                raise SystemExit(f"not all of {count} waiters were queued within a minute")
            await asyncio.sleep(0.05)


async def _run_readier(url: str, pool_id: UUID, rate: int) -> dict[UUID, float]:
    """In a process of its own, as a worker is: its work must not delay those who read the answers."""
    command = [sys.executable, "-m", "bench.waiters", url, str(pool_id), str(rate)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    if process.returncode:
        raise SystemExit("the process that makes VMs ready failed")
    return {UUID(vm_id): moment for vm_id, moment in json.loads(out).items()}


async def _make_ready(url: str, pool_id: UUID, rate: int) -> dict[UUID, float]:
    """Makes every booting VM ready, `rate` a second, as the watch does it; when the transaction of each began."""
    async with connected(url) as connection:
        ids = [row["id"] for row in await connection.fetch("SELECT id FROM vm WHERE pool_id = $1 ORDER BY id", pool_id)]
    db = Database(url, pool_size=2)
    moments: dict[UUID, float] = {}
    try:
        async with db.begin() as tx:
            booting: list[ObservedVm] = list((await observed.by_ids(tx, ids)).values())
        began = time.monotonic()
        while booting:
            due = max(1, round((time.monotonic() - began) * rate) - len(moments))
            batch, booting = booting[:due], booting[due:]
            async with db.begin() as tx:
                now: datetime = await observed.database_now(tx)
                await make_ready(tx, batch)
            async with db.begin() as tx:
                await follow_ready(tx, [pool_id], batch)
            moments |= dict.fromkeys((vm.id for vm in batch), now.timestamp())
            await asyncio.sleep(_TICK_SECONDS)
    finally:
        await db.close()
    return moments


if __name__ == "__main__":
    moments = asyncio.run(_make_ready(sys.argv[1], UUID(sys.argv[2]), int(sys.argv[3])))
    sys.stdout.write(json.dumps({str(vm_id): moment for vm_id, moment in moments.items()}))
