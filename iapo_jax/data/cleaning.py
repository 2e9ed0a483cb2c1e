"""Applies a recipe to the raw rows of its dataset.

If the dataset repeats its questions, also repairs them and keeps each once. For rows without a
recipe, finds those that ask the same question.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from iapo_jax.answers.checker import answers_match
from iapo_jax.data.catalogue import DataSet, read_integer
from iapo_jax.data.questions import normalize, question_text, repair
from iapo_jax.errors import UserError

_READ_COLUMNS = {"prompt", "question", "answer", "problem", "expected_answer", "answerKey"}


# question, gold answer, the other columns with "kind", the row of the file (from 1)
Problem = tuple[str, str, dict[str, Any], int]


class _Raw(NamedTuple):
    question: str
    gold: str
    columns: dict[str, Any]
    number: int  # of the first such row, from 1
    times: int  # how often the row occurs


def clean_rows(
    rows: Iterable[dict], recipe: DataSet, source: str
) -> tuple[list[Problem], list[str]]:
    """The problems that a recipe reads, and notes about what it changed.

    Raises:
      UserError: naming the source and the row (counted from 1).
    """
    if recipe.repeats:
        raw = _read_repeating(rows, recipe, source)
        return _clean_repeating(raw, recipe)
    raw = list(_read_rows(rows, recipe, source))
    problems, rewritten = [], []
    for question, gold, columns, number, _ in raw:
        answer = _plain(gold, recipe)
        if answer is None:
            raise UserError(
                f"{source}, row {number}: the answer is {gold!r:.60}; expected an integer"
            )
        if answer != gold:
            rewritten.append((gold, answer))
        problems.append((question, answer, columns, number))
    return problems, _rewritten_note(rewritten)


def _plain(gold: str, recipe: DataSet) -> str | None:
    return read_integer(gold) if recipe.kind == "integer" else gold


def _read_rows(rows: Iterable[dict], recipe: DataSet, source: str) -> Iterable[_Raw]:
    for number, row in enumerate(rows, start=1):
        try:
            question, gold = recipe.read(row)
        except ValueError as error:
            raise UserError(f"{source}, row {number}: {error}") from None
        columns = {name: value for name, value in row.items() if name not in _READ_COLUMNS}
        yield _Raw(question, gold, columns | {"kind": recipe.kind}, number, 1)


def _read_repeating(rows: Iterable[dict], recipe: DataSet, source: str) -> list[_Raw]:
    """Each (question, answer) once: the hub's 1.8 million DAPO rows need not fit in memory."""
    first: dict[tuple[str, str], _Raw] = {}
    times: Counter[tuple[str, str]] = Counter()
    for raw in _read_rows(rows, recipe, source):
        key = raw.question, raw.gold
        times[key] += 1
        first.setdefault(key, raw)
    return [raw._replace(times=times[key]) for key, raw in first.items()]


def _clean_repeating(raw: list[_Raw], recipe: DataSet) -> tuple[list[Problem], list[str]]:
    damaged = unreadable = repaired = 0
    rewritten: list[tuple[str, str]] = []
    problems: dict[str, Problem] = {}
    golds: dict[str, set[str]] = {}
    times: Counter[str] = Counter()
    for question, gold, columns, number, count in raw:
        text, answer = repair(question), _plain(gold, recipe)
        if text is None:
            damaged += count
            continue
        if answer is None:
            unreadable += count
            continue
        if text != question:
            repaired += count
        if answer != gold:
            rewritten.append((gold, answer))
        key = normalize(text)
        problems.setdefault(key, (text.strip(), answer, columns, number))
        golds.setdefault(key, set()).add(answer)
        times[key] += count
    two = {key for key, found in golds.items() if len(found) > 1}
    kept = [problem for key, problem in problems.items() if key not in two]
    duplicates = sum(times[key] - 1 for key in problems.keys() - two)
    done = [
        (repaired, "row", r"repaired (such as a form feed in place of the \f of \frac)"),
        (damaged, "row", "left out because of damage with no certain repair"),
        (unreadable, "row", "left out because the answer is not an integer"),
        (duplicates, "duplicate", "left out"),
        (
            len(two),
            "question",
            f"left out because of two answers ({sum(times[k] for k in two):,} rows)",
        ),
    ]
    parts = [f"{_count(number, noun)} {what}" for number, noun, what in done if number]
    read = sum(row.times for row in raw)
    notes = [f"{read:,} rows read: {'; '.join(parts)}; {len(kept):,} remain"] if parts else []
    return kept, notes + _rewritten_note(rewritten)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _rewritten_note(rewritten: list[tuple[str, str]]) -> list[str]:
    if not rewritten:
        return []
    old, new = rewritten[0]
    return [f"{_count(len(rewritten), 'answer')} rewritten; the first was {old} and is now {new}"]


