"""What an evaluation leaves on disk: every completion as it comes, and one file to recompute from.

    NAME.json                 settings, problems, and [problems, samples] verdicts, lengths, votes
    NAME.completions.jsonl    one object a completion: the texts

No JAX.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from iapo_jax.answers.checker import same_answer
from iapo_jax.errors import UserError
from iapo_jax.evaluation.metrics import Outcomes
from iapo_jax.runtime.files import (
    append_jsonl,
    cut_incomplete_end,
    read_json,
    read_jsonl,
    write_json,
)

FORMAT = 1


class Completion(NamedTuple):
    """One sample of one problem, judged."""

    row: int  # of the data set, from 0
    sample: int  # from 0
    prompt: str
    completion: str
    answer: str  # the gold one
    extracted: str | None
    correct: bool
    length: int  # tokens, with the stop token
    thinking_length: int  # tokens before the end of thinking
    finished: bool  # False where the length limit cut it
    ids: list[int] = []  # of the tokens, where they are to be probed


class Record(NamedTuple):
    """A data set as one model sampled it; P problems, N samples."""

    model: str  # label
    member: int  # from 1, of `members` training seeds under one label
    members: int
    source: str  # where the parameters came from
    step: int | None  # of a run's checkpoint
    dataset: str
    dataset_name: str
    settings: dict[str, Any]
    fingerprint: str  # of the parameters
    problems: str  # digest of prompts and answers
    environment: dict[str, Any]
    rows: list[int] = []  # P
    prompts: list[str] = []
    answers: list[str] = []
    correct: list[list[bool]] = []  # P x N, here and below
    length: list[list[int]] = []
    finished: list[list[bool]] = []
    votes: list[list[int]] = []
    thinking_length: list[list[int]] = []

    @property
    def complete(self) -> bool:
        """Whether all samples are there."""
        return bool(self.correct)

    def outcomes(self) -> Outcomes:
        """The arrays that figures are made of."""
        return Outcomes(
            np.asarray(self.correct, bool),
            np.asarray(self.length, np.int32),
            np.asarray(self.finished, bool),
            np.asarray(self.votes, np.int32),
        )

    def filled(self, completions: Iterable[Completion]) -> Self:
        """With the figures of all completions, of which each problem has `num_samples`."""
        samples = self.settings["num_samples"]
        found: dict[int, dict[int, Completion]] = {}
        for one in completions:
            if one.sample < samples:
                found.setdefault(one.row, {})[one.sample] = one
        groups = [[found[row][n] for n in range(samples)] for row in sorted(found)]
        pick = lambda name: [[getattr(one, name) for one in group] for group in groups]  # noqa: E731
        return self._replace(
            rows=sorted(found),
            prompts=[group[0].prompt for group in groups],
            answers=[group[0].answer for group in groups],
            votes=[cast_votes(group) for group in groups],
            **{name: pick(name) for name in ("correct", "length", "finished", "thinking_length")},
        )


def cast_votes(group: Sequence[Completion]) -> list[int]:
    """A number for each distinct answer of a problem's samples: 0 is right, -1 is none.

    Wrong answers are one where that is sure without algebra: 1/2 and 0.5, but not x+1 and 1+x.
    """
    representatives: list[str] = []
    known: dict[str, int] = {}
    votes = []
    for one in group:
        if one.correct:
            votes.append(0)
        elif not one.extracted:
            votes.append(-1)
        else:
            if one.extracted not in known:
                same = (text for text in representatives if _same(text, one.extracted))
                first = next(same, one.extracted)
                if first == one.extracted:
                    representatives.append(first)
                known[one.extracted] = representatives.index(first) + 1
            votes.append(known[one.extracted])
    return votes


def _same(one: str, other: str) -> bool:
    return same_answer(one, other) or same_answer(other, one)


def digest(*parts: Any) -> str:
    """sha256 of values that JSON can write."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def write_record(path: Path, record: Record) -> None:
    """Writes NAME.json."""
    values = {"format": FORMAT, "complete": record.complete, **record._asdict()}
    values["identity"] = digest(_identity(record))
    write_json(path, values, indent=None)


def _identity(record: Record) -> dict[str, Any]:
    """All that its completions depend on: more samples of the same are no other evaluation."""
    settings = {k: v for k, v in record.settings.items() if k != "num_samples"}
    return {"the model": record.fingerprint, "the problems": record.problems} | settings


def read_record(path: Path) -> Record | None:
    """The inverse of `write_record`; None if the file is not there.

    Raises:
      UserError: if it is damaged, or of another format.
    """
    if not path.is_file():
        return None
    values = read_json(path)
    found = values.get("format")
    if found != FORMAT:
        raise UserError(f"{path}: expected an evaluation of format {FORMAT}, found {found!r}")
    missing = [name for name in Record._fields if name not in values]
    if missing:
        raise UserError(f"{path}: the field {missing[0]} is missing; expected a whole evaluation")
    for name, default in {"settings": {}, **Record._field_defaults}.items():
        if not isinstance(values[name], type(default)):
            raise UserError(
                f"{path}: {name} is {values[name]!r:.40}; expected a {type(default).__name__}"
            )
    return Record(**{name: values[name] for name in Record._fields})


def check_same(known: Record, record: Record, path: Path) -> None:
    """Whether completions that are there were made in this very way.

    Raises:
      UserError: naming the first thing that differs.
    """
    there, here = _identity(known), _identity(record)
    for name in dict.fromkeys((*here, *there)):
        if there.get(name) != here.get(name):
            told = f"{name} {there.get(name)!r} there, {here.get(name)!r} here"
            if name.startswith("the "):
                told = f"{name} there differ{'s' * (name == 'the model')} from the one here"
                told = told.replace(
                    "problems there differ from the one", "problems differ from those"
                )
            raise UserError(
                f"{path} is of another evaluation: {told}; expected another output_dir (--out), "
                "or the same command to go on with it"
            )


_TYPES = (int, int, str, str, str, str | None, bool, int, int, bool)


def _completion(values: dict) -> Completion:
    """The inverse of `_asdict`; KeyError or TypeError if a field is missing or of another type."""
    for name, kind in zip(Completion._fields[:-1], _TYPES, strict=True):
        if not isinstance(values[name], kind):
            raise TypeError(
                f"{name} is {values[name]!r:.40}; expected {getattr(kind, '__name__', kind)}"
            )
    return Completion(*(values[name] for name in Completion._fields[:-1]), values.get("ids", []))


def read_completions(path: Path) -> list[Completion]:
    """The completions of a file, in its order; none if it is not there.

    A half-written last line is cut off from the file, so that it can be gone on with.

    Raises:
      UserError: naming the line that holds no completion.
    """
    cut_incomplete_end(path)
    return read_jsonl(path, _completion)


def append_completions(path: Path, rows: Iterable[Completion]) -> None:
    """Adds lines at the end of the file, and does not return before they are in it."""
    lines = []
    for row in rows:
        values = row._asdict()
        if not row.ids:
            del values["ids"]
        lines.append(values)
    append_jsonl(path, lines)
