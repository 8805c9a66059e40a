"""What an operator's word does to the rows: the VMs in the cluster are ours (`adopt`), or they are not (`disown`).

Nothing here calls the cluster. What is to be removed gets a row that says so, and the reconcilers do it once they work again.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from app.domain.adoption import Decision, Step, plan_adoption
from app.domain.ownership import FoundVm, Identity, Known, LeaseRecord, Trouble
from app.domain.pools import PoolSpec
from app.domain.states import VM_ENDED, ClaimState, VmState
from app.ids import new_id, vm_pool_name
from app.lifecycle.on_demand_pools import KIND
from app.store import adoption, installation
from app.store.adoption import PoolFacts, VmObject
from app.store.claims import rows as claims
from app.store.database import Tx
from app.store.installation import InstallationRow
from app.store.notices import Topic, notify, notify_settled
from app.store.pools import rows as pool_rows
from app.store.vms import rows as vms

_SHOWN = 200
_REPLACED = "it carried no claim when an operator adopted the VMs in the cluster"
_FORGOTTEN = "an operator disowned the VMs in the cluster: they are another database's"
_UNCLAIMED = (VmState.PLANNED, VmState.CREATING, VmState.BOOTING, VmState.READY)
_NOTHING: dict[str, object] = {"template": {"spec": {"domain": {}}}}


@dataclass(frozen=True, slots=True)
class Situation:
    """What a decision is about. `trouble`: why the service stands still; None: it works, and only objects are held."""

    row: InstallationRow
    found: Sequence[FoundVm]
    known: Known
    trouble: Trouble | None = None
    lease: LeaseRecord | None = None

    @property
    def identity(self) -> Identity:
        return self.row.identity

    @property
    def foreign(self) -> frozenset[str]:
        """The ids of other installations that nothing was decided about."""
        ids = {vm.installation for vm in self.found if self.identity.is_foreign(vm.installation)}
        return frozenset(each for each in ids if each is not None) - self.identity.disowned

    @property
    def held(self) -> dict[str, list[str]]:
        """The UIDs of the objects that are held, by kind."""
        return {kind: list(of_kind["uids"]) for kind, of_kind in self.row.held.items()}

    def plan(self) -> list[Decision]:
        return plan_adoption(self.identity, self.found, self.known, whole=self.trouble is not None)

    @property
    def refusal(self) -> str | None:
        """Why the VMs cannot be adopted now; None: they can."""
        if self.trouble is None or (self.trouble.adoptable and not self.trouble.alive):
            return None
        return self.trouble.reason


def describe(situation: Situation) -> dict[str, object]:
    """What each decision would do, as JSON to show to people."""
    plan = situation.plan()
    return {
        "adopt": {"refused": situation.refusal, "does": _tell_adopt(situation, plan)},
        "disown": {"refused": None, "does": _tell_disown(situation, plan)},
        "vms": [_show(each) for each in plan[:_SHOWN]],
        "more": max(0, len(plan) - _SHOWN),
    }


async def adopt(tx: Tx, situation: Situation) -> str:
    """The VMs that were found are ours. Returns what was done, in words."""
    plan = situation.plan()
    said = _tell_adopt(situation, plan)
    pools = _Pools(tx, await adoption.pools(tx))
    for each in plan:
        if each.step is Step.REBUILD:
            await _rebuild(tx, each, pools)
        elif each.step is Step.REPLACE:
            await _replace(tx, each, situation.known, pools)
    if situation.trouble is not None:
        await adoption.give_whole_leases(tx)
        await installation.overtake(tx, situation.lease.sequence if situation.lease is not None else 0)
    await vms.release(tx, await adoption.strays(tx), sources=[VmState.CLAIMED], reason="its claim has another VM")
    await notify(tx, Topic.REMOVE)
    await pool_rows.plan_soon(tx, *pools.used)
    others = {uid for kind, uids in situation.held.items() if kind != "VirtualMachine" for uid in uids}
    identity = situation.identity
    after = replace(identity, adopted=identity.adopted | situation.foreign, given_up=identity.given_up | others)
    outcome = _sentence("Adopted", said)
    await installation.settle(tx, after, outcome)
    return outcome


async def disown(tx: Tx, situation: Situation) -> str:
    """The objects that were found are not ours, and are left alone for good. Returns what was done, in words."""
    said = _tell_disown(situation, situation.plan())
    identity = situation.identity
    disowned = identity.disowned | situation.foreign
    if situation.trouble is not None and situation.trouble.is_copy:
        await _forget_objects(tx)
        disowned |= {identity.id}
        await installation.become(tx, new_id())
    unsigned = {vm.uid for vm in _unsigned(situation)} if situation.trouble is not None else set()
    held = {uid for uids in situation.held.values() for uid in uids}
    after = replace(identity, disowned=disowned, left_alone=identity.left_alone | unsigned | held)
    outcome = _sentence("Disowned", said)
    await installation.settle(tx, after, outcome)
    return outcome


class _Pools:
    """The pools of rebuilt rows. A pool that the database does not know is stood in for by an on-demand pool that makes no VM: it is not
    listed, and goes when its last claim has ended.
    """

    def __init__(self, tx: Tx, known: Iterable[PoolFacts]) -> None:
        self._tx = tx
        self._by_name = {pool.name: pool for pool in known}
        self.used: set[UUID] = set()

    async def of(self, vm: FoundVm) -> PoolFacts:
        pool = self._by_name.get(vm.pool or "") or self._by_name.get(_stand_in(vm)) or await self._make(_stand_in(vm))
        self._by_name[pool.name] = pool
        self.used.add(pool.id)
        return pool

    async def _make(self, name: str) -> PoolFacts:
        pool_id, spec = new_id(), PoolSpec(size=0, template=_NOTHING)
        about = {"vm_spec": _NOTHING, "revision": "", "shape": name, "kind": KIND}
        await pool_rows.insert(self._tx, pool_id=pool_id, name=name, spec=spec, **about)  # type: ignore[arg-type]
        await pool_rows.set_paused(self._tx, pool_id, paused=True)
        return PoolFacts(pool_id, name, spec.default_lease_seconds, backed=False)


def _stand_in(vm: FoundVm) -> str:
    """A name with a dot, which no user's pool can have."""
    return f"adopted.{vm.pool or 'unknown'}"


