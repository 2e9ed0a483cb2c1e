"""SIGTERM and SIGINT end a run at its next boundary, with everything saved; a second one, at once.

The loops ask `stop_requested()` between two steps or batches, save, and raise `Stopped`.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from iapo_jax.runtime.processes import any_process

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


_heard: str | None = None  # name of the signal


_listening = False


class Stopped(Exception):
    """The run ended because a signal asked for it; says what was saved and how to go on."""

    def __init__(self, text: str):
        super().__init__(f"stopped by {_heard or 'a signal to another process'}: {text}")


def _hear(number: int, frame: Any) -> None:
    global _heard
    _heard = signal.Signals(number).name
    for each in _SIGNALS:  # the second one must not wait for Python to have a turn
        signal.signal(each, signal.SIG_DFL)
    note = f"\n{_heard}: stopping after the current step; a second signal stops at once\n"
    with contextlib.suppress(OSError):
        os.write(2, note.encode())


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Hears the two signals while it is open, in the main thread of a process.

    Inside another one it leaves what was heard to that: a signal in the last step of one piece of
    work ends those after it.
    """
    global _heard, _listening
    if _listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _hear) for number in _SIGNALS}
    _heard, _listening = None, True
    try:
        yield
    finally:
        _listening = False
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_requested() -> bool:
    """Whether a signal was heard, by any process: all of them ask at the same place."""
    return any_process(_heard is not None)
