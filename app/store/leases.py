"""Named leases: one holder at a time, by token and expiry, for work that exactly one replica does (the watch)."""

from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

_TAKE = text("""
    INSERT INTO lease (name, holder, token, expires_at)
    VALUES (:name, :holder, :token, now() + make_interval(secs => :seconds))
    ON CONFLICT (name) DO UPDATE
        SET holder = excluded.holder, token = excluded.token, expires_at = excluded.expires_at
        WHERE lease.expires_at < now() OR lease.token = excluded.token
    RETURNING true
""")
_HOLDS = text("SELECT 1 FROM lease WHERE name = :name AND token = :token FOR SHARE")
_GIVE_BACK = text("DELETE FROM lease WHERE name = :name AND token = :token")


async def take(tx: AsyncConnection, name: str, *, holder: str, token: UUID, seconds: float) -> bool:
    """Takes or renews the lease for `seconds`; False where another token holds it."""
    params = {"name": name, "holder": holder, "token": token, "seconds": seconds}
    return (await tx.execute(_TAKE, params)).scalar() is True


async def holds(tx: AsyncConnection, name: str, *, token: UUID) -> bool:
    """Whether nobody has taken the lease from this token. Nobody can until `tx` ends: what it writes comes before a taker's."""
    return (await tx.execute(_HOLDS, {"name": name, "token": token})).first() is not None


async def give_back(tx: AsyncConnection, name: str, *, token: UUID) -> None:
    """Lets another take it at once; nothing happens where the token no longer holds it."""
    await tx.execute(_GIVE_BACK, {"name": name, "token": token})
