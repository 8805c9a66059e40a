"""The service's own background work in a process of its own, as a worker is, without a cluster: `python -m bench.background PART URL`.

`plan` plans pools until it is terminated; `prune` deletes history once, and prints how many rows a second went.
"""

import asyncio
import json
import signal
import sys
import time

from pydantic import SecretStr

from app.background import PartHealth
from app.config import Settings
from app.reconcilers.history.pruner import HistoryPruner
from app.reconcilers.pools.planner import PoolPlanner
from app.reconcilers.runtime.loop import Wake, run_loop
from app.store.database import Database
from app.store.notices import Listener, Topic
from app.telemetry import configure_logs
from bench.rig import connected

_COUNT = "SELECT (SELECT count(*) FROM event) + (SELECT count(*) FROM claim) + (SELECT count(*) FROM vm)"


async def plan(url: str) -> None:
    db, listener, wake, stop = Database(url), Listener(url), Wake(), asyncio.Event()
    listener.on(Topic.PLAN, wake)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    planner = PoolPlanner(db, every_seconds=Settings().plan_seconds)
    loop = run_loop(PartHealth("plan"), planner.step, every=1.0, wake=wake, stop=stop)
    try:
        await asyncio.gather(listener.run(stop), loop)
    finally:
        await db.close()


async def prune(url: str) -> None:
    db = Database(url)
    try:
        async with connected(url) as connection:
            before = await connection.fetchval(_COUNT)
            pruner = HistoryPruner(db, Settings(database_url=SecretStr(url)))
            began = time.monotonic()
            while await pruner.step():
                pass
            took = time.monotonic() - began
            sys.stdout.write(json.dumps((before - await connection.fetchval(_COUNT)) / took))
    finally:
        await db.close()


if __name__ == "__main__":
    configure_logs(level="warning", form="console")
    asyncio.run({"plan": plan, "prune": prune}[sys.argv[1]](sys.argv[2]))
