"""The claims that manifests made, found by the key that the document's name gives."""

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, TEXT
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.states import CLAIM_ENDED
from app.store.rows import CLAIM_COLUMNS, CLAIM_TABLES, ClaimRow, read_claim

_BY_KEY = text(f"SELECT {CLAIM_COLUMNS} FROM {CLAIM_TABLES} WHERE c.idem_key = :key")
_FREE = text("UPDATE claim SET idem_key = NULL WHERE idem_key = :key AND state = ANY(:ended)").bindparams(
    bindparam("ended", type_=ARRAY(TEXT))
)


async def by_key(tx: AsyncConnection, key: str) -> ClaimRow | None:
    """The claim that was made with the idempotency key."""
    row = (await tx.execute(_BY_KEY, {"key": key})).mappings().first()
    return read_claim(row) if row else None


async def free_key(tx: AsyncConnection, key: str) -> None:
    """Lets the key make a new claim where that of the last one has ended."""
    await tx.execute(_FREE, {"key": key, "ended": sorted(CLAIM_ENDED)})
