"""CDI's validating webhooks."""

from app.devcluster.apiserver.admission import deny
from app.devcluster.apiserver.registry import DATA_IMPORT_CRONS, DATA_VOLUMES, Resource
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.store import Store
from app.devcluster.cdi.validation import check_cron, check_volume


class CdiWebhooks:
    def __init__(self, store: Store) -> None:
        self._store = store

    def mutate(self, resource: Resource, obj: Json, old: Json | None) -> Json:  # noqa: ARG002  # it changes nothing
        return obj

    def validate(self, resource: Resource, obj: Json, old: Json | None) -> list[str]:
        if resource is DATA_VOLUMES:
            deny("datavolume-validate.cdi.kubevirt.io", check_volume(self._store, obj, old))
        if resource is DATA_IMPORT_CRONS:
            deny("dataimportcron-validate.cdi.kubevirt.io", check_cron(obj, old))
        return []
