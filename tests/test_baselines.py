"""Baselines against TRL, verl, scalar loops and numbers by hand: rules, shaping, selection."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from groups import plain_group, usual_group

from iapo_jax.algorithms import grpo, gtpo, iapo_priced, rloo
from iapo_jax.algorithms.filters import keep_best, select, stochastic_tokens
from iapo_jax.algorithms.policy_loss import aggregate, loss_scale
from iapo_jax.algorithms.reward_shaping import (
    l1_max,
    length_cap,
    length_penalty,
    overlong,
)
from iapo_jax.algorithms.statistics import group_advantage, leave_one_out


@pytest.fixture(scope="module")
def golden(root):
    with np.load(root / "tests" / "golden" / "advantages.npz") as file:
        return dict(file)


def lengths(*length, thinking=None, **changes):
    """A group of completions of these lengths, all right and paid 1."""
    size = max(length)
    mask = np.arange(size) < np.asarray(length)[:, None]
    u = np.zeros((len(length), size + 1))
    return plain_group(u, thinking=thinking or [0] * len(length), mask=mask, **changes)


# --------------------------------------------------------------------- whole completions


def test_advantages_are_trls(golden):
    for reward, group, none, rloo_ in zip(
        *(golden[k] for k in ("reward", "trl/group", "trl/none", "trl/rloo")), strict=True
    ):

        def close(got, want):
            return np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5)

        close(group_advantage(jnp.asarray(reward)), group)
        close(group_advantage(jnp.asarray(reward), scale_rewards="none"), none)
        close(leave_one_out(jnp.asarray(reward)), rloo_)


def test_advantages_are_verls(golden):
    # GRPO's differ by the epsilon beside the std: 1e-6 there, 1e-4 in TRL and here.
    for reward, dr_grpo, loo, z in zip(
        *(golden[k] for k in ("reward", "verl/dr_grpo", "verl/rloo", "verl/grpo")), strict=True
    ):
        r = jnp.asarray(reward)
        np.testing.assert_allclose(leave_one_out(r), loo, rtol=2e-5, atol=1e-5)
        np.testing.assert_allclose(
            group_advantage(r, scale_rewards="none"), dr_grpo, rtol=2e-5, atol=1e-5
        )
        std = reward.std(ddof=1)
        same = np.asarray(group_advantage(r)) * (std + 1e-4) / (std + 1e-6)
        np.testing.assert_allclose(same, z, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "loss_type, mode",
    [
        ("grpo", "seq-mean-token-mean"),
        ("bnpo", "token-mean"),
        ("dapo", "token-mean"),
        ("dr_grpo", "seq-mean-token-sum-norm"),
    ],
)
def test_aggregations_are_verls(golden, loss_type, mode):
    per_token, weight = golden["per_token_loss"], golden["mask"].astype(np.float32)
    size = per_token.shape[-1]
    scale = loss_scale(jnp.asarray(weight))
    got = aggregate(
        jnp.asarray(per_token), jnp.asarray(weight), scale, loss_type=loss_type, max_length=size
    )
    want = golden[f"verl/agg/{mode}"]
    if loss_type == "dr_grpo":  # verl divides by T alone; the paper, TRL and we by completions, too
        want = want / scale.completions
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_rloo_by_hand():
    # Rewards 3, 1, 2: the others' means are 1.5, 2.5, 2.
    group = lengths(2, 1, 3, reward=[3.0, 1.0, 2.0])
    got = rloo(group).advantage
    np.testing.assert_allclose(got, [[1.5, 1.5, 0], [-1.5, 0, 0], [0, 0, 0]], atol=1e-6)
    assert (rloo(lengths(3, reward=[2.0])).advantage == 0).all()  # nobody to compare with


def test_statistics_are_those_of_the_kept():
    # Of rewards 4, 9, 2 the first and the last are kept: mean 3, sample std sqrt(2).
    reward, where = jnp.array([4.0, 9.0, 2.0]), jnp.array([True, False, True])
    z = 1 / (math.sqrt(2) + 1e-4)
    np.testing.assert_allclose(group_advantage(reward, where), [z, 0.0, -z], rtol=1e-6)
    np.testing.assert_allclose(leave_one_out(reward, where), [2.0, 0.0, -2.0], rtol=1e-6)
    equal = jnp.array([4.0, 9.0, 4.0])
    assert (group_advantage(equal, where) == 0).all()
    assert (group_advantage(reward, jnp.zeros(3, bool)) == 0).all()


# ------------------------------------------------------------------------------- shaping


def test_overlong_is_verls(golden):
    got = [
        overlong(
            lengths(int(n), reward=[0.0]),
            max_length=int(golden["overlong/max_length"]),
            overlong_cache=int(golden["overlong/buffer"]),
        )[0]
        for n in golden["overlong/length"]
    ]
    np.testing.assert_allclose(got, golden["overlong/penalty"], atol=1e-6)


def test_overlong_by_hand():
    # Of at most 10 tokens a fifth, 2, is the cache: nothing up to 8, then -1/2, then -1.
    group = lengths(3, 8, 9, 10, reward=[1.0, 1.0, 1.0, -1.0])
    np.testing.assert_allclose(overlong(group, max_length=10), [1.0, 1.0, 0.5, -2.0], atol=1e-6)
    np.testing.assert_allclose(  # from 6 on
        overlong(group, max_length=10, overlong_cache=4), [1.0, 0.5, 0.25, -2.0], atol=1e-6
    )


def test_length_penalty_by_hand():
    # Right ones have 2, 4 and 6 tokens: mean 4, population std sqrt(8/3); z = -+ sqrt(3/2), 0.
    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    group = lengths(2, 4, 6, 9, reward=[1.0, 1.0, 1.0, 0.0], correct=[True, True, True, False])
    root = math.sqrt(1.5)
    factors = [1 - 0.4 * sigmoid(-root), 1 - 0.4 * 0.5, 1 - 0.4 * sigmoid(root), 0.0]
    got = length_penalty(group, penalty=0.4, correct_bonus=1.0)
    np.testing.assert_allclose(got, factors, atol=1e-6)  # the paper's reward, for 0 and 1
    # For +1 and -1 it is 2 x the paper's - 1.
    group = group._replace(reward=jnp.array([1.0, 1.0, 1.0, -1.0]))
    np.testing.assert_allclose(
        length_penalty(group, penalty=0.4), 2 * np.array(factors) - 1, atol=1e-6
    )
    alone = lengths(5, 3, reward=[1.0, 0.0], correct=[True, False])  # z = 0
    np.testing.assert_allclose(
        length_penalty(alone, penalty=0.4, correct_bonus=1.0), [0.8, 0.0], atol=1e-6
    )


def test_length_cap_by_hand():
    group = lengths(3, 4, 5, 5, reward=[1.5, 1.5, 0.5, -1.0], correct=[True, True, True, False])
    np.testing.assert_allclose(length_cap(group, cap=4), [1.5, 1.5, -1.5, -1.0], atol=1e-6)


def test_l1_max_by_hand():
    # 0.1 a token about a budget of 5: L = 3 -> 0.7, 5 -> 0.5, 9 -> 0.1, 12 -> clipped to 0.
    group = lengths(3, 5, 9, 12, 4, reward=[1, 1, 1, 1, 0], correct=[True] * 4 + [False])
    got = l1_max(group, target_length=5, slope=0.1, correct_bonus=1.0)
    np.testing.assert_allclose(got, [0.7, 0.5, 0.1, 0.0, 0.0], atol=1e-6)


# ----------------------------------------------------------------------------- selection


def test_keep_best_by_hand():
    group = lengths(6, 2, 4, 8, reward=[3.0, 0.5, 1.0, 8.0])
    # reward per token: 0.5, 0.25, 0.25, 1
    np.testing.assert_array_equal(keep_best(group, keep=2), [False, True, True, False])
    np.testing.assert_array_equal(keep_best(group), [False, True, True, False])  # half
    efficient = keep_best(group, keep=2, metric="efficiency")
    np.testing.assert_array_equal(efficient, [True, False, False, True])
    tied = keep_best(group, keep=3, metric="efficiency")  # two are equally good as the third
    assert tied.all()
    chosen = select(group, keep_best(group, keep=2))
    np.testing.assert_array_equal(chosen.mask.sum(-1), [0, 2, 4, 0])
    # z over what is left: rewards 0.5 and 1.
    z = 0.25 / (0.25 * math.sqrt(2) + 1e-4)
    credit = grpo(chosen)
    np.testing.assert_allclose(credit.advantage[:, 0], [0, -z, z, 0], rtol=1e-5)
    np.testing.assert_array_equal(credit.weight.sum(-1), [0, 2, 4, 0])


@pytest.mark.parametrize("mean, kept", [(-1.0, 8), (0.2, 8), (0.6, 6), (0.9, 4)])
def test_easy_questions_keep_less(mean, kept):
    # Quartiles 0, 0.5, 0.75: very hard, hard, medium, easy keep 8, 8, 6, 4 of 16 (the paper's).
    group = lengths(*range(1, 17), reward=np.full(16, mean))
    got = keep_best(group, quartiles=jnp.array([0.0, 0.5, 0.75]))
    np.testing.assert_array_equal(got, np.arange(16) < kept)


def test_stochastic_tokens():
    group = lengths(200, 150, 90)
    masks = np.stack(
        [
            stochastic_tokens(group, jax.random.key(i), first=20, until=120, probability=0.3)
            for i in range(30)
        ]
    )
    mask = np.asarray(group.mask)
    assert masks[:, :, :20].all() and not masks[:, :, 120:].any()
    middle = masks[:, mask & (np.arange(200) >= 20) & (np.arange(200) < 120)]  # 30 x 270
    assert middle.mean() == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / middle.size))
    assert (masks[0] != masks[1]).any() and (masks[0, 0] != masks[0, 1]).any()
    whole = stochastic_tokens(group, jax.random.key(0), until=0, probability=1.0)
    np.testing.assert_array_equal(whole, mask)


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda g: keep_best(g, metric="longest"), "metric is 'longest'; expected one of shortest"),
        (lambda g: keep_best(g, keep=9), "keep is 9; expected 0, or 2 to 4 (the group size)"),
        (lambda g: keep_best(g, keep=1), "keep is 1; expected 0, or 2 to 4 (the group size)"),
        (
            lambda g: keep_best(g, keep=2, quartiles=jnp.zeros(3)),
            "keep is 2, but algorithm.adapt already sets it",
        ),
        (
            lambda g: length_cap(g, cap=8, correct_bonus=-1.0),
            "correct_bonus is -1.0; expected at least 0",
        ),
        (lambda g: iapo_priced(g, price=-1.0), "price is -1.0; expected at least 0"),
        (lambda g: stochastic_tokens(g, probability=2.0), "probability is 2.0; expected from 0"),
        (lambda g: stochastic_tokens(g, first=-1), "first is -1; expected at least 0"),
        (
            lambda g: length_penalty(g, penalty=1.0),
            "penalty is 1.0; expected at least 0 and below 1",
        ),
        (lambda g: length_cap(g, cap=0), "cap is 0; expected at least 1"),
        (lambda g: l1_max(g, target_length=0), "target_length is 0; expected at least 1"),
        (
            lambda g: overlong(g, max_length=9, overlong_cache=-1),
            "overlong_cache is -1; expected",
        ),
        (lambda g: gtpo(g, normalizer="z"), "normalizer is 'z'; expected one of completions"),
    ],
)
def test_what_makes_no_sense_is_named(call, sentence):
    with pytest.raises(ValueError) as caught:
        call(usual_group())
    assert sentence in str(caught.value)


# ------------------------------------------------------------------------------- entropy


def numpy_gtpo(group, entropy_weight, normalizer):
    """Eq. 3 and 5 of arXiv:2508.04349, token by token."""
    rows, length = len(group.reward), np.asarray(group.mask.sum(-1))
    right, entropy = np.asarray(group.correct), np.asarray(group.entropy, np.float64)
    shaped = []
    for g in range(rows):
        row = []
        for t in range(length[g]):
            alive = [k for k in range(rows) if right[k] == right[g] and length[k] > t]
            of = (lambda h: h) if right[g] else (lambda h: 1 / (h + 1e-8))
            share = len(alive) * of(entropy[g, t]) / sum(of(entropy[k, t]) for k in alive)
            row.append(
                float(group.reward[g]) + (entropy_weight if right[g] else -entropy_weight) * share
            )
        shaped.append(row)
    advantage = np.zeros(group.mask.shape)
    sides = [[g for g in range(rows) if right[g] == side] for side in (True, False)]
    for members in sides if normalizer == "sides" else [range(rows)]:
        flat = [v for g in members for v in shaped[g]]
        if not flat:
            continue
        mean, std = np.mean(flat), np.std(flat)
        if normalizer == "completions":
            mean = np.mean([np.mean(shaped[g]) for g in members])
            spread = sum(np.mean([(v - mean) ** 2 for v in shaped[g]]) for g in members)
            std = math.sqrt(spread / max(rows - 1, 1))
        for g in members:
            advantage[g, : length[g]] = [(v - mean) / (std + 1e-4) for v in shaped[g]]
    return advantage


@pytest.mark.parametrize("normalizer", ["completions", "tokens", "sides"])
@pytest.mark.parametrize("seed", [0, 1])
def test_gtpo_is_the_papers_reward(normalizer, seed):
    group = usual_group(seed)
    got = gtpo(group, entropy_weight=0.3, normalizer=normalizer).advantage
    np.testing.assert_allclose(got, numpy_gtpo(group, 0.3, normalizer), rtol=1e-4, atol=1e-4)


def test_gtpos_shares_by_hand():
    # Two right completions, H = 1, 3 and 2: at token 1 they share 2 as 2 x 1/3 and 2 x 2/3; at
    # token 2 the first is alone and gets 1. Two wrong ones, H = 1 and 1/2, pay 2 x 1/3 and 2 x 2/3.
    mask = np.array([[1, 1], [1, 0], [1, 0], [1, 0]], bool)
    entropy = [[1.0, 3.0], [2.0, 0.0], [1.0, 0.0], [0.5, 0.0]]
    group = plain_group(
        np.zeros((4, 3)), thinking=[0] * 4, mask=mask, entropy=entropy,
        reward=[1.0, 1.0, -1.0, -1.0], correct=[True, True, False, False],
    )  # fmt: skip
    shaped = np.array([1 + 0.2 / 3, 1 + 0.1, 1 + 0.4 / 3, -1 - 0.2 / 3, -1 - 0.4 / 3])
    z = (shaped - shaped.mean()) / (shaped.std() + 1e-4)
    got = np.asarray(gtpo(group, entropy_weight=0.1, normalizer="tokens").advantage)[mask]
    np.testing.assert_allclose(got, z, atol=1e-4)


def test_a_side_by_itself_does_not_prefer_right_answers():
    # Why "sides" is not the default: each side has mean 0.
    credit = gtpo(usual_group(), normalizer="sides")
    right = np.asarray(usual_group().correct)
    assert abs(np.asarray(credit.advantage)[right].sum()) < 1e-2
    assert abs(np.asarray(credit.advantage)[~right].sum()) < 1e-2
