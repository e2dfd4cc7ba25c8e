from collections.abc import Callable
from os import PathLike
from types import TracebackType
from typing import Union

class DuetError(Exception):
    """The credential file, the network or the counter's file is not what it should be."""

class DuetTimeout(DuetError):
    """The gateway did not answer in time; the reading is kept, and goes on with the next call."""

class Confirmed:
    """A reading that the gateway has stored."""

    @property
    def id(self) -> bytes:
        """Its name for ever among the device's readings, 16 bytes."""

class Device:
    """A device and its connection to the gateway."""

    @staticmethod
    def from_file(
        path: Union[str, PathLike[str]],
        *,
        tcp: bool = False,
        address: Union[str, None] = None,
        timeout: float = 60.0,
    ) -> "Device":
        """The device of the credential file `path`; its counter is kept beside it, in `NAME.counter`.

        `address` (`host:port`) replaces the one in the file; `timeout` is how many seconds a call may wait for the
        gateway."""

    def send(self, channel: int, payload: Union[bytes, str]) -> Confirmed:
        """Sends a reading and returns once the gateway has stored it."""

    def post(self, channel: int, payload: Union[bytes, str]) -> None:
        """Sends a reading without waiting: whether it arrives nobody knows."""

    def on_command(self, act: Callable[[bytes], Union[bytes, str, None]]) -> None:
        """Carries out commands with `act`; what it returns is the result, an exception is a failure (status 1).

        `act` runs inside the call that met the command, and cannot call its own device: a DuetError says so."""

    def wait(self, seconds: float) -> None:
        """Waits for commands, and carries them out."""

    def rest(self) -> None:
        """Waits until nothing waits for the device at its gateway: whoever sleeps then misses nothing."""

    def close(self) -> None:
        """Ends the session."""

    def __enter__(self) -> "Device": ...
    def __exit__(
        self,
        kind: Union[type[BaseException], None],
        error: Union[BaseException, None],
        trace: Union[TracebackType, None],
    ) -> None: ...
