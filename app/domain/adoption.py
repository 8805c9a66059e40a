"""What adopting the VMs in the cluster does to each of them. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from app.domain.ownership import FoundVm, Identity, Known, KnownVm
from app.domain.states import VM_ENDED, VmState


class Step(StrEnum):
    """What adopting does to a VM. `keep`: the database knows its claim, whose lease is given anew. `rebuild`: its claim is rebuilt from
    what it carries. `replace`: it carries no claim, and is removed. `leave`: nothing is done to it.
    """

    KEEP = "keep"
    REBUILD = "rebuild"
    REPLACE = "replace"
    LEAVE = "leave"


@dataclass(frozen=True, slots=True)
class Decision:
    vm: FoundVm
    row: KnownVm | None
    step: Step
    why: str


def plan_adoption(identity: Identity, found: Iterable[FoundVm], known: Known, *, whole: bool) -> list[Decision]:
    """What adopting does to each VM that was found. `whole`: the database may be wrong about all of them, because it was restored, or
    is another one's; otherwise only those that no row knows are decided about.

    A VM that is ready and carries no claim is not taken over as ready: a claim is written onto its VM a moment after it was
    answered, so that a VM without one may be somebody's all the same.
    """
    decisions = []
    for vm in found:
        if vm.deleting or vm.uid in identity.left_alone or vm.installation in identity.disowned:
            continue
        row = known.rows.get(vm.uid)
        lives = row is not None and row.state not in VM_ENDED
        if whole or not (lives or vm.owner):
            step, why = _decide(identity, vm, row, known)
            decisions.append(Decision(vm, row, step, why))
    return decisions


def _decide(identity: Identity, vm: FoundVm, row: KnownVm | None, known: Known) -> tuple[Step, str]:
    state = row.state if row is not None else None
    if state in {VmState.RELEASING, VmState.FAILED}:
        return Step.LEAVE, "the database has it removed already"
    if state is VmState.CLAIMED and row is not None and vm.claim_id in {None, row.claim_id}:
        return Step.KEEP, f"claim {row.claim_id} is known, and gets a whole lease"
    if vm.owner is not None and identity.is_foreign(vm.installation):
        return Step.LEAVE, "a VirtualMachinePool of the other installation owns it, and would replace it"
    if vm.claim_id is None:
        return Step.REPLACE, "it carries no claim; it is removed, and its pool makes another"
    if row is None and vm.vm_id in known.ids:
        return Step.LEAVE, "another VM has the id that it carries"
    return Step.REBUILD, f"claim {vm.claim_id} is rebuilt from what the VM carries"
