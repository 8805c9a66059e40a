"""Writes what a list showed to the rows, as the informer does it, in one go."""

from app.compute.vms import Listed
from app.reconcilers.vms.status_writer import StatusWriter


async def write_list(writer: StatusWriter, listed: Listed) -> None:
    async for _ in writer.write_list(listed):
        pass
