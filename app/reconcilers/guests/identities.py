"""The identities of VMs in the cluster: made before their VM, and removed where that did not happen with it.

The hash of a token is in the database before the token is in the cluster, so that no guest comes with one that nobody knows. A worker
that died in between is followed by another, which finds its identity, and writes down the hash of the token that is in it.
"""

import hashlib
import secrets
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from uuid import UUID

import structlog

from app.compute.gateway import Gateway
from app.config import Settings
from app.errors import ClusterError, ClusterUnavailable
from app.lifecycle.guest_program import identity_files
from app.reconcilers.runtime.leased_worker import RetryLater
from app.store import guests
from app.store.database import Database, Tx
from app.store.vms.work import CreateWork

_AT_ONCE = 50
_TOKEN_BYTES = 32
log = structlog.get_logger(__name__)

Guarded = Callable[[UUID], AbstractAsyncContextManager[Tx]]
"""Opens a transaction in which the worker holds the VM, and raises LeaseLost if it does not."""


class IdentityMaker:
    def __init__(self, gateway: Gateway, settings: Settings) -> None:
        self._gateway = gateway
        self._settings = settings

    async def make(self, item: CreateWork, guarded: Guarded) -> None:
        """Raises RetryLater while the service has no address for guests, and ClusterError."""
        url = self._settings.guest_url
        if url is None:
            raise RetryLater("EMBERPOOL_GUEST_URL is not set, so that the VM's guest could not reach the service")
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        async with guarded(item.id) as tx:
            await self._know(tx, item, token, None)
        files = {"token": token, "vm": str(item.id), "url": url, **identity_files(self._settings.guest_ca_file)}
        made = await self._gateway.identities.make(name=item.name, pool=item.pool, vm_id=str(item.id), files=files)
        async with guarded(item.id) as tx:
            await self._know(tx, item, made.token, made.uid)

    async def _know(self, tx: Tx, item: CreateWork, token: str, uid: str | None) -> None:
        digest = hashlib.sha256(token.encode()).digest()
        await guests.know(tx, item.id, token_hash=digest, uid=uid, release_seconds=item.release_seconds)


class IdentitySweeper:
    """Removes identities of VMs that left the cluster without us."""

    def __init__(self, db: Database, gateway: Gateway) -> None:
        self._db = db
        self._gateway = gateway

    async def step(self) -> bool:
        """True where there may be more."""
        async with self._db.begin() as tx:
            left = await guests.left_over(tx, limit=_AT_ONCE)
        for each in left:
            try:
                await self._gateway.identities.remove(name=each.name, uid=each.uid, vm_id=str(each.vm_id))
            except (ClusterUnavailable, ClusterError) as error:
                log.info("identity.remove_later", vm=each.name, error=error.detail)
                return False
            async with self._db.begin() as tx:
                await guests.note_gone(tx, each.vm_id)
        return len(left) == _AT_ONCE
