"""One evaluation of one model on one data set, read from its files and checked."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iapo_jax.errors import UserError
from iapo_jax.evaluation.records import FORMAT
from iapo_jax.information.inspection import Inspection
from iapo_jax.runtime.files import read_json, read_jsonl

_PER_TOKEN = {"informativeness": 0, "entropy": 0, "log_prob": 0, "uncertainty": 1}  # more than T


_TABLES = ("correct", "length", "finished", "votes")


_TEXTS = ("prompt", "completion", "estimator", "postfix")


class Samples(NamedTuple):
    """One member of one model on one data set: P problems, N completions of each."""

    path: Path
    model: str  # the label of the command line; "before" or "after" in a run directory
    member: int
    members: int  # training seeds under this label
    source: str
    step: int | None
    fingerprint: str  # of the parameters; empty where it is not told
    dataset: str
    settings: dict[str, Any]
    rows: list[int]  # P
    prompts: list[str]  # P
    answers: list[str]  # P, gold
    correct: np.ndarray  # [P, N] bool
    length: np.ndarray  # [P, N] tokens, with the stop token
    finished: np.ndarray  # [P, N] bool; False where the limit cut the completion
    votes: np.ndarray  # [P, N] int; equal numbers = the same answer, -1 = none
    completions: list[dict]  # of the first problems, one each; where the file is there
    inspections: list[Inspection]


def read_samples(path: Path, examples: int) -> Samples | None:
    """One member's file with what lies beside it; None if there is nothing to show of it (yet)."""
    found = read_json(path)
    if "correct" not in found or "format" not in found:
        return None
    if found["format"] != FORMAT:
        raise UserError(f"{path}: format is {found['format']!r}; expected {FORMAT}")
    if found.get("complete") is False:
        return None
    lists = {name: _list(found, name, path) for name in ("rows", "prompts", "answers")}
    arrays = {name: _array(found, name, path) for name in _TABLES}
    shape = arrays["correct"].shape
    for name, value in (lists | arrays).items():
        has = np.shape(value)[: 1 if name in lists else 2]
        if has != shape[: len(has)]:
            raise UserError(f"{path}: {name} has the shape {has}; expected {shape[: len(has)]}")
    if not all(isinstance(row, int) for row in lists["rows"]):
        raise UserError(f"{path}: rows are not all whole numbers")
    if (arrays["length"] < 1).any():
        raise UserError(f"{path}: a length is {arrays['length'].min()}; expected at least 1")
    for name in ("model", "dataset"):
        if not isinstance(found.get(name), str):
            raise UserError(f"{path}: {name} is {found.get(name)!r}; expected a text")
    settings = found.get("settings")
    shown = set(lists["rows"][:examples])
    completions = [
        row
        for row in read_jsonl(path.with_suffix(".completions.jsonl"))
        if check_texts(row, path.with_suffix(".completions.jsonl"))
        and isinstance(row.get("row"), int)
        and row["row"] in shown
        and row.get("sample") == 0
    ]
    return Samples(
        path=path,
        model=found["model"],
        member=int(number(found.get("member"), 0)),
        members=int(number(found.get("members"), 1)),
        source=str(found.get("source") or ""),
        step=found.get("step"),
        fingerprint=str(found.get("fingerprint") or ""),
        dataset=found["dataset"],
        settings=settings if isinstance(settings, dict) else {},
        rows=lists["rows"],
        prompts=[str(text) for text in lists["prompts"]],
        answers=[str(text) for text in lists["answers"]],
        correct=arrays["correct"].astype(bool),
        length=arrays["length"],
        finished=arrays["finished"].astype(bool),
        votes=arrays["votes"],
        completions=completions,
        inspections=read_inspections(path.with_suffix(".inspections.json")),
    )


def only_rows(one: Samples, rows: set[int]) -> Samples:
    """The samples of these rows of the data set."""
    kept = [index for index, row in enumerate(one.rows) if row in rows]
    lists = {n: [getattr(one, n)[i] for i in kept] for n in ("rows", "prompts", "answers")}
    return one._replace(**lists, **{name: getattr(one, name)[kept] for name in _TABLES})


def read_inspections(path: Path) -> list[Inspection]:
    """The inspections of a file; none if it is not there.

    Raises:
      UserError: naming the file and what one of them lacks.
    """
    if not path.is_file():
        return []
    found = read_json(path, kind=list)
    return [_inspection(one, f"{path}, inspection {n}") for n, one in enumerate(found, 1)]


def _inspection(found: Any, place: str) -> Inspection:
    if not isinstance(found, dict):
        raise UserError(f"{place}: expected an object, found {type(found).__name__}")
    one = Inspection(**{k: v for k, v in found.items() if k in Inspection._fields})
    if not all(isinstance(getattr(one, name), str) for name in _TEXTS) or not all(
        isinstance(text, str | None) for text in (one.answer, one.extracted)
    ):
        raise UserError(f"{place}: a prompt, completion or answer is no text")
    count = len(_list(found, "tokens", place))
    for name, more in _PER_TOKEN.items():
        values = _list(found, name, place)
        if len(values) != count + more or not all(map(is_number, values)):
            raise UserError(f"{place}: {name} is not {count + more} numbers, for {count} tokens")
    if not all(isinstance(text, str) for text in one.tokens):
        raise UserError(f"{place}: tokens are not all texts")
    if not isinstance(one.thinking_length, int) or not 0 <= one.thinking_length <= count:
        raise UserError(f"{place}: thinking_length is {one.thinking_length!r} of {count} tokens")
    return one


def check_texts(row: dict, path: Path) -> bool:
    for name in ("prompt", "completion"):
        if not isinstance(row.get(name), str):
            raise UserError(f"{path}: a row's {name} is {row.get(name)!r}; expected a text")
    return True


def _list(found: dict, name: str, place: Path | str) -> list:
    if not isinstance(found.get(name), list):
        raise UserError(f"{place}: {name} is {found.get(name)!r:.40}; expected a list")
    return found[name]


def _array(found: dict, name: str, path: Path) -> np.ndarray:
    try:
        array = np.array(_list(found, name, path))
    except ValueError:  # rows of unequal length
        array = np.zeros(())
    if array.ndim != 2 or not array.size or array.dtype.kind not in "biu":
        raise UserError(f"{path}: {name} is not a table of problems x samples of whole numbers")
    return array


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, default: float = math.nan) -> float:
    return value if is_number(value) else default