async def _rebuild(tx: Tx, decision: Decision, pools: _Pools) -> None:
    vm, row = decision.vm, decision.row
    if vm.claim_id is None:
        return
    if row is not None and row.state is VmState.CLAIMED and row.claim_id is not None:
        why = f"its VM {vm.name} carries claim {vm.claim_id}"
        await claims.end(tx, [row.claim_id], ClaimState.FAILED, sources=[ClaimState.BOUND], reason=why)
    pool = await pools.of(vm)
    vm_id = row.id if row is not None else vm.vm_id or new_id()
    made = VmObject(vm_id, pool.id, vm.name, vm.uid, vm.created_at, member=_is_member(vm, pool))
    await adoption.put_claimed(tx, made, vm.claim_id, vm.record, lease_seconds=pool.lease_seconds)


async def _replace(tx: Tx, decision: Decision, known: Known, pools: _Pools) -> None:
    vm, row = decision.vm, decision.row
    pool = await pools.of(vm)
    if row is not None and row.state not in VM_ENDED:
        await adoption.write_uid(tx, row.id, vm.uid)
        await vms.release(tx, [row.id], sources=[row.state], reason=_REPLACED)
        return
    vm_id = vm.vm_id if vm.vm_id is not None and vm.vm_id not in known.ids else new_id()
    made = VmObject(vm_id, pool.id, vm.name, vm.uid, vm.created_at, member=_is_member(vm, pool))
    await adoption.put_releasing(tx, made, reason=_REPLACED)


def _is_member(vm: FoundVm, pool: PoolFacts) -> bool:
    return vm.owner is not None and pool.backed


