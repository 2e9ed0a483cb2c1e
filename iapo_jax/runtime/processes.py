"""Several processes as one run: they join, agree, and none waits for one that has ended.

With a single process nothing is exchanged: values are returned as they are.
"""

import atexit
import contextlib
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from iapo_jax.config.sections import MeshSection
from iapo_jax.errors import FAILED, STOPPED, RunError, UserError

T = TypeVar("T")
_SECONDS_FOR_LAST_MESSAGES = 3.0


# When a process of the run ends, JAX calls abort() in the others, so Python cannot print there.
# This child waits for a byte, which a process writes before it exits, and reports its absence.
_WATCHER = """
import os, sys
if not os.read(int(sys.argv[1]), 1):
    os.write(2, sys.argv[2].encode())
"""

_GONE = (
    "all processes of a run end when one of them ends or never joins (its own output gives the "
    "reason); the same command on each host resumes from the last checkpoint"
)

_watcher_pipe: int | None = None


def join(section: MeshSection) -> None:
    """Joins the other processes of the run if `mesh.distributed` is set.

    Raises:
      UserError: if this process cannot join them.
    """
    if not section.distributed:
        return
    # The C++ handler of this service would keep SIGTERM from `interruption`.
    jax.config.update("jax_enable_preemption_service", False)
    start_watcher()
    try:
        jax.distributed.initialize(
            section.coordinator,
            section.num_processes,
            section.process_id,
            initialization_timeout=section.join_timeout,
            heartbeat_timeout_seconds=section.heartbeat_timeout,
        )
    except (RuntimeError, ValueError, TypeError) as error:
        dismiss_watcher()
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"mesh.distributed is true, but this process cannot join the others: {reason}; "
            "expected a cluster that JAX detects, or mesh.coordinator=HOST:PORT, "
            "mesh.num_processes and mesh.process_id"
        ) from None


def start_watcher() -> None:
    """Starts a child that outlives this process and reports an end without a clean exit."""
    global _watcher_pipe
    message = f"error: process {os.getpid()} was aborted: {_GONE}\n"
    read_end, _watcher_pipe = os.pipe()
    subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", _WATCHER, str(read_end), message],
        pass_fds=(read_end,),
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # so that Ctrl-C does not reach it
    )
    os.close(read_end)
    atexit.register(dismiss_watcher)


def dismiss_watcher() -> None:
    global _watcher_pipe
    if _watcher_pipe is not None:
        with contextlib.suppress(OSError):
            os.write(_watcher_pipe, b".")
        _watcher_pipe = None


def exit_with(main: Callable[[], int]) -> NoReturn:
    """Ends this process with the exit code of `main()`.

    If there are several processes, it skips the interpreter's teardown, which usually hangs after a
    clean shutdown of jax.distributed (seen with jax 0.10 to 0.12).
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
        if code in (0, STOPPED):  # the others may still be busy, and will come here too
            multihost_utils.sync_global_devices("exit")
            dismiss_watcher()
            with contextlib.suppress(Exception):
                jax.distributed.shutdown()
        elif jax.process_index() == 0:  # its end ends all others, which may have messages to print
            time.sleep(_SECONDS_FOR_LAST_MESSAGES)
        dismiss_watcher()
        os._exit(code)
    raise SystemExit(code)


def connection_lost(error: BaseException) -> bool:
    """Whether the error means that another process of the run has ended."""
    return jax.process_count() > 1 and isinstance(error, jax.errors.JaxRuntimeError)


def broadcast(tree: Any) -> Any:
    """Host values of process 0, on every process."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))


def on_process_zero(compute: Callable[[], T], like: T) -> T:
    """Runs `compute()` on process 0 alone, and returns its result on every process.

    Args:
      like: arrays of the result's structure, shapes and dtypes, for the other processes.

    Raises:
      UserError, RunError: on every process, if `compute` raises it.
    """
    if jax.process_count() == 1:
        return compute()
    result, message, kind = like, b"", 0
    if jax.process_index() == 0:
        try:
            result = compute()
        except (UserError, RunError) as error:
            message, kind = str(error).encode(), 1 + isinstance(error, RunError)
    kind, size = (int(x) for x in broadcast(np.asarray([kind, len(message)], np.int32)))
    if kind:
        text = np.zeros(size, np.uint8)
        text[:] = np.frombuffer(message, np.uint8) if message else 0
        raise (UserError, RunError)[kind - 1](bytes(broadcast(text)).decode())
    return broadcast(result) if jax.tree.leaves(like) else result


def any_process(flag: bool) -> bool:
    """Whether the flag is set on any process; every process must call this at the same place."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())
