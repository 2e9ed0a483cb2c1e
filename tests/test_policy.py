"""docs/answers.md: every row of its two tables is a test."""

from pathlib import Path

import pytest

from iapo_jax.answers import AnswerChecker, extract_answer

PAGE = (Path(__file__).parents[1] / "docs" / "answers.md").read_text(encoding="utf-8")


def rows(columns):
    """The cells of the page's table with so many columns; backticks are quotes."""
    lines = [line for line in PAGE.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]

    def unquote(cell):
        return cell[1:-1] if cell.startswith("`") else cell

    return [[unquote(cell) for cell in row] for row in cells if len(row) == columns]


EXTRACTIONS, VERDICTS = rows(3), rows(5)


@pytest.fixture(scope="module")
def checker():
    with AnswerChecker(1, timeout=1.5) as checker:
        yield checker


def test_every_row_was_read():
    table = [line for line in PAGE.splitlines() if line.startswith("|")]
    assert len(table) == len(EXTRACTIONS) + len(VERDICTS) + 4  # two headers, two rules
    assert len(EXTRACTIONS) > 25 and len(VERDICTS) > 60


@pytest.mark.parametrize("completion, answer, rule", EXTRACTIONS)
def test_extraction(completion, answer, rule):
    expected = None if answer == "none" else answer
    assert extract_answer(completion.replace("⏎", "\n")) == expected, rule


@pytest.mark.parametrize("answer, gold, kind, verdict, rule", VERDICTS)
def test_equivalence(checker, answer, gold, kind, verdict, rule):
    assert verdict in ("correct", "incorrect")
    assert checker.check([(answer, gold)], kinds=[kind]) == [verdict == "correct"], rule


@pytest.mark.parametrize("answer, gold, kind, verdict, rule", VERDICTS)
def test_most_verdicts_do_not_depend_on_which_side_is_gold(
    checker, answer, gold, kind, verdict, rule
):
    if kind or gold == "B":  # a choice is asked of the gold answer
        return
    assert checker.check([(gold, answer)]) == [verdict == "correct"], rule
