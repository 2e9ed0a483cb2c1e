"""The evaluation of one model on one dataset, with the texts of its completions."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from iapo_jax.errors import UserError
from iapo_jax.evaluation.records import Record, parse_record
from iapo_jax.information.inspection import Inspection
from iapo_jax.runtime.files import read_json, read_jsonl

_MORE_THAN_TOKENS = {"informativeness": 0, "entropy": 0, "log_prob": 0, "uncertainty": 1}
_TEXTS = ("prompt", "completion", "estimator", "postfix")


class Samples(NamedTuple):
    """The evaluation of one member (a training seed) of a model on one dataset."""

    path: Path  # of the record
    record: Record
    completions: list[dict[str, Any]]  # the first sample of the first problems, if the file exists
    inspections: list[Inspection]


def read_samples(path: Path, examples: int) -> Samples | None:
    """One member's record and the texts of its first `examples` problems.

    Returns None if the file is not an evaluation of this format, or is incomplete.

    Raises:
      UserError: naming the file, and what is wrong with it.
    """
    values = read_json(path)
    if "correct" not in values or "format" not in values:
        return None
    record = parse_record(values, path)
    if not record.complete:
        return None
    shown = set(record.rows[:examples])
    texts = path.with_suffix(".completions.jsonl")
    rows = read_texts(texts)
    return Samples(
        path=path,
        record=record,
        completions=[
            row
            for row in rows
            if isinstance(row.get("row"), int) and row["row"] in shown and row.get("sample") == 0
        ],
        inspections=read_inspections(path.with_suffix(".inspections.json")),
    )


def read_texts(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of completions, each with the texts of a prompt and of a completion.

    Raises:
      UserError: naming the file, the line and the field.
    """
    return read_jsonl(path, _with_texts)


def _with_texts(row: dict[str, Any]) -> dict[str, Any]:
    for name in ("prompt", "completion"):
        if not isinstance(row.get(name), str):
            raise ValueError(f"{name} is {row.get(name)!r:.40}; expected a string")
    return row


def read_inspections(path: Path) -> list[Inspection]:
    """The inspections of a file; an empty list if there is no file.

    Raises:
      UserError: naming the file, the inspection and the field.
    """
    if not path.is_file():
        return []
    found = read_json(path, kind=list)
    return [_inspection(one, f"{path}, inspection {n}") for n, one in enumerate(found, 1)]


def _inspection(values: Any, place: str) -> Inspection:
    if not isinstance(values, dict):
        raise UserError(f"{place}: expected an object, found {type(values).__name__}")
    one = Inspection(**{k: v for k, v in values.items() if k in Inspection._fields})
    for name in (*_TEXTS, "answer", "extracted"):
        value = getattr(one, name)
        if not isinstance(value, str) and (name in _TEXTS or value is not None):
            raise UserError(f"{place}: {name} is {value!r:.40}; expected a string")
    count = len(_list(values, "tokens", place))
    for i, text in enumerate(one.tokens):
        if not isinstance(text, str):
            raise UserError(f"{place}: tokens[{i}] is {text!r:.40}; expected a string")
    for name, more in _MORE_THAN_TOKENS.items():
        numbers = _list(values, name, place)
        if len(numbers) != count + more or not all(map(is_number, numbers)):
            raise UserError(
                f"{place}: {name} has {len(numbers)} entries, of which "
                f"{sum(map(is_number, numbers))} are finite numbers; expected {count + more} such "
                f"entries for {count} tokens"
            )
    for name in ("prompt_ids", "answer_ids", "answer_meanings"):
        if not isinstance(getattr(one, name), list):
            raise UserError(f"{place}: {name} is {getattr(one, name)!r:.40}; expected a list")
    for i, meaning in enumerate(one.answer_meanings):
        if not isinstance(meaning, int):
            raise UserError(
                f"{place}: answer_meanings[{i}] is {meaning!r:.40}; expected an integer"
            )
    if not isinstance(one.correct, bool | None):
        raise UserError(f"{place}: correct is {one.correct!r:.40}; expected true, false or null")
    if not isinstance(one.thinking_length, int) or not 0 <= one.thinking_length <= count:
        raise UserError(
            f"{place}: thinking_length is {one.thinking_length!r:.40}; expected an integer from 0 "
            f"to {count}"
        )
    return one


def _list(values: dict[str, Any], name: str, place: str) -> list:
    if not isinstance(values.get(name), list):
        raise UserError(f"{place}: {name} is {values.get(name)!r:.40}; expected a list")
    return values[name]


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any) -> float:
    """A finite JSON number as it is; NaN for any other value."""
    return value if is_number(value) else math.nan
