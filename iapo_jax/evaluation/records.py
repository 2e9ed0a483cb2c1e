"""NAME.json: the results of one model on one dataset, from which every metric can be computed.

It holds the settings, the problems, and [problems, samples] verdicts, lengths and votes. The texts
are in NAME.completions.jsonl beside it (`evaluation.completions_file`). No JAX.
"""

import hashlib
import json
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from iapo_jax.errors import UserError
from iapo_jax.evaluation.completions_file import Completion, cast_votes
from iapo_jax.evaluation.metrics import Outcomes
from iapo_jax.runtime.files import read_json, write_json

FORMAT = 1
_LISTS = ("rows", "prompts", "answers")
_TABLES = ("correct", "length", "finished", "votes", "thinking_length")
_TYPES = {
    "model": str,
    "member": int,
    "members": int,
    "source": str,
    "dataset": str,
    "dataset_name": str,
    "settings": dict,
    "fingerprint": str,
    "problems": str,
    "environment": dict,
}
_KINDS = {str: "a string", int: "an integer", dict: "an object"}


class Record(NamedTuple):
    """The results of one model on one dataset: P problems with N samples each."""

    model: str  # label
    member: int  # from 1, of `members` training seeds under one label
    members: int
    source: str  # where the parameters came from
    step: int | None  # of a run's checkpoint
    dataset: str
    dataset_name: str
    settings: dict[str, Any]
    fingerprint: str  # of the parameters
    problems: str  # digest of rows, prompts, answers and their kinds
    environment: dict[str, Any]
    rows: list[int] = []  # P
    prompts: list[str] = []  # P
    answers: list[str] = []  # P, the reference answers
    correct: list[list[bool]] = []  # P x N, here and below
    length: list[list[int]] = []
    finished: list[list[bool]] = []
    votes: list[list[int]] = []
    thinking_length: list[list[int]] = []

    @property
    def complete(self) -> bool:
        """Whether the record has the samples of all problems."""
        return bool(self.correct)

    def outcomes(self) -> Outcomes:
        """The arrays that metrics are computed from."""
        return Outcomes(
            correct=np.asarray(self.correct, bool),
            length=np.asarray(self.length),
            finished=np.asarray(self.finished, bool),
            votes=np.asarray(self.votes),
        )

    def filled(self, completions: Iterable[Completion]) -> Self:
        """The record with the results of all completions, `num_samples` for each problem."""
        samples = self.settings["num_samples"]
        by_row: dict[int, dict[int, Completion]] = {}
        for completion in completions:
            if completion.sample < samples:
                by_row.setdefault(completion.row, {})[completion.sample] = completion
        groups = [[by_row[row][n] for n in range(samples)] for row in sorted(by_row)]
        return self._replace(
            rows=sorted(by_row),
            prompts=[group[0].prompt for group in groups],
            answers=[group[0].answer for group in groups],
            correct=[[sample.correct for sample in group] for group in groups],
            length=[[sample.length for sample in group] for group in groups],
            finished=[[sample.finished for sample in group] for group in groups],
            votes=[cast_votes(group) for group in groups],
            thinking_length=[[sample.thinking_length for sample in group] for group in groups],
        )

    def on_rows(self, rows: Set[int]) -> Self:
        """The record with only these rows of the dataset."""
        kept = [index for index, row in enumerate(self.rows) if row in rows]
        if len(kept) == len(self.rows):
            return self
        names = _LISTS + _TABLES
        return self._replace(**{name: [getattr(self, name)[i] for i in kept] for name in names})


def digest(*parts: Any) -> str:
    """sha256 of values that JSON can write."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def write_record(path: Path, record: Record) -> None:
    """Writes NAME.json."""
    values = {"format": FORMAT, "complete": record.complete, **record._asdict()}
    values["identity"] = digest(_identity(record))
    write_json(path, values, indent=None)


def _identity(record: Record) -> dict[str, Any]:
    """All that a completion depends on; more samples do not make it another evaluation."""
    settings = {k: v for k, v in record.settings.items() if k != "num_samples"}
    return {"the model": record.fingerprint, "the problems": record.problems} | settings


def read_record(path: Path) -> Record | None:
    """The inverse of `write_record`; None if the file does not exist.

    Raises:
      UserError: if the file is damaged or has another format, naming the wrong field.
    """
    if not path.is_file():
        return None
    return parse_record(read_json(path), path)


def parse_record(values: dict[str, Any], path: Path) -> Record:
    """The record of a JSON object; fields that this version does not know are ignored.

    Raises:
      UserError: naming the file, and the field that is missing or wrong.
    """
    if values.get("format") != FORMAT:
        raise UserError(
            f"{path}: format is {values.get('format')!r}; expected an evaluation of format {FORMAT}"
        )
    for name in Record._fields:
        if name not in values:
            raise UserError(f"{path}: the field {name} is missing; expected a complete record")
    for name, kind in _TYPES.items():
        if not isinstance(values[name], kind):
            raise UserError(f"{path}: {name} is {values[name]!r:.40}; expected {_KINDS[kind]}")
    for name in _LISTS + _TABLES:
        if not isinstance(values[name], list):
            raise UserError(f"{path}: {name} is {values[name]!r:.40}; expected a list")
    record = Record(**{name: values[name] for name in Record._fields})
    if record.complete:
        _check_samples(record, path)
        _check_problems(record, path)
    return record


def _check_problems(record: Record, path: Path) -> None:
    for name, kind in (("rows", int), ("prompts", str), ("answers", str)):
        found = getattr(record, name)
        if len(found) != len(record.correct):
            raise UserError(
                f"{path}: {name} has {len(found)} entries; expected {len(record.correct)}, "
                "one for each problem"
            )
        for value in found:
            if not isinstance(value, kind):
                raise UserError(f"{path}: {name} contains {value!r:.40}; expected {_KINDS[kind]}")


def _check_samples(record: Record, path: Path) -> None:
    shape = None
    for name in _TABLES:
        expected = "expected a [problems, samples] table of integers or booleans"
        try:
            array = np.array(getattr(record, name))
        except ValueError:
            raise UserError(f"{path}: {name} has rows of different lengths; {expected}") from None
        if array.ndim != 2 or not array.size or array.dtype.kind not in "bi":
            raise UserError(
                f"{path}: {name} has shape {list(array.shape)} and type {array.dtype}; {expected}"
            )
        shape = shape or array.shape
        if array.shape != shape:
            raise UserError(f"{path}: {name} has the shape {array.shape}; expected {shape}")
        if name == "length" and array.min() < 1:
            raise UserError(f"{path}: a length is {array.min()}; expected at least 1")


def check_same(known: Record, record: Record, path: Path) -> None:
    """Checks that the completions at `path` were sampled exactly as `record` describes.

    Raises:
      UserError: naming the first thing that differs.
    """
    before, now = _identity(known), _identity(record)
    for name in dict.fromkeys((*now, *before)):
        if before.get(name) != now.get(name):
            if name == "the model":
                difference = "its model has different parameters"
            elif name == "the problems":
                difference = "its problems are different"
            else:
                difference = f"{name} was {before.get(name)!r} and is now {now.get(name)!r}"
            raise UserError(
                f"{path} belongs to a different evaluation: {difference}; use another output_dir "
                "(--out), or the original settings to resume"
            )
