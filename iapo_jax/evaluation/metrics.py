"""Metrics of sampled completions, one pair of numbers for each problem. No JAX.

Every metric is a ratio of means over problems,

    metric = sum_p numerator_p / sum_p denominator_p      (denominator 1: a plain mean),

so that the same resampled problems serve every metric, and both models of a comparison
(`evaluation.intervals`).
"""

import functools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np


class Outcomes(NamedTuple):
    """Every completion of an evaluation; arrays [problems, samples]."""

    correct: np.ndarray  # bool
    length: np.ndarray  # int, tokens with the stop token
    finished: np.ndarray  # bool; False where the length limit truncated the completion
    votes: np.ndarray  # int; equal where a problem's answers are the same, -1 without an answer


class Terms(NamedTuple):
    """The two numbers of each problem that a metric is made of; [P] each."""

    numerator: np.ndarray
    denominator: np.ndarray


def pass_at_k(correct: np.ndarray, samples: int, k: int) -> np.ndarray:
    """The chance that at least one of k samples is correct: 1 - C(n - c, k) / C(n, k), unbiased.

    Args:
      correct: [P], c: the number of correct samples of each problem.
      samples: n, the number of samples of each problem.

    Raises:
      ValueError: if k is not in 1 .. n.

    Source: Chen et al., arXiv:2107.03374, Eq. 1.
    """
    _check_k(k, samples)
    table = [1 - math.comb(samples - c, k) / math.comb(samples, k) for c in range(samples + 1)]
    return np.asarray(table)[correct]


def majority_at_k(votes: np.ndarray, correct: np.ndarray, k: int) -> np.ndarray:
    """The chance that the most frequent answer of k samples is correct; ties are broken at random.

    The chance is exact, over all C(n, k) choices of samples. A sample without an answer (-1) casts
    no vote, and a choice without any vote is incorrect.

    Args:
      votes, correct: [P, n], as in `Outcomes`.

    Raises:
      ValueError: if k is not in 1 .. n.
    """
    _check_k(k, votes.shape[1])
    chances = []
    for answers, is_correct in zip(votes, correct, strict=True):
        silent = int((answers < 0).sum())
        _, rivals = np.unique(answers[(answers >= 0) & ~is_correct], return_counts=True)
        counts = tuple(sorted(rivals.tolist()))
        chances.append(_majority_chance(int(is_correct.sum()), counts, silent, k))
    return np.asarray(chances, float)


@functools.lru_cache(maxsize=100_000)
def _majority_chance(correct: int, rivals: tuple[int, ...], silent: int, k: int) -> float:
    """`majority_at_k` of one problem.

    Args:
      correct: samples with the correct answer.
      rivals: samples with each of the incorrect answers.
      silent: samples without an answer.

    If the correct answer is drawn v times and no rival more often, then it wins with the chance
    1 / (1 + t), where t rivals are drawn v times too.
    """
    samples = correct + sum(rivals) + silent
    wins = Fraction(0)
    for v in range(1, min(correct, k) + 1):
        draws = _draws_by_ties(rivals, silent, v, k - v)
        shared = sum(Fraction(count) / (1 + ties) for ties, count in enumerate(draws))
        wins += math.comb(correct, v) * shared
    return float(wins / math.comb(samples, k))


def _draws_by_ties(rivals: tuple[int, ...], silent: int, v: int, others: int) -> list:
    """The number of ways to draw `others` incorrect samples, with no rival more than v times.

    Entry t of the list counts the draws in which exactly t rivals are drawn v times.
    """
    # Floats hold the counts of up to 500 samples; larger ones need Python's integers.
    dtype = float if silent + sum(rivals) + v <= 500 else object
    most_ties = (others + v) // v
    ways = np.zeros((most_ties + 1, others + 1), dtype)  # [ties, samples drawn so far]
    ways[0, : silent + 1] = [math.comb(silent, n) for n in range(min(silent, others) + 1)]
    for rival in rivals:
        extended = np.zeros_like(ways)
        for n in range(min(rival, v, others) + 1):
            with_n = math.comb(rival, n) * ways[:, : others + 1 - n]
            if n < v:
                extended[:, n:] += with_n
            else:  # one more tie
                extended[1:, n:] += with_n[:-1]
        ways = extended
    return ways[:, others].tolist()


def _check_k(k: int, samples: int) -> None:
    if not 1 <= k <= samples:
        raise ValueError(f"k is {k}; expected 1 to {samples}, the samples of a problem")


def metric_terms(
    outcomes: Outcomes, ks: Sequence[int] = (1,), budgets: Sequence[int] = ()
) -> dict[str, Terms]:
    """The terms of every metric by name; lengths in tokens.

    accuracy, length, length_correct, length_wrong, cut_share (the truncated completions),
    tokens_per_right_answer; for each k pass@k, length@k (the mean over k samples, which is the same
    for every k), ratio@k = pass@k / length@k and majority@k; for each budget B
    accuracy_within@B: correct and at most B tokens long.
    """
    correct, length = np.asarray(outcomes.correct, bool), np.asarray(outcomes.length, float)
    ones = np.ones(len(correct))
    terms = {
        "accuracy": Terms(_mean(correct), ones),
        "length": Terms(_mean(length), ones),
        "length_correct": Terms(_mean(length * correct), _mean(correct)),
        "length_wrong": Terms(_mean(length * ~correct), _mean(~correct)),
        "cut_share": Terms(_mean(~np.asarray(outcomes.finished, bool)), ones),
        "tokens_per_right_answer": Terms(_mean(length), _mean(correct)),
    }
    for k in ks:
        passed = pass_at_k(correct.sum(1), correct.shape[1], k)
        terms[f"pass@{k}"] = Terms(passed, ones)
        terms[f"length@{k}"] = terms["length"]
        terms[f"ratio@{k}"] = Terms(passed, _mean(length))
        terms[f"majority@{k}"] = Terms(majority_at_k(outcomes.votes, correct, k), ones)
    for budget in budgets:
        terms[f"accuracy_within@{budget}"] = Terms(_mean(correct & (length <= budget)), ones)
    return terms


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean over the samples of each problem; [P, n] -> [P]."""
    return np.asarray(values, float).mean(1)
