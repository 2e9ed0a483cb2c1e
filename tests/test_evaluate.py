"""Evaluation: intervals against closed forms, and results that do not depend on the batch."""

import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from iapo_jax import evaluate, rollouts
from iapo_jax.data import Problems
from iapo_jax.evaluate import Estimate, EvalResult, summarise
from iapo_jax.sharding import make_mesh


def result(correct, length, finished=None):
    correct, length = np.asarray(correct, bool), np.asarray(length, np.int32)
    return EvalResult(correct, length, np.ones_like(correct) if finished is None else finished)


def test_figures_by_hand():
    # 3 of 4 right; mean length 20; 0.75 right answers for 20 tokens are 3.75 for 100.
    one = result([[1, 1], [1, 0]], [[10, 10], [20, 40]])
    values = {name: estimate.value for name, estimate in summarise(one).items()}
    assert values == pytest.approx({"accuracy": 0.75, "length": 20.0, "ratio": 3.75})


def test_intervals_are_the_normal_ones():
    # n problems, one sample each: standard errors sqrt(p(1-p)/n) and sd/sqrt(n), times 1.96. With
    # 2000 resamples a percentile is off by about 0.05 standard errors.
    rng = np.random.default_rng(1)
    n = 1000
    correct, length = rng.random((n, 1)) < 0.7, rng.integers(50, 150, (n, 1))
    figures = summarise(result(correct, length))
    p = correct.mean()
    for name, mean, error in (
        ("accuracy", p, math.sqrt(p * (1 - p) / n)),
        ("length", length.mean(), length.std() / math.sqrt(n)),
    ):
        got = figures[name]
        assert got.value == pytest.approx(mean)
        assert got.low == pytest.approx(mean - 1.96 * error, abs=0.2 * error)
        assert got.high == pytest.approx(mean + 1.96 * error, abs=0.2 * error)
    # The ratio's interval by the delta method, with accuracy and length independent.
    ratio = 100 * p / length.mean()
    relative = math.sqrt((1 - p) / p / n + (length.std() / length.mean()) ** 2 / n)
    assert figures["ratio"].low == pytest.approx(ratio * (1 - 1.96 * relative), rel=0.01)
    assert figures["ratio"].high == pytest.approx(ratio * (1 + 1.96 * relative), rel=0.01)


def test_samples_of_a_problem_stay_together():
    # 8 equal samples of a problem tell no more than one: the interval must not shrink.
    rng = np.random.default_rng(2)
    correct, length = rng.random((200, 1)) < 0.5, rng.integers(10, 90, (200, 1))
    once, often = (
        summarise(result(np.tile(correct, (1, k)), np.tile(length, (1, k)))) for k in (1, 8)
    )
    for name in once:
        assert often[name] == pytest.approx(once[name])


def test_the_difference_is_paired():
    # Lengths vary by 300 over problems, but each falls by exactly 10: the difference is certain.
    rng = np.random.default_rng(3)
    length = rng.integers(100, 400, (300, 2))
    correct = rng.random((300, 2)) < 0.5
    before, after = result(correct, length), result(correct, length - 10)
    assert summarise(before, after)["length"] == pytest.approx(Estimate(-10.0, -10.0, -10.0))
    assert summarise(before, after)["accuracy"] == Estimate(0.0, 0.0, 0.0)
    assert summarise(before, before)["ratio"] == Estimate(0.0, 0.0, 0.0)
    apart = summarise(before)["length"].high - summarise(before)["length"].low
    assert apart > 10


def test_the_differences_interval_is_the_normal_one():
    rng = np.random.default_rng(4)
    before, after = rng.random((800, 1)) < 0.6, rng.random((800, 1)) < 0.7
    ones = np.full((800, 1), 10)
    got = summarise(result(before, ones), result(after, ones))["accuracy"]
    gain = after.astype(float) - before
    error = gain.std() / math.sqrt(800)
    assert got.value == pytest.approx(gain.mean())
    assert got.low == pytest.approx(gain.mean() - 1.96 * error, abs=0.2 * error)
    assert got.high == pytest.approx(gain.mean() + 1.96 * error, abs=0.2 * error)


