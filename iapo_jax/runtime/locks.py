"""A lock file that one process holds at a time. The only module that imports filelock. No JAX."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from iapo_jax.errors import UserError


@contextlib.contextmanager
def file_lock(path: Path, *, instead: str, sign: bool = False) -> Iterator[bool]:
    """Holds a lock file until the block or the process ends.

    Yields False, without a lock, if the file system does not support locks.

    Args:
      path: the lock file; created if necessary, and not removed.
      instead: what the user can use if another process holds the file.
      sign: write the process and host that hold it into the file.

    Raises:
      UserError: if another process holds the file.
    """
    lock = FileLock(path, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        holder = path.read_text("utf-8", "replace").strip() if sign else ""
        signature = f" ({holder:.100})" if holder else ""
        raise UserError(
            f"{path} is in use by another process{signature}; wait for it to finish, or use "
            f"{instead}"
        ) from None
    except OSError:
        yield False
        return
    try:
        if sign:
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        yield True
    finally:
        lock.release()
