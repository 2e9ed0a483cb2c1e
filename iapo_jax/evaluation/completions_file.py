"""NAME.completions.jsonl: one line for every completion of an evaluation. No JAX."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from iapo_jax.answers.checker import same_answer
from iapo_jax.runtime.files import append_jsonl, cut_incomplete_end, read_jsonl


class Completion(NamedTuple):
    """One sample of one problem, with the verdict on its answer."""

    row: int  # of the dataset, from 0
    sample: int  # from 0
    prompt: str
    completion: str
    answer: str  # the reference answer
    extracted: str | None  # the completion's answer
    correct: bool
    length: int  # tokens, with the stop token
    thinking_length: int  # tokens before the end of thinking
    finished: bool  # False where the length limit truncated it
    ids: list[int] = []  # of the tokens, for completions that are to be probed


_TYPES = {
    "row": int,
    "sample": int,
    "prompt": str,
    "completion": str,
    "answer": str,
    "extracted": str | None,
    "correct": bool,
    "length": int,
    "thinking_length": int,
    "finished": bool,
}


def read_completions(path: Path) -> list[Completion]:
    """The completions of a file, in its order; an empty list if there is no file.

    A half-written last line is cut off the file, so that more lines can be appended.

    Raises:
      UserError: naming the line that does not hold a completion.
    """
    cut_incomplete_end(path)
    return read_jsonl(path, _parse)


def _parse(values: dict[str, Any]) -> Completion:
    """The inverse of `_asdict`; KeyError or TypeError if a field is missing or of another type."""
    for name, kind in _TYPES.items():
        if not isinstance(values[name], kind):
            expected = getattr(kind, "__name__", kind)
            raise TypeError(f"{name} is {values[name]!r:.40}; expected {expected}")
    return Completion(**{name: values[name] for name in _TYPES}, ids=values.get("ids", []))


def append_completions(path: Path, completions: Iterable[Completion]) -> None:
    """Appends a line for each completion; returns once the file holds them."""
    rows = [completion._asdict() for completion in completions]
    append_jsonl(path, [row if row["ids"] else _without_ids(row) for row in rows])


def _without_ids(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "ids"}


def cast_votes(samples: Sequence[Completion]) -> list[int]:
    """The answer of each sample of one problem as a number: 0 is correct, -1 is no answer.

    Incorrect answers share a number if they are certainly equal without algebra: 1/2 and 0.5 do,
    x+1 and 1+x do not.
    """
    representatives: list[str] = []
    known: dict[str, int] = {}
    votes = []
    for sample in samples:
        if sample.correct:
            votes.append(0)
        elif not sample.extracted:
            votes.append(-1)
        else:
            if sample.extracted not in known:
                same = (text for text in representatives if _same(text, sample.extracted))
                first = next(same, sample.extracted)
                if first == sample.extracted:
                    representatives.append(first)
                known[sample.extracted] = representatives.index(first) + 1
            votes.append(known[sample.extracted])
    return votes


def _same(one: str, other: str) -> bool:
    return same_answer(one, other) or same_answer(other, one)
