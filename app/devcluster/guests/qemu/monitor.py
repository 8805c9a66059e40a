"""QMP: commands to a QEMU process, and the events it tells."""

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from typing import Any, Final

from qemu.qmp import EventListener, ExecuteError, Message, QMPClient, QMPError, Runstate
from typing_extensions import override

from app.devcluster.guests.qemu.errors import MachineGone, MonitorFailed

Json = dict[str, Any]

_CONNECT_SECONDS: Final = 60
_COMMAND_SECONDS: Final = 60
_QUIT_SECONDS: Final = 5
_LAST_WORDS_SECONDS: Final = 5


class Monitor:
    """The connection to one QEMU. It is open until QEMU ends."""

    def __init__(self, name: str, channel: socket.socket) -> None:
        self._name = name
        self._channel = channel
        self._client = QMPClient(name)
        self._client.logger.setLevel(logging.CRITICAL)  # it reports each end of a QEMU as an error
        self._client.events.names.add("NONE")  # its own listener would keep all events for ever

    async def open(self, hear: Callable[[Json], None]) -> None:
        """`hear` is called with every event from now on, in the order of events and answers. Raises MachineGone."""
        self._client.register_listener(_Hearing(hear))
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await self._client.connect(self._channel)
        except TimeoutError as error:
            raise MachineGone(f"QEMU of {self._name} did not answer within {_CONNECT_SECONDS} s.") from error
        except (QMPError, OSError, EOFError) as error:
            raise MachineGone(f"QEMU of {self._name} ended while it was started.") from error

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """What QEMU returns. Raises MonitorFailed or MachineGone."""
        try:
            async with asyncio.timeout(_COMMAND_SECONDS):
                return await self._client.execute(command, dict(arguments) if arguments else None)
        except ExecuteError as error:
            raise MonitorFailed(f"QEMU of {self._name} refused {command}: {error}.") from error
        except TimeoutError as error:
            raise MonitorFailed(
                f"QEMU of {self._name} did not answer {command} within {_COMMAND_SECONDS} s."
            ) from error
        except (QMPError, OSError, EOFError) as error:
            raise MachineGone(f"The machine {self._name} has ended.") from error

    async def give_file(self, name: str, file: int) -> None:
        """Hands an open file over; commands call it by `name`, once."""
        self._client.send_fd_scm(file)
        await self.execute("getfd", {"fdname": name})

    def listen(self, event: str) -> AbstractContextManager[EventListener]:
        """The events of this name from the beginning of the block on."""
        return self._client.listener(event)

    async def quit(self) -> None:
        """Asks QEMU to end. It may be too late, or too stuck, for that."""
        with suppress(MonitorFailed, MachineGone, TimeoutError):
            async with asyncio.timeout(_QUIT_SECONDS):
                await self.execute("quit")

    async def close(self) -> None:
        """After QEMU's end: all that it told has been heard when this returns."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                while self._client.runstate is Runstate.RUNNING:
                    await self._client.runstate_changed()
        with suppress(QMPError, OSError, EOFError):
            await self._client.disconnect()
        self._channel.close()


async def next_event(listener: EventListener, seconds: float, name: str) -> Json:
    try:
        async with asyncio.timeout(seconds):
            return dict(await listener.get())
    except TimeoutError as error:
        raise MonitorFailed(f"QEMU of {name} told nothing within {seconds:g} s.") from error


class _Hearing(EventListener):
    def __init__(self, hear: Callable[[Json], None]) -> None:
        super().__init__()
        self._hear = hear

    @override
    async def put(self, event: Message) -> None:
        self._hear(dict(event))
