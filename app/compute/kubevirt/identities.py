"""Identities as Secrets, which KubeVirt makes into a disk each (`templates.identity`)."""

import base64
import binascii
from collections.abc import Mapping

import structlog

from app.compute.identities import MadeIdentity
from app.compute.kubevirt import labels
from app.compute.kubevirt.client import KubeVirtClient
from app.compute.kubevirt.kinds import SECRETS, Manifest
from app.config import Settings
from app.errors import ClusterConflict

_log = structlog.get_logger(__name__)


class KubeVirtIdentities:
    """Implements `IdentityGateway`."""

    def __init__(self, settings: Settings, client: KubeVirtClient) -> None:
        self._namespace = settings.namespace
        self._ours = labels.ours(settings.instance)
        self._client = client

    async def make(self, *, name: str, pool: str, vm_id: str, files: Mapping[str, str]) -> MadeIdentity:
        marked = {**self._ours, labels.POOL: pool, labels.VM_ID: vm_id}
        body: Manifest = {
            "apiVersion": SECRETS.api_version,
            "kind": SECRETS.name,
            "metadata": {"name": name, "namespace": self._namespace, "labels": marked},
            "type": "Opaque",
            "immutable": True,
            "data": {file: base64.b64encode(content.encode()).decode() for file, content in files.items()},
        }
        secret, created = await self._client.create_or_find(SECRETS, body, (*self._ours, labels.VM_ID))
        if not created:
            _log.info("cluster.identity_found", vm=name)
        return MadeIdentity(str(secret["metadata"]["uid"]), files["token"] if created else _token_of(secret))

    async def remove(self, *, name: str, uid: str | None, vm_id: str | None = None) -> None:
        if uid is None:
            secret = await self._client.find(SECRETS, name)
            wanted = self._ours if vm_id is None else {**self._ours, labels.VM_ID: vm_id}
            if secret is None or not labels.has(secret, wanted) or self._client.is_foreign(secret):
                return
            uid = str(secret["metadata"]["uid"])
        await self._client.delete(SECRETS, name, uid, propagation="Background")


def _token_of(secret: Manifest) -> str:
    """Raises ClusterConflict where somebody has taken the token out."""
    try:
        return base64.b64decode((secret.get("data") or {})["token"], validate=True).decode().strip()
    except (KeyError, binascii.Error, UnicodeDecodeError, TypeError) as error:
        name = secret["metadata"]["name"]
        raise ClusterConflict(f"Secret {name} has no token any more: somebody changed it. Delete it.") from error
