"""What a recipe makes of the raw rows of its data set: read, repaired, each question once.

And of rows without a recipe: which of them ask the same question.
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


def clean_rows(rows: Iterable[dict], one: DataSet, source: str) -> tuple[list[Problem], list[str]]:
    """Problems as a recipe reads them, and sentences about what was done to them.

    Raises:
      UserError: naming the source and the row (counted from 1).
    """
    if one.repeats:
        raw = _read_repeating(rows, one, source)
        return _clean_repeating(raw, one)
    raw = list(_read_rows(rows, one, source))
    problems, rewritten = [], []
    for question, gold, columns, number, _ in raw:
        answer = _plain(gold, one)
        if answer is None:
            raise UserError(f"{source}, row {number}: the gold answer {gold!r:.60} is no integer")
        if answer != gold:
            rewritten.append((gold, answer))
        problems.append((question, answer, columns, number))
    return problems, _rewritten_note(rewritten)


def _plain(gold: str, one: DataSet) -> str | None:
    return read_integer(gold) if one.kind == "integer" else gold


def _read_rows(rows: Iterable[dict], one: DataSet, source: str) -> Iterable[_Raw]:
    for number, row in enumerate(rows, start=1):
        try:
            question, gold = one.read(row)
        except ValueError as error:
            raise UserError(f"{source}, row {number}: {error}") from None
        columns = {name: value for name, value in row.items() if name not in _READ_COLUMNS}
        yield _Raw(question, gold, columns | {"kind": one.kind}, number, 1)


def _read_repeating(rows: Iterable[dict], one: DataSet, source: str) -> list[_Raw]:
    """Each (question, gold) once: the hub's 1.8 million DAPO rows never lie in memory together."""
    first: dict[tuple[str, str], _Raw] = {}
    times: Counter[tuple[str, str]] = Counter()
    for raw in _read_rows(rows, one, source):
        key = raw.question, raw.gold
        times[key] += 1
        first.setdefault(key, raw)
    return [raw._replace(times=times[key]) for key, raw in first.items()]


def _clean_repeating(raw: list[_Raw], one: DataSet) -> tuple[list[Problem], list[str]]:
    damaged = unreadable = repaired = 0
    rewritten: list[tuple[str, str]] = []
    problems: dict[str, Problem] = {}
    golds: dict[str, set[str]] = {}
    times: Counter[str] = Counter()
    for question, gold, columns, number, count in raw:
        text, answer = repair(question), _plain(gold, one)
        if text is None or answer is None:
            damaged, unreadable = damaged + count * (text is None), unreadable + count * bool(text)
            continue
        repaired += count * (text != question)
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
        (repaired, "row", r"damaged (such as a form feed where \f of \frac stood) and repaired"),
        (damaged, "row", "damaged beyond certain repair left out"),
        (unreadable, "row", "left out whose gold is no integer"),
        (duplicates, "duplicate", "left out"),
        (len(two), "question", f"with two golds left out ({sum(times[k] for k in two):,} rows)"),
    ]
    parts = [f"{_count(number, noun)} {what}" for number, noun, what in done if number]
    read = sum(row.times for row in raw)
    notes = [f"{read:,} read: {'; '.join(parts)}; {len(kept):,} remain"] if parts else []
    return kept, notes + _rewritten_note(rewritten)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _rewritten_note(rewritten: list[tuple[str, str]]) -> list[str]:
    if not rewritten:
        return []
    old, new = rewritten[0]
    return [f"{_count(len(rewritten), 'gold')} written otherwise: the first was {old}, now {new}"]


# ------------------------------------------------------------------- rows without a recipe


def name_rows(numbers: Sequence[int], most: int = 5) -> str:
    """`row 3`, `rows 3 and 17`, `rows 1, 2, 3, 4, 5 and 7 more`."""
    shown = [str(number) for number in numbers[:most]]
    more = len(numbers) - len(shown)
    if more:
        shown.append(f"{more:,} more")
    return "row" + "s" * (len(numbers) > 1) + " " + " and ".join(_but_last(shown))


def _but_last(words: list[str]) -> list[str]:
    return [", ".join(words[:-1]), words[-1]] if len(words) > 1 else words


def check_repeats(
    rows: Sequence[tuple[Any, str, dict[str, Any]]],
    source: str,
    *,
    strict: bool = False,
    lenient: bool = False,
) -> list[str]:
    """Sentences about rows (question, gold answer, columns) that ask a question a second time.

    The same question is one of the same normal form. Where the answers differ, its letters must be
    the same in case, too: which letter is a capital may be what is asked.

    Args:
      strict: such rows are an error.
      lenient: two answers to a question are said, and no error.

    Raises:
      UserError: if a question has two answers, or is there twice and that is an error.
    """
    first: dict[str, int] = {}
    again: list[tuple[int, int]] = []
    against: list[tuple[int, int]] = []
    for number, row in enumerate(rows, start=1):
        earlier = first.setdefault(normalize(row[0]), number)
        if earlier == number:
            continue
        if _same_gold(rows[earlier - 1], row):
            again.append((earlier, number))
        elif _letters(rows[earlier - 1][0]) == _letters(row[0]):
            against.append((earlier, number))
    told = []
    if against:
        one, other = against[0]
        more = f" (the first of {len(against):,} such pairs)" if len(against) > 1 else ""
        sentence = (
            f"{source}: rows {one} and {other} ask the same question and answer it "
            f"{rows[one - 1][1]!r:.60} and {rows[other - 1][1]!r:.60}{more}"
        )
        if strict or not lenient:
            raise UserError(f"{sentence}; expected one answer for each question")
        told.append(sentence)
    if again:
        pairs = "; ".join(name_rows(pair) for pair in again[:3]) + "; ..." * (len(again) > 3)
        asks = "row asks" if len(again) == 1 else "rows ask"
        sentence = f"{source}: {len(again):,} {asks} a question that is there before: {pairs}"
        if strict:
            raise UserError(f"{sentence}; expected each question once (strict)")
        told.append(sentence)
    return told


def _same_gold(one: tuple, other: tuple) -> bool:
    if one[1] == other[1]:
        return True
    kind = one[2].get("kind")
    return answers_match(one[1], other[1], kind=kind) or answers_match(other[1], one[1], kind=kind)


def _letters(question: Any) -> list[str]:
    return [letter for letter in question_text(question) if letter.isalpha()]
