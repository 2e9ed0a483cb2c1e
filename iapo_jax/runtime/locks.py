"""A file that one process holds at a time. No JAX."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from iapo_jax.errors import UserError


@contextlib.contextmanager
def held(path: Path, *, instead: str, sign: bool = False) -> Iterator[bool]:
    """Holds a file, which is made if need be, until the end of the block or of the process.

    Gives False on a disk that knows no locks, where nothing is held.

    Args:
      instead: what the user may do where it is held already.
      sign: write into it who holds it.

    Raises:
      UserError: if another process holds it.
    """
    with path.open("ab") as file:
        locked = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = path.read_text("utf-8", "replace").strip() if sign else ""
            raise UserError(
                f"{path} is held by another process{f' ({holder:.100})' if holder else ''}; "
                f"expected one at a time, or {instead}"
            ) from None
        except OSError:
            locked = False
        if sign:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            file.flush()
        yield locked
