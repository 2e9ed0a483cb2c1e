"""A file that one process holds at a time. The home of filelock. No JAX."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from iapo_jax.errors import UserError


@contextlib.contextmanager
def file_lock(path: Path, *, instead: str, sign: bool = False) -> Iterator[bool]:
    """Holds a lock file until the end of the block, or of the process however it ends.

    Yields False, without a lock, on a disk that supports none.

    Args:
      path: a file of its own, made if need be; it stays.
      instead: what the user can do if another process holds the file.
      sign: write into the file who holds it.

    Raises:
      UserError: if another process holds the file.
    """
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        holder = path.read_text("utf-8", "replace").strip() if sign else ""
        signature = f" ({holder:.100})" if holder else ""
        raise UserError(
            f"{path} is held by another process{signature}; expected one at a time, or {instead}"
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
