"""SIGINT and SIGTERM end a program between two steps of its work, and are never lost on the way.

An exception that a signal handler raises may surface anywhere: within `torch.save`, which makes another exception of
it, or within a destructor, which swallows it. Where that matters signals are held, and the work asks for them.
"""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class TerminatedError(BaseException):
    """SIGTERM arrived. Not an `Exception`, so that nothing on the way swallows it."""


ERRORS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: TerminatedError}

_received: int | None = None
_holds = 0


def listen_to_signals() -> None:
    """Take both signals over, for this program."""
    global _received
    _received = None
    for number in ERRORS:
        signal.signal(number, _on_signal)


def received_signal() -> int | None:
    """The number of the signal that arrived, if one did."""
    return _received


def take_signals() -> None:
    """End here if a signal has arrived.

    Raises:
        KeyboardInterrupt, TerminatedError: one has.
    """
    if _received is not None:
        raise ERRORS[_received]


@contextlib.contextmanager
def held_signals() -> Iterator[None]:
    """A first signal in the block takes effect where it calls `take_signals`, or behind it; a second one at once."""
    global _holds
    _holds += 1
    try:
        yield
    finally:
        _holds -= 1
    if not _holds:
        take_signals()


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _received
    is_first, _received = _received is None, number
    if not (_holds and is_first):
        raise ERRORS[number]
