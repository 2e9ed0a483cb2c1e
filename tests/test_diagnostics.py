"""Diagnostics against scalar loops, and by hand on groups whose figures one can see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from groups import DEGENERATE, plain_group, usual_group

from iapo_jax.algorithms import diagnostics, grpo, iapo, iapo_priced
from iapo_jax.algorithms.filters import select
from iapo_jax.types import Credit, Mean


def credit_of(bonus, group, base=0.0):
    bonus = jnp.asarray(bonus, jnp.float32)
    return Credit(base + bonus, group.mask.astype(jnp.float32), bonus)


def loops(group, credit, threshold):
    """Every figure, token by token."""
    rows, size = group.mask.shape
    mask, thinking = np.asarray(group.mask), np.asarray(group.thinking)
    bonus, u = np.asarray(credit.bonus, float), np.asarray(group.uncertainty, float)
    length = mask.sum(1)
    total = [sum(bonus[g, t] for t in range(size) if mask[g, t]) for g in range(rows)]
    covariance = float(np.cov(length, total)[0, 1]) if rows > 1 else 0.0
    own, rival = [], []
    for g in range(rows):
        ends = [t for t in range(size) if mask[g, t] and not thinking[g, t]]
        if not ends:
            continue
        stop = ends[0]
        level = max(u[g, stop], threshold)
        rivals = [
            bonus[k, t] for k in range(rows) for t in range(size)
            if thinking[k, t] and u[k, t] <= level
        ]  # fmt: skip
        if rivals:
            own.append(bonus[g, stop])
            rival.append(np.mean(rivals))
    redundant = sum(
        thinking[g, t] and all(u[g, k] < threshold for k in range(t, thinking[g].sum() + 1))
        for g in range(rows)
        for t in range(size)
    )
    advantage = np.asarray(credit.advantage, float)
    parts = np.abs(bonus[mask]).sum(), np.abs(advantage - bonus)[mask].sum()
    told = sum(u[g, t] - u[g, t + 1] for g, t in zip(*np.nonzero(thinking), strict=True))
    return {
        "length_covariance": covariance,
        "stop_bonus": np.mean(own) if own else 0.0,
        "rival_bonus": np.mean(rival) if rival else 0.0,
        "bonus_share": parts[0] / sum(parts) if sum(parts) else 0.0,
        "information_per_token": told / max(thinking.sum(), 1),
        "redundant_tokens": redundant / rows,
    }


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("threshold", [0.1, 1.5])
def test_figures_are_those_of_a_loop(case, threshold):
    group = usual_group(4, **DEGENERATE[case])
    credit = iapo_priced(group, information_weight=0.5, price=0.3, only_correct=False)
    got = diagnostics.credit_diagnostics(group, credit, threshold=threshold, probed=True)
    for name, expected in loops(group, credit, threshold).items():
        value = float(Mean(*map(jnp.sum, getattr(got, name))).value())
        assert value == pytest.approx(expected, abs=2e-4, rel=1e-4), name


def test_redundant_tokens_by_hand():
    # u falls under 0.1 before token 3, rises before token 5, and falls for good before token 7.
    u = [[2.0, 1.0, 0.05, 0.05, 0.5, 0.5, 0.05, 0.01, 0.02, 9.0]]
    group = plain_group(u, thinking=[8])
    redundant = diagnostics.redundant_tokens(group)  # tokens 7 and 8
    assert float(redundant.value()) == 2.0
    never = plain_group([[2.0, 1.0, 0.5, 0.4]], thinking=[2])
    assert float(diagnostics.redundant_tokens(never).value()) == 0.0
    end = plain_group([[2.0, 0.01, 0.01, 0.4]], thinking=[3])  # lost again at the end
    assert float(diagnostics.redundant_tokens(end).value()) == 0.0


def test_the_theorems_quantity_cannot_see_a_bonus_that_is_z_scored_over_the_completion():
    # Its sum over a completion is 0, whatever the information is.
    group = usual_group(correct=[True] * 4, reward=[1.0] * 4)
    credit = iapo(group, information_weight=1.0, exploration_weight=0.0)
    assert abs(float(diagnostics.length_covariance(group, credit).value())) < 1e-4
    raw = iapo(group, information_weight=1.0, exploration_weight=0.0, normalizer="none")
    assert abs(float(diagnostics.length_covariance(group, raw).value())) > 0.1


def test_a_price_shows_in_the_margin_of_stopping():
    # The answer is known after the first token; one completion stops, the other goes on.
    u = np.zeros((2, 7))
    u[:, 0] = 2.0
    mask = np.arange(6) < np.array([[2], [5]])
    group = plain_group(u, thinking=[1, 4], mask=mask)
    stop, rivals = diagnostics.stop_margin(
        group, iapo_priced(group, information_weight=0.3, price=0.1)
    )
    assert float(stop.value()) > float(rivals.value())  # it pays to stop
    stop, rivals = diagnostics.stop_margin(
        group, iapo(group, information_weight=1.0, exploration_weight=0.0)
    )
    # z over the completion: one informative token of n = 2 or 5 gives the others -1/sqrt(n - 1),
    # milder where the completion is longer: stops get (-1 - 1/2)/2, the redundant tokens -1/2.
    np.testing.assert_allclose(float(stop.value()), -0.75, atol=1e-4)
    np.testing.assert_allclose(float(rivals.value()), -0.5, atol=1e-4)


def test_the_share_of_a_small_bonus_is_not_small_where_there_is_nothing_else():
    group = usual_group(correct=[True] * 4, reward=[1.0] * 4)  # z(r) = 0
    share = diagnostics.bonus_share(
        group, iapo(group, information_weight=1e-6, exploration_weight=0.0)
    )
    assert float(share.value()) == pytest.approx(1.0)


def test_completions_that_are_left_out_do_not_count():
    group = usual_group()
    kept = jnp.array([True, False, True, True])
    smaller = jax.tree.map(lambda x: x[kept], group)
    for figure in (diagnostics.length_covariance, diagnostics.bonus_share):
        one, other = (
            float(figure(g, iapo(g, information_weight=1.0, normalizer="none")).value())
            for g in (select(group, kept), smaller)
        )
        assert one == pytest.approx(other, rel=1e-4)
    # In the trainer the group is complete; completions without weight are not counted there either.
    part = iapo(select(group, kept), information_weight=1.0, normalizer="none")
    whole = diagnostics.credit_diagnostics(group, part, threshold=0.1, probed=True)
    alone = iapo(smaller, information_weight=1.0, normalizer="none")
    expected = diagnostics.credit_diagnostics(smaller, alone, threshold=0.1, probed=True)
    for name in ("length_covariance", "stop_bonus", "rival_bonus"):
        assert float(getattr(whole, name).value()) == pytest.approx(
            float(getattr(expected, name).value()), rel=1e-4
        )


def test_without_answers_there_is_nothing_to_tell_about_them():
    group = usual_group()
    names = diagnostics.credit_diagnostics(group, grpo(group), threshold=0.1, probed=False)
    assert {name for name, mean in names._asdict().items() if mean is not None} == {
        "length_covariance",
        "bonus_share",
    }
    silent = grpo(group)._replace(bonus=None)  # a user's rule without a bonus
    assert diagnostics.credit_diagnostics(group, silent, threshold=0.1, probed=False) == (None,) * 6
