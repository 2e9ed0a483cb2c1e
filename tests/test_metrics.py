"""Metrics of an evaluation: against enumeration, closed forms and normal intervals."""

import itertools
import math

import numpy as np
import pytest

from iapo_jax.evaluation import intervals, matched_length, metrics
from iapo_jax.evaluation.metrics import Outcomes, Terms


def outcomes(correct, length, votes=None, finished=None):
    correct, length = np.asarray(correct, bool), np.asarray(length)
    votes = np.where(correct, 0, 1) if votes is None else np.asarray(votes)
    return Outcomes(correct, length, np.ones_like(correct) if finished is None else finished, votes)


def enumerated_pass(correct, k):
    draws = list(itertools.combinations(correct, k))
    return sum(any(draw) for draw in draws) / len(draws)


def enumerated_majority(votes, correct, k):
    """Every choice of k samples; among the most voted answers one is drawn by lot."""
    share, draws = 0.0, list(itertools.combinations(range(len(votes)), k))
    for draw in draws:
        counts = {}
        for i in draw:
            if votes[i] >= 0:
                counts[votes[i]] = counts.get(votes[i], 0) + 1
        if counts:
            best = [vote for vote, n in counts.items() if n == max(counts.values())]
            right = {votes[i] for i in range(len(votes)) if correct[i]}
            share += sum(vote in right for vote in best) / len(best)
    return share / len(draws)


