"""Claims that were made from manifests. Each is found by a key made from the document's name."""

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, TEXT

from app.domain.states import CLAIM_ENDED
from app.store.database import Tx, first, run
from app.store.rows import CLAIM_COLUMNS, CLAIM_TABLES, ClaimRow, read_claim

_BY_KEY = text(f"SELECT {CLAIM_COLUMNS} FROM {CLAIM_TABLES} WHERE c.idem_key = :key")
_FREE = text("UPDATE claim SET idem_key = NULL WHERE idem_key = :key AND state = ANY(:ended)").bindparams(
    bindparam("ended", type_=ARRAY(TEXT))
)


async def by_key(tx: Tx, key: str) -> ClaimRow | None:
    """The claim that has the idempotency key."""
    row = await first(tx, _BY_KEY, key=key)
    return read_claim(row) if row else None


async def free_key(tx: Tx, key: str) -> None:
    """Frees the key of a claim that has ended, so that it can make a new one."""
    await run(tx, _FREE, key=key, ended=sorted(CLAIM_ENDED))
