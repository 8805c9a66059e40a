"""The base of controllers whose objects faults can strike."""

from typing_extensions import override

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.controller import KindController
from app.devcluster.durations import Durations, Jitter
from app.devcluster.faults.book import FaultBook


class FaultyController(KindController):
    """Looks at all its objects again whenever a fault is ordered or lifted."""

    def __init__(self, api: Api, durations: Durations, jitter: Jitter, faults: FaultBook, delay: float = 0.0) -> None:
        super().__init__(api, delay)
        self._durations = durations
        self._jitter = jitter
        self._faults = faults
        faults.listen(self.resume)

    @override
    def _forget(self, uid: str) -> None:
        super()._forget(uid)
        self._faults.forget(uid)
