"""The world outside of the cluster as far as it imports from it: which content a registry has under a URL.

Ordered digests are kept on the namespace kube-system, so that they are saved with the cluster.
"""

import hashlib
import json
import re

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.objects import annotations_of, with_annotations
from app.devcluster.apiserver.registry import CLAIMS, NAMESPACES
from app.devcluster.apiserver.status import Json, bad_request
from app.devcluster.apiserver.store import Store

_KEPT_ON = "kube-system"
_ANNOTATION = "devcluster/image-digests"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def set_digest(api: Api, url: str, digest: str) -> None:
    """Set the content of the registry under the URL. Raises ApiError 400 for a text that is not a digest."""
    if not _DIGEST.fullmatch(digest):
        raise bad_request("'digest' must be sha256: and 64 hexadecimal digits")
    stored = api.get(NAMESPACES, "", _KEPT_ON)
    digests = {**_ordered(api.store), url: digest}

    kept = {_ANNOTATION: json.dumps(digests, sort_keys=True)}
    api.modify(NAMESPACES, stored, lambda obj: with_annotations(obj, kept))


def digest_of(store: Store, cron: Json) -> str:
    """The digest that a DataImportCron finds at its source; empty where the source is missing."""
    source = cron["spec"]["template"]["spec"].get("source") or {}
    if "pvc" in source:
        namespace = source["pvc"].get("namespace") or cron["metadata"]["namespace"]
        claim = store.get(CLAIMS, namespace, source["pvc"]["name"])
        return f"uid:{claim.obj['metadata']['uid']}" if claim else ""
    url = url_of(cron)
    if not url:
        return ""
    return _ordered(store).get(url) or f"sha256:{hashlib.sha256(url.encode()).hexdigest()}"


def url_of(cron: Json) -> str:
    """The registry URL a cron imports from; empty for other sources."""
    registry = (cron["spec"]["template"]["spec"].get("source") or {}).get("registry") or {}
    return str(registry.get("url") or "")


def pinned(url: str, digest: str) -> str:
    """The URL of exactly that content, its tag gone. CDI appends the digest to a URL that has one already (CDI v1.66.0)."""
    if "@" in url:
        return f"{url}@{digest}"
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.rpartition("/")
    return f"{scheme}://{host}{slash}{path.partition(':')[0]}@{digest}"


def _ordered(store: Store) -> dict[str, str]:
    stored = store.get(NAMESPACES, "", _KEPT_ON)
    kept = annotations_of(stored.obj).get(_ANNOTATION, "{}") if stored else "{}"
    digests: dict[str, str] = json.loads(kept)
    return digests