@pytest.mark.parametrize("k", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("right", [0, 1, 3, 8])
def test_pass_at_k_is_the_share_of_all_choices(right, k):
    correct = [True] * right + [False] * (8 - right)
    found = metrics.pass_at_k(np.asarray([right]), 8, k)
    assert found == pytest.approx([enumerated_pass(correct, k)], abs=1e-12)


def test_pass_at_k_is_not_the_biased_one():
    # 1 - (1 - c/n)^k, the plug-in estimate, is 0.4375 for n = 4, c = 1, k = 2; the unbiased is 0.5.
    assert metrics.pass_at_k(np.asarray([1]), 4, 2)[0] == pytest.approx(0.5)


@pytest.mark.parametrize("seed", range(12))
def test_majority_at_k_is_the_share_of_all_choices(seed):
    rng = np.random.default_rng(seed)
    votes = rng.integers(-1, 4, (3, 8))
    correct = votes == 0
    for k in range(1, 9):
        found = metrics.majority_at_k(votes, correct, k)
        wanted = [enumerated_majority(v, c, k) for v, c in zip(votes, correct, strict=True)]
        np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_majority_of_one_is_the_accuracy_and_of_all_is_the_vote():
    votes = np.asarray(
        [[0, 0, 1, 2], [0, 1, 1, 1], [0, 0, 1, 1], [-1, -1, -1, 0], [-1, -1, -1, -1]]
    )
    correct = votes == 0
    np.testing.assert_allclose(metrics.majority_at_k(votes, correct, 1), correct.mean(1))
    np.testing.assert_allclose(metrics.majority_at_k(votes, correct, 4), [1, 0, 0.5, 1, 0])


def test_majority_at_k_takes_many_samples():
    # 128 samples, 70 right: the majority of all is right, and no number overflows on the way.
    votes = np.asarray([[0] * 70 + [1] * 58])
    assert metrics.majority_at_k(votes, votes == 0, 128) == pytest.approx([1.0])
    assert 0.5 < metrics.majority_at_k(votes, votes == 0, 65)[0] < 1


def test_majority_at_k_takes_thousands_of_samples():
    # 1,400 of 2,048 right against one rival: choosing 3, two or three must be right.
    votes = np.asarray([[0] * 1400 + [1] * 648])
    wanted = math.comb(1400, 3) + math.comb(1400, 2) * 648
    found = metrics.majority_at_k(votes, votes == 0, 3)
    assert found == pytest.approx([wanted / math.comb(2048, 3)], rel=1e-12)
    assert metrics.majority_at_k(votes, votes == 0, 511)[0] == pytest.approx(1.0)


@pytest.mark.parametrize("k", [0, 5])
def test_k_must_fit_the_samples(k):
    with pytest.raises(ValueError, match="expected 1 to 4"):
        metrics.pass_at_k(np.asarray([1]), 4, k)
    with pytest.raises(ValueError, match="expected 1 to 4"):
        metrics.majority_at_k(np.zeros((1, 4), int), np.ones((1, 4), bool), k)


def test_metrics_by_hand():
    # 3 of 4 right, 80 tokens in all, one of four cut.
    finished = np.asarray([[True, True], [True, False]])
    one = outcomes([[1, 1], [1, 0]], [[10, 10], [20, 40]], finished=finished)
    drawn = intervals.resample(2)
    terms = metrics.metric_terms(one, (1, 2), (10, 20))
    values = {name: intervals.estimate([t], drawn).value for name, t in terms.items()}
    assert values == pytest.approx(
        {
            "accuracy": 0.75,
            "length": 20,
            "length_correct": 40 / 3,
            "length_wrong": 40,
            "cut_share": 0.25,
            "tokens_per_right_answer": 80 / 3,
            "pass@1": 0.75,
            "length@1": 20,
            "ratio@1": 0.75 / 20,
            "majority@1": 0.75,
            "pass@2": 1,
            "length@2": 20,
            "ratio@2": 1 / 20,
            "majority@2": (1 + 0.5) / 2,  # the second problem's vote is a tie
            "accuracy_within@10": 0.5,
            "accuracy_within@20": 0.75,
        }
    )


def test_intervals_are_the_normal_ones():
    # n problems, one sample each: standard errors sqrt(p(1-p)/n) and sd/sqrt(n), times 1.96. With
    # 2000 resamples a percentile is off by about 0.05 standard errors.
    rng = np.random.default_rng(1)
    correct, length = rng.random((1000, 1)) < 0.3, rng.integers(10, 90, (1000, 1))
    terms, drawn = metrics.metric_terms(outcomes(correct, length)), intervals.resample(1000)
    for name, x in (("accuracy", correct), ("length", length)):
        found, error = intervals.estimate([terms[name]], drawn), np.std(x) / math.sqrt(1000)
        assert found.low == pytest.approx(np.mean(x) - 1.96 * error, abs=0.25 * error)
        assert found.high == pytest.approx(np.mean(x) + 1.96 * error, abs=0.25 * error)


def test_samples_of_a_problem_stay_together():
    # If a problem's samples are all correct or all incorrect, 100 of them say no more than one.
    right = np.arange(50)[:, None] < 25
    one, many = (outcomes(np.repeat(right, n, 1), np.full((50, n), 9)) for n in (1, 100))
    drawn = intervals.resample(50)
    a, b = (intervals.estimate([metrics.metric_terms(x)["accuracy"]], drawn) for x in (one, many))
    assert a == b
    assert b.high - b.low > 0.2


def test_a_pair_has_a_narrower_difference_than_two_strangers():
    rng = np.random.default_rng(2)
    hard = rng.random((400, 1))
    before = outcomes(rng.random((400, 8)) < hard, rng.integers(40, 60, (400, 8)))
    after = outcomes(rng.random((400, 8)) < hard, rng.integers(20, 40, (400, 8)))
    drawn = intervals.resample(400)
    a, b = (metrics.metric_terms(x)["accuracy"] for x in (after, before))
    paired = intervals.difference([a], drawn, [b], drawn)
    error = (a.numerator - b.numerator).std() / 20
    assert paired.value == pytest.approx(a.numerator.mean() - b.numerator.mean())
    assert paired.high - paired.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    strangers = math.sqrt(a.numerator.var() + b.numerator.var()) / 20
    assert paired.high - paired.low < 0.7 * 2 * 1.96 * strangers


def test_seeds_are_inside_the_interval():
    # Three seeds that differ by 0.2 each: the problems alone would give no interval at all.
    terms = [Terms(np.full(200, x), np.ones(200)) for x in (0.4, 0.6, 0.8)]
    found = intervals.estimate(terms, intervals.resample(200, 3))
    assert found.value == pytest.approx(0.6)
    # Student's t with 2 degrees of freedom: 0.6 +- 4.30 * 0.2 / sqrt(3), and no share is above 1.
    assert (found.low, found.high) == pytest.approx((0.6 - 4.303 * 0.2 / 3**0.5, 1.0), abs=0.06)
    other = intervals.resample(200, 3, stream=1)
    apart = intervals.difference(terms, intervals.resample(200, 3), terms, other)
    assert apart.low < -0.1 < 0.1 < apart.high


def test_a_share_without_spread_has_an_exact_bound():
    # Clopper and Pearson for 40 of 40 and 0 of 40, at 97.5%.
    drawn, ones = intervals.resample(40), np.ones(40)
    assert intervals.estimate([Terms(ones, ones)], drawn) == pytest.approx(
        (1, 0.025 ** (1 / 40), 1)
    )
    low = intervals.estimate([Terms(0 * ones, ones)], drawn)
    assert low == pytest.approx((0, 0, 1 - 0.025 ** (1 / 40)))


def test_equal_shares_prove_little():
    drawn, b = intervals.resample(40), 1 - 0.025 ** (1 / 40)
    ones, zeros = (Terms(np.full(40, x), np.ones(40)) for x in (1.0, 0.0))
    same = intervals.difference([ones], drawn, [ones], drawn)
    assert same == pytest.approx((0, -b, b))
    assert intervals.difference([ones], drawn, [zeros], drawn) == pytest.approx((1, 1 - b, 1))
    alike = Terms(np.tile([0.0, 1.0], 20), np.ones(40))  # equal on each problem, not over them
    assert intervals.difference([alike], drawn, [alike], drawn) == pytest.approx((0, -b, b))
    lengths = Terms(np.full(40, 30.0), np.ones(40))  # no share: a certain difference is certain
    fewer = Terms(np.full(40, 20.0), np.ones(40))
    assert intervals.difference([fewer], drawn, [lengths], drawn) == pytest.approx((-10, -10, -10))


def test_tokens_without_a_right_answer_are_infinitely_many():
    # 1 of 16 problems is ever right: a resample misses it with (15/16)^16 = 36%.
    correct = np.arange(16)[:, None] == 0
    terms = metrics.metric_terms(outcomes(correct, np.full((16, 1), 100)))
    found = intervals.estimate([terms["tokens_per_right_answer"]], intervals.resample(16))
    assert found.value == pytest.approx(1600) and found.high == math.inf
    assert 100 <= found.low < 1600


def test_a_thinned_grid_is_not_biased():
    rng = np.random.default_rng(4)
    long = outcomes(rng.random((100, 64)) < 0.4, rng.integers(200, 9000, (100, 64)))
    short = outcomes(rng.random((100, 64)) < 0.4, rng.integers(200, 2000, (100, 64)))
    assert len(np.unique(long.length)) > matched_length.MOST_BUDGETS
    drawn = intervals.resample(100)
    found = matched_length.accuracy_at_matched_length([short], drawn, [long], drawn)
    exact = (long.correct & (long.length <= found.budget)).mean()
    assert np.minimum(long.length, found.budget).mean() == pytest.approx(
        short.length.mean(), rel=2e-4
    )
    assert found.baseline == pytest.approx(exact, abs=5e-4)


def test_what_cannot_be_computed_is_nan():
    terms = metrics.metric_terms(outcomes([[0], [0]], [[5], [6]]))
    drawn = intervals.resample(2)
    assert all(map(math.isnan, intervals.estimate([terms["length_correct"]], drawn)))
    assert all(map(math.isnan, intervals.estimate([terms["tokens_per_right_answer"]], drawn)))


def test_resamples_are_the_same_every_time():
    first, again = intervals.resample(30, 3, stream=4), intervals.resample(30, 3, stream=4)
    np.testing.assert_array_equal(first.problems, again.problems)
    np.testing.assert_array_equal(first.seeds, again.seeds)
    assert (first.problems.sum(1) == 30).all()
    np.testing.assert_allclose(first.seeds.sum(1), 3)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_of_few_seeds_cover_what_they_say(seeds):
    """95% of them hold the mean of all seeds; those of resampled seeds were 50%, 75%, 84%."""
    rng, covered, trials = np.random.default_rng(0), 0, 400
    drawn, ones = intervals.resample(20, seeds), np.ones(20)
    for values in rng.normal(40, 3, (trials, seeds)):
        found = intervals.estimate([Terms(v * ones, ones) for v in values], drawn)
        covered += found.low <= 40 <= found.high
    assert 0.92 < covered / trials < 0.98


def test_other_problems_are_refused():
    terms = [Terms(np.ones(3), np.ones(3))]
    with pytest.raises(ValueError, match="the model has 3 problems, the baseline 4"):
        intervals.difference(terms, intervals.resample(3), terms, intervals.resample(4))


def test_accuracy_at_matched_length_by_hand():
    # The short model: 10 tokens each. The long one: lengths 8, 8, 30, 30, all right. Cut at B it
    # spends (8 + 8 + B + B) / 4 for B above 8, which is 10 at B = 12; two of four are right then.
    short = outcomes([[1], [1], [1], [0]], [[10]] * 4)
    long = outcomes([[1]] * 4, [[8], [8], [30], [30]])
    drawn = intervals.resample(4)
    found = matched_length.accuracy_at_matched_length([short], drawn, [long], drawn)
    assert found.longer_is_baseline and found.budget == pytest.approx(12)
    assert (found.accuracy, found.baseline) == (0.75, 0.5)
    swapped = matched_length.accuracy_at_matched_length([long], drawn, [short], drawn)
    assert not swapped.longer_is_baseline
    assert swapped.difference == pytest.approx(
        (-found.difference.value, -found.difference.high, -found.difference.low)
    )


def test_accuracy_at_matched_length_by_search():
    rng = np.random.default_rng(3)
    long = outcomes(rng.random((60, 4)) < 0.8, rng.integers(20, 200, (60, 4)))
    short = outcomes(rng.random((60, 4)) < 0.7, rng.integers(10, 90, (60, 4)))
    drawn = intervals.resample(60)
    found = matched_length.accuracy_at_matched_length([short], drawn, [long], drawn)
    budgets = np.linspace(0, 200, 20_001)
    spent = np.asarray([np.minimum(long.length, b).mean() for b in budgets])
    budget = budgets[np.abs(spent - short.length.mean()).argmin()]
    assert found.budget == pytest.approx(budget, abs=0.02)
    assert found.baseline == (long.correct & (long.length <= budget)).mean()
    low, high = found.difference.low, found.difference.high
    assert low < found.accuracy - found.baseline < high