async def _forget_objects(tx: Tx) -> None:
    """Nothing that the database knows of the cluster is its own: it begins anew from what its users wrote."""
    bound = await adoption.bound_claims(tx)
    await claims.end(tx, bound, ClaimState.FAILED, sources=[ClaimState.BOUND], reason=_FORGOTTEN)
    await notify_settled(tx, bound)
    await adoption.detach_all(tx)
    live = await adoption.live_vms(tx)
    await vms.move(tx, live.get(VmState.PLANNED, []), VmState.DELETED, sources=[VmState.PLANNED], reason=_FORGOTTEN)
    for state in (VmState.CREATING, VmState.BOOTING, VmState.READY, VmState.CLAIMED):
        await vms.move(tx, live.get(state, []), VmState.LOST, sources=[state], reason=_FORGOTTEN)
    await vms.release(tx, live.get(VmState.FAILED, []), sources=[VmState.FAILED], reason=None)
    removed = [*live.get(VmState.FAILED, []), *live.get(VmState.RELEASING, [])]
    await vms.move(tx, removed, VmState.DELETED, sources=[VmState.RELEASING], reason=_FORGOTTEN)
    for pool_id, name in (await adoption.vm_pools(tx)).items():
        await adoption.begin_vm_pool(tx, pool_id, name=vm_pool_name(name, new_id(), 1))
    await adoption.end_takes(tx, reason=_FORGOTTEN)
    for preload_id in await adoption.preload_ids(tx):
        await adoption.begin_preload(tx, preload_id, new_id=new_id())
    await pool_rows.plan_soon(tx, *(pool.id for pool in await adoption.pools(tx)))


def _unsigned(situation: Situation) -> list[FoundVm]:
    """VMs of no installation that no row knows."""
    return [vm for vm in situation.found if vm.installation is None and not situation.known.knows(vm)]


def _tell_adopt(situation: Situation, plan: Sequence[Decision]) -> list[str]:
    steps = Counter(each.step for each in plan)
    said = []
    if steps[Step.REBUILD]:
        said.append(f"rebuilds {steps[Step.REBUILD]} claims that the database does not know from what their VMs carry")
    if steps[Step.KEEP]:
        said.append(f"gives {steps[Step.KEEP]} claims that the database knows a whole lease from now on")
    if steps[Step.REPLACE]:
        said.append(f"removes {steps[Step.REPLACE]} VMs that carry no claim; their pools make others")
    if steps[Step.LEAVE]:
        said.append(f"leaves {steps[Step.LEAVE]} VMs as they are")
    if situation.trouble is not None and situation.known.missing:
        said.append(
            f"ends the claims of {situation.known.missing} VMs that the database knows and the cluster no longer has"
        )
    others = {kind: len(uids) for kind, uids in situation.held.items() if kind != "VirtualMachine" and uids}
    said += [f"removes {count} objects of kind {kind} that no row knows" for kind, count in others.items()]
    return said


def _tell_disown(situation: Situation, plan: Sequence[Decision]) -> list[str]:
    said = []
    if situation.trouble is not None and situation.trouble.is_copy:
        said.append("gives this database an id of its own, and changes nothing in the cluster")
        said.append("ends all bound claims of this database as failed, and forgets all its VMs; its pools make others")
        said.append("takes its snapshots and imports its preloads anew")
    for each in sorted(situation.foreign):
        count = sum(vm.installation == each for vm in situation.found)
        said.append(f"leaves the {count} VMs of installation {each} alone for good")
    left = len(_unsigned(situation)) if situation.trouble is not None else 0
    left = left or sum(map(len, situation.held.values()))
    if left:
        said.append(f"leaves {left} objects that no row knows alone for good")
    return said or ["leaves the objects in the cluster alone" if plan else "changes nothing"]


def _show(decision: Decision) -> dict[str, object]:
    vm = decision.vm
    return {
        "name": vm.name,
        "pool": vm.pool,
        "installation": vm.installation,
        "claim_id": str(vm.claim_id) if vm.claim_id is not None else None,
        "adopt": str(decision.step),
        "why": decision.why,
    }


def _sentence(verb: str, said: Sequence[str]) -> str:
    return f"{verb}: {'; '.join(said) or 'there was nothing to do'}"
