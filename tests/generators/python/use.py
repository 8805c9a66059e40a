"""Claims, reads and releases a VM with what openapi-python-client made of the document. Run by `tests/api/test_generators.py`."""

import io
import sys
from http import HTTPStatus

from generated import Client
from generated.api.claims import claim, get_claim, list_claims, release_claim
from generated.api.manifests import apply_manifests
from generated.api.pools import get_pool
from generated.models import ClaimPage, ClaimView, ManifestsView, PoolClaim, PoolView, Problem
from generated.types import File

MANIFEST = b"""\
apiVersion: pool.kubevirt.io/v1
kind: VirtualMachinePool
metadata: {name: other}
spec: {size: 1, template: {image: "registry.local/disk:1", memory: 64Mi}}
"""


def main(address: str, pool: str) -> None:
    with Client(base_url=address) as client:
        made = claim.sync_detailed(client=client, body=PoolClaim(pool=pool), idempotency_key="python-1")
        claimed = made.parsed
        assert made.status_code is HTTPStatus.CREATED
        assert isinstance(claimed, ClaimView)
        assert claimed.vm is not None
        read = get_claim.sync(claimed.id, client=client)
        assert isinstance(read, ClaimView)
        assert (read.id, read.state.value, read.vm) == (claimed.id, "bound", claimed.vm)
        page = list_claims.sync(client=client, pool=pool)
        assert isinstance(page, ClaimPage)
        assert [each.id for each in page.items] == [claimed.id]
        assert isinstance(get_pool.sync(pool, client=client), PoolView)
        applied = apply_manifests.sync(client=client, body=File(payload=io.BytesIO(MANIFEST)), dry_run=True)
        assert isinstance(applied, ManifestsView)
        assert [each.name for each in applied.documents] == ["other"]
        released = release_claim.sync(claimed.id, client=client)
        assert isinstance(released, ClaimView)
        assert released.state.value == "released"
        refused = get_pool.sync("nowhere", client=client)
        assert isinstance(refused, Problem)
        assert refused.code == "pool-not-found"
    sys.stdout.write(f"{claimed.id}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