# ------------------------------------------------------------------- rows without a recipe


def name_rows(numbers: Sequence[int], most: int = 5) -> str:
    """`row 3`, `rows 3 and 17`, `rows 1, 2, 3, 4, 5 and 7 more`."""
    shown = [str(number) for number in numbers[:most]]
    more = len(numbers) - len(shown)
    if more:
        shown.append(f"{more:,} more")
    if len(shown) == 1:
        return f"row {shown[0]}"
    return f"rows {', '.join(shown[:-1])} and {shown[-1]}"


def check_repeats(
    rows: Sequence[tuple[Any, str, dict[str, Any]]],
    source: str,
    *,
    strict: bool = False,
    lenient: bool = False,
    field: str = "data.strict",
) -> list[str]:
    """Notes about rows (question, answer, columns) that repeat a question.

    Two questions are the same if their normal forms are equal. If the answers differ, the case of
    all letters must be equal as well, since a question may be about capital letters.

    Args:
      strict: whether repeated questions are an error.
      lenient: whether two answers to a question are a note instead of an error.
      field: the name of `strict` in the config, for the error.

    Raises:
      UserError: if a question has two answers and not `lenient`, or is repeated and `strict`.
    """
    first: dict[str, int] = {}
    repeats: list[tuple[int, int]] = []
    conflicts: list[tuple[int, int]] = []
    for number, row in enumerate(rows, start=1):
        earlier = first.setdefault(normalize(row[0]), number)
        if earlier == number:
            continue
        if _same_gold(rows[earlier - 1], row):
            repeats.append((earlier, number))
        elif _letters(rows[earlier - 1][0]) == _letters(row[0]):
            conflicts.append((earlier, number))
    notes = []
    if conflicts:
        earlier, later = conflicts[0]
        more = f" (the first of {len(conflicts):,} such pairs)" if len(conflicts) > 1 else ""
        sentence = (
            f"{source}: rows {earlier} and {later} ask the same question with the answers "
            f"{rows[earlier - 1][1]!r:.60} and {rows[later - 1][1]!r:.60}{more}"
        )
        if strict or not lenient:
            raise UserError(f"{sentence}; expected one answer for each question")
        notes.append(sentence)
    if repeats:
        pairs = [name_rows(pair) for pair in repeats[:3]]
        if len(repeats) > 3:
            pairs.append("...")
        verb = "row repeats" if len(repeats) == 1 else "rows repeat"
        sentence = f"{source}: {len(repeats):,} {verb} an earlier question: {'; '.join(pairs)}"
        if strict:
            raise UserError(f"{sentence}; {field}=true does not allow repeated questions")
        notes.append(sentence)
    return notes


def _same_gold(row: tuple, other: tuple) -> bool:
    (_, first, columns), (_, second, _) = row, other
    if first == second:
        return True
    kind = columns.get("kind")
    return answers_match(first, second, kind=kind) or answers_match(second, first, kind=kind)


def _letters(question: Any) -> list[str]:
    return [letter for letter in question_text(question) if letter.isalpha()]