def test_the_same_result_gives_the_same_interval():
    rng = np.random.default_rng(5)
    one = result(rng.random((50, 2)) < 0.5, rng.integers(1, 9, (50, 2)))
    assert summarise(one) == summarise(one)


def test_the_table_says_what_was_measured():
    cut = np.array([[True], [True], [True], [False]])
    before = result([[1], [0], [1], [0]], [[20], [20], [20], [20]], cut)
    after = result([[1], [1], [1], [1]], [[10], [10], [10], [10]])
    lines = evaluate.table(before, after).splitlines()
    assert lines[0].split() == ["before", "after", "difference"]
    accuracy, length, ratio, limit, count = lines[1:]
    assert accuracy.startswith("accuracy ") and "0.500 [" in accuracy and "+0.500 [" in accuracy
    assert "1.000 [1.000, 1.000]" in accuracy
    assert "20.0 [20.0, 20.0]" in length and "-10.0 [-10.0, -10.0]" in length
    assert "10.00 [10.00, 10.00]" in ratio  # 1.0 / 10 tokens
    assert limit.split()[-2:] == ["25.0%", "0.0%"]
    assert count.startswith("4 held-out problems, 1 sample(s) each")


# ------------------------------------------------------------------------------- with a model


class Letters:
    """Token i is the i-th letter."""

    def batch_decode(self, rows, skip_special_tokens, clean_up_tokenization_spaces):
        return ["".join(chr(ord("0") + int(i)) for i in row) for row in rows]


@pytest.fixture(scope="module")
def evaluated(tiny_config, tiny_model, tiny_params):
    """`evaluated(prompts_per_batch, mesh)`: 7 problems, 3 samples each."""
    rng = np.random.default_rng(0)
    tokens = [rng.integers(2, tiny_config.vocab_size, n).tolist() for n in (3, 9, 1, 4, 4, 6, 2)]
    problems = Problems([f"q{i}" for i in range(7)], tokens, ["1"] * 7, [{}] * 7, 0)

    def run(prompts_per_batch, mesh=(1, 1, 1)):
        opened = SimpleNamespace(
            config=tiny_config,
            tokenizer=Letters(),
            stop_ids=[1, 2, 3],
            allowed=np.ones(tiny_config.vocab_size, bool),
        )
        surroundings = SimpleNamespace(
            mesh=make_mesh(*mesh), model=tiny_model, pretrained=opened, output_dir=None
        )
        sampling = SimpleNamespace(temperature=1.0, top_k=0, top_p=1.0, gather_weights=True)
        sampler = rollouts.make_sampler(
            surroundings, problems, num_generations=3, max_length=12, sampling=sampling
        )
        counted = []
        found = evaluate.evaluate(
            sampler,
            tiny_params,
            problems,
            prompts_per_batch=prompts_per_batch,
            seed=5,
            advance=counted.append,
        )
        assert sum(counted) == 7
        return found

    return run


@pytest.fixture(scope="module")
def in_one_batch(evaluated):
    return evaluated(7)


def test_an_evaluation_counts_every_sample(in_one_batch):
    assert in_one_batch.correct.shape == in_one_batch.length.shape == (7, 3)
    assert (in_one_batch.length >= 1).all() and (in_one_batch.length <= 12).all()
    # What did not finish is as long as the limit; random tokens differ.
    assert (in_one_batch.length[~in_one_batch.finished] == 12).all()
    assert len(np.unique(in_one_batch.length)) > 3
    assert not in_one_batch.correct.any()


@pytest.mark.parametrize("size, mesh", [(2, (1, 1, 1)), (8, (2, 4, 1))])
def test_the_batch_size_does_not_change_the_result(evaluated, in_one_batch, size, mesh):
    jax.tree.map(np.testing.assert_array_equal, evaluated(size, mesh), in_one_batch)


def test_a_result_is_written_and_read_back(in_one_batch, tmp_path):
    path = tmp_path / "eval" / "before.json"
    assert evaluate.read_result(path, "these problems") is None
    evaluate.write_result(path, in_one_batch, "these problems")
    again = evaluate.read_result(path, "these problems")
    jax.tree.map(np.testing.assert_array_equal, again, in_one_batch)
    assert evaluate.read_result(path, "other problems") is None
