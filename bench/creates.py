"""How fast the service creates VMs, beside clients that do nothing else: on a cluster that is as fast as the real one was.

`python -m bench.creates [--vms 200] [--seats 1] [--seconds 0.016] [--queue N]`

The dev cluster serves `--seats` creates at a time, `--seconds` each. By default that is 62 a second, what Kubernetes 1.36 with
KubeVirt v1.9.0 took from eight clients. With `--queue` so many more wait, and others get 429, as from API priority and fairness.
Prints both rates as JSON, and ends with 1 if the service's is below 0.9 of the clients'.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from pathlib import Path

from sqlalchemy import text

from app.compute.kubevirt.gateway import KubeVirtGateway, connect
from app.config import Settings
from app.devcluster import DevCluster, DevClusterConfig, Durations
from app.domain.observation import WarmWhen
from app.domain.pools import PoolSpec
from app.embedded.folder import lock_folder
from app.embedded.postgres import run_postgres
from app.ids import new_id, vm_name
from app.reconcilers.runtime.loop import Wake
from app.reconcilers.vms.creator import VmCreator
from app.store.database import Database, run
from app.store.migrations import upgrade
from app.store.pools import rows as pool_rows
from app.store.vms import rows as vms

BOUND = 0.9
CLIENTS = 8
TEMPLATE = {"image": "registry.example/guest:1", "memory": "64Mi"}
_LEFT = text("SELECT count(*) FROM vm WHERE state IN ('planned', 'creating')")


async def create_by_clients(gateway: KubeVirtGateway, count: int) -> float:
    """Creates a second of clients that each ask again as soon as they were answered."""
    spec = gateway.expand(TEMPLATE, WarmWhen.RUNNING).spec
    left = iter(range(count))

    async def client() -> None:
        for _ in left:
            vm_id = new_id()
            await gateway.create_vm(name=vm_name("raw", vm_id), pool="raw", vm_id=str(vm_id), spec=spec)

    began = time.monotonic()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return count / (time.monotonic() - began)


async def create_by_service(db: Database, gateway: KubeVirtGateway, settings: Settings, count: int) -> float:
    """Creates a second of the service's creator, which takes them from rows and writes them back."""
    template = gateway.expand(TEMPLATE, WarmWhen.RUNNING)
    pool_id = new_id()
    async with db.begin() as tx:
        spec = PoolSpec(size=count, template=TEMPLATE, warm_when=WarmWhen.RUNNING)
        named = {"pool_id": pool_id, "name": "bench", "spec": spec, "vm_spec": template.spec}
        await pool_rows.insert(tx, **named, revision=template.fingerprint, shape=template.shape)
        ids = [new_id() for _ in range(count)]
        await vms.plan(tx, [vms.PlannedVm(each, pool_id, vm_name("bench", each), template.fingerprint) for each in ids])
    wake = Wake()
    creator = VmCreator(db, gateway, settings, wake)
    began = last = time.monotonic()
    while True:
        await creator.begin()
        try:
            await asyncio.wait_for(wake.wait(), 0.5)
            last = time.monotonic()
        except TimeoutError:
            async with db.begin() as tx:
                if not (await run(tx, _LEFT)).scalar_one():
                    break
    await creator.release()
    return count / (last - began)


async def measure(url: str, folder: Path, given: argparse.Namespace) -> dict[str, float]:
    # Nothing boots meanwhile: only creates are measured.
    async with DevCluster(DevClusterConfig(durations=Durations.for_cold_boot(3600))) as cluster:
        busy = {"seats": given.seats, "seconds": given.seconds}
        busy |= {"queue": given.queue} if given.queue is not None else {}
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(cluster.kubeconfig_text(), encoding="utf-8")
        settings = Settings(database_url=url, kubeconfig=kubeconfig)
        gateway, db = await connect(settings), Database(url, pool_size=settings.database_pool_size)
        try:
            fault = cluster.faults.order(kind="busy", verbs=["create"], resource="virtualmachines", settings=busy)
            service = await create_by_service(db, gateway, settings, given.vms)
            cluster.faults.lift(fault.id)
            busy.pop("queue", None)  # the clients do not know how to be turned away
            cluster.faults.order(kind="busy", verbs=["create"], resource="virtualmachines", settings=busy)
            clients = await create_by_clients(gateway, given.vms)
        finally:
            await db.close()
            await gateway.close()
    found = {"clients_per_second": clients, "service_per_second": service, "share": service / clients}
    return {key: round(value, 2) for key, value in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vms", type=int, default=200)
    parser.add_argument("--seats", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.016)
    parser.add_argument("--queue", type=int)
    given = parser.parse_args()
    # As root Postgres runs as another user, who has to reach its data.
    place = "/var/tmp" if os.geteuid() == 0 else None
    with (
        tempfile.TemporaryDirectory(prefix="emberpool-bench-", dir=place) as folder,
        lock_folder(Path(folder)) as held,
        run_postgres(held, fast=True) as postgres,
    ):
        postgres.ensure_database("bench")
        upgrade(postgres.url("bench"))
        found = asyncio.run(measure(postgres.url("bench"), Path(folder), given))
    print(json.dumps(found))
    return 0 if found["share"] >= BOUND else 1


if __name__ == "__main__":
    raise SystemExit(main())
