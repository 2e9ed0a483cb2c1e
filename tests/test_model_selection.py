"""Choosing a checkpoint."""

import itertools

import numpy as np
import pytest

from iapo_jax.config.sections import PromptSection
from iapo_jax.config.train import SelectionSection
from iapo_jax.data.loading import Row
from iapo_jax.data.problems import make_problems
from iapo_jax.errors import UserError
from iapo_jax.training.checkpoint_selection import (
    Candidate,
    choose,
    chosen_step,
    split_problems,
)

START = Candidate(0, 0.90, 100.0, 0.0090)


def candidate(step, accuracy, length):
    return Candidate(step, accuracy, length, accuracy / length)


def section(**changed):
    return SelectionSection(**({"problems": 8} | changed))


def test_by_accuracy_the_most_accurate_and_of_equals_the_shortest():
    many = [START, candidate(1, 0.91, 80), candidate(2, 0.93, 90), candidate(3, 0.93, 70)]
    assert choose(many, section(criterion="accuracy")).step == 3


def test_by_ratio_the_shortest_that_is_accurate_enough():
    many = [
        START,
        candidate(1, 0.91, 80),
        candidate(2, 0.88, 50),
        candidate(3, 0.60, 5),  # stops at once: a fine ratio, and no model that anyone wants
    ]
    assert choose(many, section()).step == 2
    assert choose(many, section(tolerance=0.0)).step == 1
    assert choose(many, section(tolerance=1.0)).step == 3


def test_where_none_is_accurate_enough_the_most_accurate_is_chosen():
    many = [START, candidate(1, 0.70, 20), candidate(2, 0.80, 90)]
    assert choose(many, section()).step == 2


def test_the_earliest_of_equals_and_never_the_start():
    many = [START, candidate(2, 0.9, 50), candidate(1, 0.9, 50)]
    assert choose(sorted(many), section()).step == 1
    assert choose([START], section()) is None
    assert choose([], section()) is None


def test_the_best_so_far_is_the_best_in_the_end():
    # A checkpoint that is not the best so far is deleted: it must never be wanted again.
    rng = np.random.default_rng(0)
    for criterion, _ in itertools.product(("accuracy", "ratio"), range(200)):
        many = [START]
        kept = None
        for step in range(1, 7):
            many.append(candidate(step, rng.choice([0.7, 0.87, 0.88, 0.9]), rng.integers(5, 120)))
            best = choose(many, section(criterion=criterion)).step
            assert best in (kept, step)
            kept = best


class Words:
    chat_template = None

    def encode(self, text, add_special_tokens, verbose):
        return text.split()


def test_the_split_is_the_same_whatever_the_order():
    rows = [Row(f"{i} + {j}", str(i + j), {}) for i in range(10) for j in range(10)]

    def build(rows):
        return make_problems(rows, Words(), PromptSection(), 50)

    training, held = split_problems(build(rows), section(problems=20), 3)
    again, other = split_problems(build(rows[::-1]), section(problems=20), 3)
    assert len(held.texts) == len(held.answers) == len(held.rows) == 20
    assert len(training.texts) == 80 and not set(training.questions) & set(held.questions)
    assert set(held.questions) == set(other.questions)
    assert [rows[i].question for i in held.rows] == list(held.questions)
    assert set(split_problems(build(rows), section(problems=20), 4)[1].questions) != set(
        held.questions
    )
    assert split_problems(build(rows), section(problems=0), 3) == (build(rows), None)
    with pytest.raises(UserError, match="selection.problems is 100: cannot hold out 100 of 100"):
        split_problems(build(rows), section(problems=100), 3)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("{", " is not JSON"),
        ("[1]", r" is \[1\]; expected an object"),
        ('{"step": 4}', ": 'accuracy' is missing"),
        (
            '{"step": "4", "accuracy": 1, "length": 1, "ratio": 1}',
            ": step is '4'; expected the res",
        ),
    ],
)
def test_a_damaged_selection_is_named(tmp_path, text, expected):
    (tmp_path / "selection.jsonl").write_text(text + "\n")
    with pytest.raises(UserError, match=f"selection.jsonl, line 1{expected}"):
        chosen_step(tmp_path)
    assert chosen_step(tmp_path / "elsewhere") is None
