"""Ends a run after its current step on SIGTERM or SIGINT, and at once on a second signal.

The loops call `stop_requested()` between two steps or batches, save, and raise `Stopped`.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from iapo_jax.runtime.processes import any_process

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_received: str | None = None  # name of the signal
_handling = False


class Stopped(Exception):
    """A signal ended the run; the text states what was saved and how to resume."""

    def __init__(self, text: str):
        super().__init__(f"stopped by {_received or 'a signal to another process'}: {text}")


def _handle(number: int, frame: Any) -> None:
    global _received
    _received = signal.Signals(number).name
    for each in _SIGNALS:  # the second signal must not wait for the interpreter
        signal.signal(each, signal.SIG_DFL)
    note = f"\n{_received}: stopping after the current step; a second signal stops at once\n"
    with contextlib.suppress(OSError):
        os.write(2, note.encode())


@contextlib.contextmanager
def handling_signals() -> Iterator[None]:
    """Handles both signals within the block, in the main thread of a process.

    If nested, the outer block handles them: a signal in the last step of one piece of work also
    ends the pieces after it.
    """
    global _received, _handling
    if _handling or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _handle) for number in _SIGNALS}
    _received, _handling = None, True
    try:
        yield
    finally:
        _handling = False
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_requested() -> bool:
    """Whether any process has received a signal; every process must call this at the same place."""
    return any_process(_received is not None)
