"""What may act waits at the gate, and is told why."""

import asyncio

import pytest

from app.errors import InstallationWaits
from app.gate import Gate


async def test_it_is_closed_until_it_is_known_whose_the_vms_are():
    gate = Gate()
    with pytest.raises(InstallationWaits, match="just started") as refused:
        gate.require_claims()
    assert refused.value.retry_after
    waiting = asyncio.create_task(gate.until_work())
    gate.set(claims=None, work="no worker has looked")
    gate.require_claims()
    await asyncio.sleep(0)
    assert not waiting.done(), "claims of a new database are answered before any work is done"
    gate.set(claims=None, work=None)
    await waiting


async def test_it_closes_again():
    gate = Gate.opened()
    await gate.until_work()
    closing = asyncio.create_task(gate.until_no_work())
    gate.set(claims="restored", work="restored")
    await closing
    with pytest.raises(InstallationWaits, match="restored"):
        gate.require_claims()
