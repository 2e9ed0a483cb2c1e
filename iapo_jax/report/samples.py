"""One evaluation of one model on one data set, with the texts that lie beside it."""

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
    """One member of one model on one data set."""

    path: Path  # of the record
    record: Record
    completions: list[dict[str, Any]]  # the first sample of the first problems, if the file exists
    inspections: list[Inspection]


def read_samples(path: Path, examples: int) -> Samples | None:
    """One member's record and the texts of its first `examples` problems.

    None if the file is not an evaluation of this format, or not a complete one.

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
    rows = read_jsonl(texts)
    check_texts(rows, texts)
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


def check_texts(rows: list[dict[str, Any]], path: Path) -> None:
    """Raises unless every row has the texts of a prompt and of a completion.

    Raises:
      UserError: naming the file and the field.
    """
    for row in rows:
        for name in ("prompt", "completion"):
            if not isinstance(row.get(name), str):
                raise UserError(f"{path}: a row's {name} is {row.get(name)!r:.40}; expected a text")


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
            raise UserError(f"{place}: {name} is {value!r:.40}; expected a text")
    count = len(_list(values, "tokens", place))
    if not all(isinstance(text, str) for text in one.tokens):
        raise UserError(f"{place}: tokens are not all texts")
    for name, more in _MORE_THAN_TOKENS.items():
        numbers = _list(values, name, place)
        if len(numbers) != count + more or not all(map(is_number, numbers)):
            raise UserError(f"{place}: {name} is not {count + more} numbers, for {count} tokens")
    for name in ("prompt_ids", "answer_ids", "answer_meanings"):
        if not isinstance(getattr(one, name), list):
            raise UserError(f"{place}: {name} is {getattr(one, name)!r:.40}; expected a list")
    if not all(isinstance(meaning, int) for meaning in one.answer_meanings):
        raise UserError(f"{place}: answer_meanings are not all whole numbers")
    if not isinstance(one.correct, bool | None):
        raise UserError(f"{place}: correct is {one.correct!r:.40}; expected true, false or null")
    if not isinstance(one.thinking_length, int) or not 0 <= one.thinking_length <= count:
        raise UserError(f"{place}: thinking_length is {one.thinking_length!r} of {count} tokens")
    return one


def _list(values: dict[str, Any], name: str, place: str) -> list:
    if not isinstance(values.get(name), list):
        raise UserError(f"{place}: {name} is {values.get(name)!r:.40}; expected a list")
    return values[name]


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any) -> float:
    """The number that a JSON value is; NaN for every other value."""
    return value if is_number(value) else math.nan
