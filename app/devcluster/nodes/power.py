"""Which nodes are powered off."""

from collections.abc import Callable


class NodePower:
    """Nothing moves on a node that is off, and nothing that waits for it ends."""

    def __init__(self) -> None:
        self._off: set[str] = set()
        self._on: list[Callable[[], None]] = []
        self._lost: list[Callable[[str], None]] = []

    def is_off(self, node: str) -> bool:
        return node in self._off

    def switch_off(self, node: str) -> None:
        self._off.add(node)
        for listener in self._lost:
            listener(node)

    def switch_on(self, node: str) -> None:
        """Also for a node that is taken away: what it held back is over."""
        self._off.discard(node)
        for listener in self._on:
            listener()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever a node is switched on."""
        self._on.append(listener)

    def listen_for_loss(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with the name of each node that is switched off."""
        self._lost.append(listener)
