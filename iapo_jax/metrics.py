"""What a run writes down: metrics.jsonl, TensorBoard, completions, environment, a progress bar."""

import contextlib
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm
from tensorboardX import SummaryWriter

from iapo_jax.errors import UserError, printable

_PACKAGES = ("iapo_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers",
             "datasets", "numpy")  # fmt: skip
_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_compiles = 0


def _count_compiles(event: str, duration: float, **_: Any) -> None:
    global _compiles
    _compiles += event == _COMPILE_EVENT


jax.monitoring.register_event_duration_secs_listener(_count_compiles)


def compiles() -> int:
    """Programs that this process has compiled (or taken from the persistent cache) so far."""
    return _compiles


def use_compilation_cache(directory: str) -> None:
    """Keeps compiled programs in a private directory, so that the next run starts faster."""
    if not directory:
        return
    path = Path(directory).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home to expand ~ to
        if is_writer():
            print(f"log.compilation_cache: going on without one: {error}", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def is_writer() -> bool:
    """Whether this process writes files: the first one does."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints, once for all processes; where nobody reads any more (`| head`), the work goes on.

    Texts of data rows may be among it: control characters are spelled out.
    """
    if not is_writer():
        return
    try:
        print(printable(text), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class RunWriter:
    """The files of a run directory. Rows after `resume_step` are dropped when a run goes on.

    Of several processes only the first one writes.
    """

    def __init__(self, output_dir: Path, *, tensorboard: bool, resume_step: int = 0):
        self.directory, self.rows = output_dir, 0
        self._file = self._board = None
        if not is_writer():
            return
        output_dir.mkdir(parents=True, exist_ok=True)
        path = output_dir / "metrics.jsonl"
        kept = [row for row in read_jsonl(path) if _step(row, path) <= resume_step]
        _write_lines(path, kept)
        self.rows = len(kept)
        for folder in ("completions", "skipped"):
            for written in (output_dir / folder).glob("step_*"):
                number = written.name.removeprefix("step_").partition(".")[0]
                if number.isdecimal() and int(number) > resume_step:
                    written.unlink()  # of steps that are done again
        self._file = path.open("a", encoding="utf-8")
        if tensorboard:
            self._board = SummaryWriter(str(output_dir / "tensorboard"), purge_step=resume_step + 1)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """One row of metrics.jsonl, and the same to TensorBoard."""
        if self._file is None:
            return
        told = {k: v if math.isfinite(v) else None for k, v in values.items()}  # JSON has no NaN
        self._file.write(json.dumps({"step": step, **told}) + "\n")
        self._file.flush()
        self.rows += 1
        for name, value in told.items():
            if self._board is not None and value is not None:
                self._board.add_scalar(name, value, step)

    def completions(self, step: int, rows: Iterable[dict]) -> None:
        """completions/step_N.jsonl, one object a completion."""
        if self._file is None:
            return
        path = self.directory / "completions" / f"step_{step}.jsonl"
        path.parent.mkdir(exist_ok=True)
        _write_lines(path, rows)

    def skipped(
        self, step: int, why: dict[str, Any], arrays: dict[str, np.ndarray], rows: Iterable[dict]
    ) -> None:
        """skipped/step_N: .json says what was not finite, .npz and .jsonl hold the batch."""
        if self._file is None:
            return
        path = self.directory / "skipped" / f"step_{step}"
        path.parent.mkdir(exist_ok=True)
        replace_file(path.with_suffix(".json"), json.dumps({"step": step, **why}, indent=2) + "\n")
        _write_lines(path.with_suffix(".jsonl"), rows)
        partial = path.with_name(path.name + ".partial.npz")
        np.savez_compressed(partial, **arrays)
        os.replace(partial, path.with_suffix(".npz"))

    def sync(self) -> None:
        """Returns when all rows are on the disk: a checkpoint must not be newer than they are."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Ends both files; what cannot be written was told of where it was to be."""
        for file in (self._file, self._board):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()


def _step(row: dict, path: Path) -> int:
    if not isinstance(row.get("step"), int):
        raise UserError(f"{path}: a row has no whole number as its step: {row!r:.60}")
    return row["step"]


def read_jsonl(path: Path) -> list[dict]:
    """The rows of a JSONL file; none if it is not there. A half-written last line is left out.

    Raises:
      UserError: naming another line that is no object.
    """
    if not path.is_file():
        return []
    rows = []
    *lines, last = path.read_bytes().split(b"\n")  # U+2028 ends no line here
    for number, line in enumerate([*lines, last], 1):
        try:
            if line:
                row = json.loads(line.decode("utf-8"))
                rows.append({**row})
        except (ValueError, TypeError) as error:
            if number <= len(lines):
                raise UserError(f"{path}, line {number}: no JSON object: {error}") from None
    return rows


def _write_lines(path: Path, rows: Iterable[dict]) -> None:
    replace_file(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def replace_file(path: Path, text: str) -> None:
    """Writes the file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    # Lone surrogates of a data row become the escapes by which JSON writes them.
    with partial.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # else a crash of the machine could leave an empty file
    os.replace(partial, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too
    finally:
        os.close(folder)


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
        "directory": os.getcwd(),  # relative paths of the config begin there
    }


def write_environment(output_dir: Path) -> None:
    """env.json: what `environment` says."""
    text = json.dumps(environment(), indent=2) + "\n"
    replace_file(output_dir / "env.json", text)


def progress_bar(
    first: int, last: int, *, unit: str = "step", shown: bool, leave: bool = True
) -> tqdm.tqdm:
    """A bar over the steps (or other units) first .. last; in a file, a line every half minute.

    Args:
      leave: keep it on the screen when it is done.
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


def say_memory(programs: dict[str, Any]) -> None:
    """Compiles lowered programs and tells, of each as it is done, its memory on a device.

    Raises:
      UserError: after the last, if a compiler found one of them too large for its device.
    """
    say(f"{'program':<10} {'arguments':>12} {'temporary':>12} {'output':>12}   MiB a device")
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
        raise UserError(
            f"the memory of a device is too small for {' and '.join(large)}; expected a mesh of "
            "more devices, smaller micro-batches, or model.remat=true"
        )
