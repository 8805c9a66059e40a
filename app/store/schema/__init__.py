"""The tables, as the migrations make them (a test compares the two).

`vm.state` is authoritative for a VM; `ready_slot` is the queue of those that are `ready`, narrow so that a claim touches
nothing wide; `claim_queue` is the queue of claims that wait. A row of either queue exists exactly while its VM is `ready`
(its claim `pending`): each change of state moves both in one transaction, the queue's row locked first.

`event` is the history. Its order is `(xid, id)`: ids are given out before they commit, so that a reader that only remembered
the highest id would miss those that commit late; events of transactions below the oldest one still running are final.
"""

from app.store.schema import cluster, journal, pools
from app.store.schema.base import metadata

__all__ = ["cluster", "journal", "metadata", "pools"]
