"""The tables as the migrations create them. A test compares the two.

`vm.state` is authoritative for a VM. `ready_slot` is the queue of VMs that are `ready`, a narrow table so that a claim writes
little; `claim_queue` is the queue of pending claims. A row of a queue exists exactly while its VM is `ready` (its claim is
`pending`): each change of state changes both in one transaction, which locks the row of the queue first.

`event` is the history, in the order of `(xid, id)`. An id is assigned before its transaction commits, so a reader that only
remembered the highest id would miss events that commit late. Events of transactions older than all running ones are final.
"""

from app.store.schema import cluster, compat, guests, installation, journal, pools
from app.store.schema.base import metadata

__all__ = ["cluster", "compat", "guests", "installation", "journal", "metadata", "pools"]
