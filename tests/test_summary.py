"""Several models on one dataset: pairs, seeds, the table."""

import numpy as np
import pytest

from iapo_jax.errors import UserError
from iapo_jax.evaluation import summary
from iapo_jax.evaluation.records import Record


def record(model="a", rows=range(40), seed=0, shift=0, member=1, members=1, **changed):
    """Right with probability 0.7, of 20 to 60 tokens less `shift`; 4 samples."""
    rng = np.random.default_rng(seed)
    rows = list(rows)
    correct = rng.random((len(rows), 4)) < 0.7
    length = rng.integers(20, 60, (len(rows), 4)) - shift
    fields = dict(
        model=model,
        member=member,
        members=members,
        source="",
        step=None,
        dataset="sums:test",
        dataset_name="sums",
        settings={"num_samples": 4},
        fingerprint="",
        problems="",
        environment={},
        rows=rows,
        prompts=[f"q{row}" for row in rows],
        answers=[str(row) for row in rows],
        correct=correct.tolist(),
        length=length.tolist(),
        finished=np.ones_like(correct).tolist(),
        votes=np.where(correct, 0, 1).tolist(),
        thinking_length=length.tolist(),
    )
    return Record(**(fields | changed))


def find(rows, name, **where):
    (row,) = (r for r in rows if r["name"] == name and all(r[key] == x for key, x in where.items()))
    return row


def test_figures_and_differences_are_named_by_pair():
    a, b, c = record("a"), record("b", shift=10), record("c", seed=2)
    told = summary.summarize([a, b, c], (1, 4), (30,))
    assert told["k"] == [1, 4]
    values = {m: find(told["figures"], "length", model=m)["value"] for m in "abc"}
    assert values["a"] == pytest.approx(np.mean(a.length))
    gap = find(told["differences"], "length", model="b", baseline="a")
    assert (gap["value"], gap["low"], gap["high"]) == pytest.approx((-10, -10, -10))
    pairs = {(row["model"], row["baseline"]) for row in told["differences"]}
    assert pairs == {("b", "a"), ("c", "a"), ("c", "b")}
    matched = find(told["differences"], "accuracy_at_matched_length", model="b", baseline="a")
    assert matched["cut"] == "a" and matched["budget"] < 60
    assert matched["value"] == pytest.approx(matched["model_value"] - matched["baseline_value"])


def test_seeds_of_one_label_are_one_model():
    seeds = [record("a", seed=s, member=s + 1, members=3) for s in range(3)]
    told = summary.summarize([*seeds, record("b", seed=9)])
    found = find(told["figures"], "accuracy", model="a")
    assert found["value"] == pytest.approx(np.mean([one.correct for one in seeds]))
    assert told["datasets"][0]["members"] == {"a": 3, "b": 1}
    assert "a: 3 training seeds" in summary.table(told)


def test_only_problems_that_all_models_have_are_compared():
    some = record("a", rows=range(0, 30))
    other = record("b", rows=range(10, 40), seed=1)
    told = summary.summarize([some, other])
    assert told["datasets"][0]["problems"] == 20
    found = find(told["figures"], "accuracy", model="a")["value"]
    assert found == pytest.approx(np.mean(some.correct[10:]))


def test_other_problems_are_refused():
    with pytest.raises(UserError, match="no problem in common"):
        summary.summarize([record("a"), record("b", rows=range(100, 140))])
    with pytest.raises(UserError, match="row 1: the reference answer is 'x' for b"):
        summary.summarize([record("a"), record("b", answers=["x"] * 40)])


def test_two_data_sets_are_never_averaged():
    told = summary.summarize([record("a"), record("a", dataset="other:test", seed=1)])
    assert len([r for r in told["figures"] if r["name"] == "accuracy"]) == 2
    assert summary.table(told).count("problems, 4 samples each") == 2


def test_what_has_no_value_is_null_and_a_dash():
    never = record("a", correct=np.zeros((40, 4), bool).tolist(), votes=np.ones((40, 4)).tolist())
    told = summary.summarize([never])
    assert find(told["figures"], "tokens_per_right_answer")["value"] is None
    (line,) = (x for x in summary.table(told).splitlines() if "tokens per correct" in x)
    assert line.split()[-1] == "-"


def test_the_table_shows_every_model_also_many():
    told = summary.summarize([record(f"model_{i}", seed=i) for i in range(9)])
    text = summary.table(told)
    assert all(f"model_{i}" in text for i in range(9))
    assert max(map(len, text.splitlines())) <= 140
