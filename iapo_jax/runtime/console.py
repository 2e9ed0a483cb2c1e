"""Messages, progress bars, compilations, the environment. The only module that imports tqdm."""

import os
import platform
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import tqdm

from iapo_jax.errors import UserError, printable
from iapo_jax.runtime.files import write_json

_PACKAGES = ("iapo_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers",
             "datasets", "numpy")  # fmt: skip

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_compiles = 0


def _count_compiles(event: str, duration: float, **_: Any) -> None:
    global _compiles
    _compiles += event == _COMPILE_EVENT


jax.monitoring.register_event_duration_secs_listener(_count_compiles)


def compiles() -> int:
    """How many programs this process has compiled, or read from the persistent cache, so far."""
    return _compiles


def use_compilation_cache(directory: str) -> None:
    """Keeps compiled programs in a private directory, for a faster start of the next run."""
    if not directory:
        return
    path = Path(directory).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, RuntimeError) as error:  # RuntimeError: no home directory for ~
        if is_writer():
            print(f"note: compiled programs are not kept in {directory}: {error}", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def is_writer() -> bool:
    """Whether this process writes files and messages; process 0 does."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints on process 0. A closed pipe (`| head`) does not end the run.

    The text may quote rows of data, so control characters are escaped.
    """
    if not is_writer():
        return
    try:
        print(printable(text), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def environment() -> dict[str, Any]:
    """Versions, devices and the commit of the working directory."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "python": platform.python_version(),
        "packages": versions,
        "devices": [str(device) for device in jax.devices()],
        "processes": jax.process_count(),
        "commit": git.stdout.strip() or None,
        "directory": os.getcwd(),  # relative paths of the config start there
    }


def write_environment(output_dir: Path) -> None:
    """Writes `environment()` to env.json."""
    write_json(output_dir / "env.json", environment())


def progress_bar(
    first: int, last: int, *, unit: str = "step", shown: bool, leave: bool = True
) -> tqdm.tqdm:
    """A bar over the steps first .. last; if stderr is not a terminal, a line every half minute.

    Args:
      leave: keep the finished bar on the screen.
    """
    return tqdm.tqdm(
        total=last,
        initial=first,
        leave=leave,
        disable=not (shown and is_writer()),
        dynamic_ncols=True,
        unit=unit,
        smoothing=0.1,
        mininterval=0.1 if sys.stderr.isatty() else 30.0,
    )


def report_memory(programs: dict[str, Any]) -> None:
    """Compiles lowered programs, and prints the memory that each needs on one device.

    Raises:
      UserError: after the last program, if the compiler found one too large for its device.
    """
    say(f"{'program':<10} {'arguments':>12} {'temporary':>12} {'output':>12}   MiB per device")
    large = []
    for name, lowered in programs.items():
        try:
            memory = lowered.compile().memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            if not str(error).startswith("RESOURCE_EXHAUSTED"):
                raise
            large.append(name)
            reason = str(error).partition(": ")[2].strip().partition("\n")[0]
            say(f"{name:<10} does not fit: {reason:.200}")
            continue
        sizes = (
            memory.argument_size_in_bytes,
            memory.temp_size_in_bytes,
            memory.output_size_in_bytes,
        )
        say(f"{name:<10} " + " ".join(f"{size / 2**20:>12.1f}" for size in sizes))
    if large:
        verb = "does" if len(large) == 1 else "do"
        raise UserError(
            f"{' and '.join(large)} {verb} not fit into the memory of one device; use more "
            "devices, smaller micro-batches, or model.remat=true"
        )
