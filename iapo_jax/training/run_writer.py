"""Writes the files of a run: metrics.jsonl, TensorBoard, completions and skipped batches.

The only module that imports tensorboardX.
"""

import contextlib
import io
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

from iapo_jax.runtime.console import is_writer
from iapo_jax.runtime.files import (
    read_jsonl,
    to_json_line,
    write_atomically,
    write_json,
    write_jsonl,
)


class RunWriter:
    """The files of a run directory. A resumed run drops the rows after `resume_step`.

    If there are several processes, only process 0 writes.
    """

    def __init__(self, output_dir: Path, *, tensorboard: bool, resume_step: int = 0):
        self.directory, self.rows = output_dir, 0
        self._file = self._board = None
        if not is_writer():
            return
        output_dir.mkdir(parents=True, exist_ok=True)
        path = output_dir / "metrics.jsonl"
        kept = [row for row in read_jsonl(path, _with_step) if row["step"] <= resume_step]
        write_jsonl(path, kept)
        self.rows = len(kept)
        for folder in ("completions", "skipped"):
            for written in (output_dir / folder).glob("step_*"):
                number = written.name.removeprefix("step_").partition(".")[0]
                if number.isdecimal() and int(number) > resume_step:
                    written.unlink()  # of steps that will run again
        self._file = path.open("a", encoding="utf-8", newline="\n")
        if tensorboard:
            self._board = SummaryWriter(str(output_dir / "tensorboard"), purge_step=resume_step + 1)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Writes a row of metrics.jsonl, and the same values to TensorBoard."""
        if self._file is None:
            return
        row = {k: v if math.isfinite(v) else None for k, v in values.items()}  # JSON has no NaN
        self._file.write(to_json_line({"step": step, **row}))
        self._file.flush()
        self.rows += 1
        for name, value in row.items():
            if self._board is not None and value is not None:
                self._board.add_scalar(name, value, step)

    def completions(self, step: int, rows: Iterable[dict]) -> None:
        """Writes completions/step_N.jsonl, one object per completion."""
        if self._file is None:
            return
        path = self.directory / "completions" / f"step_{step}.jsonl"
        write_jsonl(path, rows)

    def skipped(
        self,
        step: int,
        failures: dict[str, Any],
        arrays: dict[str, np.ndarray],
        rows: Iterable[dict],
    ) -> None:
        """Writes skipped/step_N: .json with the failures, .npz and .jsonl with the batch."""
        if self._file is None:
            return
        path = self.directory / "skipped" / f"step_{step}"
        write_json(path.with_suffix(".json"), {"step": step, **failures})
        write_jsonl(path.with_suffix(".jsonl"), rows)
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)
        write_atomically(path.with_suffix(".npz"), content.getvalue())

    def sync(self) -> None:
        """Waits until all rows are on disk: a checkpoint must not be newer than its rows."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the files; a failed write has already raised where it happened."""
        for file in (self._file, self._board):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()


def _with_step(row: dict) -> dict:
    if not isinstance(row.get("step"), int):
        raise ValueError(f"step is {row.get('step')!r:.60}; expected an integer")
    return row
