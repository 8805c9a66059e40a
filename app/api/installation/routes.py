"""Whose the VMs in the cluster are, and an operator's word about it."""

from fastapi import APIRouter

from app.api.dependencies import Svc
from app.api.installation.schemas import InstallationView
from app.api.problems import responses
from app.domain.ownership import Word
from app.errors import Conflict
from app.services.installation.service import decide, read_installation

router = APIRouter(prefix="/v1/installation", tags=["installation"])


@router.get(
    "",
    operation_id="getInstallation",
    summary="Read whose the VMs in the cluster are",
    response_description="The installation, and what each decision would do",
    responses=responses(),
)
async def get_installation(svc: Svc) -> InstallationView:
    """Tells why the service waits for an operator, if it does, and what `adopt` and `disown` would do, VM by VM. Nothing is changed."""
    return InstallationView.of(await read_installation(svc.db))


@router.post(
    "/adopt",
    operation_id="adoptVms",
    summary="Decide that the VMs in the cluster are this service's",
    status_code=202,
    response_description="The decision is taken, and the leading worker carries it out: read it until `decision` is null",
    responses=responses(Conflict),
)
async def adopt_vms(svc: Svc) -> InstallationView:
    """Claims that the database does not know are rebuilt from what their VMs carry; claims that it knows get a whole lease; VMs that
    carry no claim are removed, because they may have been claimed a moment before the database lost it. Read `adopt` first.
    """
    return InstallationView.of(await decide(svc.db, Word.ADOPT))


@router.post(
    "/disown",
    operation_id="disownVms",
    summary="Decide that the VMs in the cluster are not this service's",
    status_code=202,
    response_description="The decision is taken, and the leading worker carries it out: read it until `decision` is null",
    responses=responses(Conflict),
)
async def disown_vms(svc: Svc) -> InstallationView:
    """The VMs are left alone for good, and nothing in the cluster is changed. If the database is a copy of another one, it forgets all
    VMs and claims, and becomes an installation of its own. Read `disown` first.
    """
    return InstallationView.of(await decide(svc.db, Word.DISOWN))
