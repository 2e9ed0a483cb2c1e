"""Several processes as one run: they join, agree, and none waits for one that is gone.

A single process passes through all of this unchanged.
"""

import atexit
import contextlib
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from iapo_jax.config.schema import MeshSection
from iapo_jax.errors import FAILED, STOPPED, RunError, UserError

T = TypeVar("T")


_LAST_WORDS = 3.0  # seconds


# JAX ends every process when one of them is gone, by abort(): then nothing in it can speak.
_GUARDIAN = """
import os, sys
if not os.read(int(sys.argv[1]), 1):
    os.write(2, sys.argv[2].encode())
"""


_GONE = (
    "all processes of a run end when one of them is gone or never came (its own output says why); "
    "the same command on each goes on from the last checkpoint"
)


_bell: int | None = None  # of the guardian


def join(section: MeshSection) -> None:
    """Joins the other processes of `config.MeshSection`, if it says that there are any.

    Raises:
      UserError: if they cannot be found.
    """
    if not section.distributed:
        return
    # Its C++ handler would keep SIGTERM from `interruption`.
    jax.config.update("jax_enable_preemption_service", False)
    _post_guardian()
    try:
        jax.distributed.initialize(
            section.coordinator,
            section.num_processes,
            section.process_id,
            initialization_timeout=section.join_timeout,
            heartbeat_timeout_seconds=section.heartbeat_timeout,
        )
    except (RuntimeError, ValueError, TypeError) as error:
        _dismiss_guardian()
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"mesh.distributed: no other processes were found: {reason}; expected a cluster that "
            "JAX knows, or mesh.coordinator=HOST:PORT, mesh.num_processes and mesh.process_id"
        ) from None


def _post_guardian() -> None:
    """A child that outlives this process, and says what happened if it could not say goodbye."""
    global _bell
    said = f"error: process {os.getpid()} was ended: {_GONE}\n"
    theirs, _bell = os.pipe()
    subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", _GUARDIAN, str(theirs), said],
        pass_fds=(theirs,),
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is not for it
    )
    os.close(theirs)
    atexit.register(_dismiss_guardian)


def _dismiss_guardian() -> None:
    global _bell
    if _bell is not None:
        with contextlib.suppress(OSError):
            os.write(_bell, b".")
        _bell = None


def leave(main: Callable[[], int]) -> int:
    """The exit code of `main()`; one process of several ends here, at once.

    After a clean shutdown of jax.distributed the interpreter's teardown hangs more often than not
    (seen with jax 0.10 to 0.12).
    """
    try:
        code = main()
    except Exception as error:
        if jax.process_count() == 1:
            raise
        code = 1
        if connection_lost(error):
            code = FAILED
            lines = str(error).strip().splitlines() or [""]
            print(f"error: {lines[0]:.300}\n{_GONE}", file=sys.stderr)
        else:
            traceback.print_exc()
    if jax.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        if code in (0, STOPPED):  # the others may still be busy, and are known to come
            multihost_utils.sync_global_devices("leave")
            _dismiss_guardian()
            with contextlib.suppress(Exception):
                jax.distributed.shutdown()
        elif jax.process_index() == 0:  # with it all end: they may have something to say, too
            time.sleep(_LAST_WORDS)
        _dismiss_guardian()
        os._exit(code)
    return code


def connection_lost(error: BaseException) -> bool:
    """Whether this is how a process hears that another one of its run is gone."""
    return jax.process_count() > 1 and isinstance(error, jax.errors.JaxRuntimeError)


def from_first(tree: Any) -> Any:
    """Host values of process 0, on every process."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))


def on_first(compute: Callable[[], T], like: T) -> T:
    """What `compute()` gives on process 0, on every process: it runs there alone.

    Args:
      like: arrays of the result's structure, shapes and dtypes, for the others.

    Raises:
      UserError, RunError: on every process, if `compute` raises one.
    """
    if jax.process_count() == 1:
        return compute()
    found, said, kind = like, b"", 0
    if jax.process_index() == 0:
        try:
            found = compute()
        except (UserError, RunError) as error:
            said, kind = str(error).encode(), 1 + isinstance(error, RunError)
    kind, size = (int(x) for x in from_first(np.asarray([kind, len(said)], np.int32)))
    if kind:
        text = np.zeros(size, np.uint8)
        text[:] = np.frombuffer(said, np.uint8) if said else 0
        raise (UserError, RunError)[kind - 1](bytes(from_first(text)).decode())
    return from_first(found) if jax.tree.leaves(like) else found


def any_process(flag: bool) -> bool:
    """Whether the flag is set on any process; all of them ask at the same place."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())
