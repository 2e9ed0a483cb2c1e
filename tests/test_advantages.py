"""IAPO's rules and ours against scalar loops in numpy and cases by hand."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from groups import DEGENERATE, T, plain_group, usual_group

from iapo_jax.algorithms import grpo, iapo, iapo_priced, iapo_reference
from iapo_jax.algorithms.statistics import (
    NORMALIZERS,
    completion_keys,
    group_advantage,
    normalize,
)
from iapo_jax.types import Group, valid_mask


@pytest.fixture
def usual():
    return usual_group()


# ------------------------------------------------------------------------------- by numpy


def z_of_rewards(reward):
    reward = np.asarray(reward, np.float64)
    if len(set(reward)) == 1:
        return np.zeros(len(reward))
    return (reward - reward.mean()) / (reward.std(ddof=1) + 1e-4)


def z_of_tokens(values):
    mean = sum(values) / len(values)
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
    return [(v - mean) / (std + 1e-4) for v in values]


def scaled(rows, how):
    """Values of the tokens of each completion (lists of any length), on a common scale."""
    if how == "completion":
        return [z_of_tokens(row) if row else [] for row in rows]
    if how == "group":
        flat = iter(z_of_tokens([v for row in rows for v in row]))
        return [[next(flat) for _ in row] for row in rows]
    if how == "norm":
        return [[v / (math.sqrt(sum(w * w for w in row)) + 1e-4) for v in row] for row in rows]
    return rows


def numpy_iapo(
    group,
    information_weight,
    exploration_weight,
    *,
    how="completion",
    entropy=False,
    only_correct=False,
):
    """docs/methods.md, token by token: A_t = z(r) + alpha z(s_t) + beta z(c_t)."""
    advantage = np.zeros(group.mask.shape)
    z = z_of_rewards(group.reward)
    s, c = [], []
    for g, mask in enumerate(np.asarray(group.mask)):
        n = int(mask.sum())
        told = [] if only_correct and not group.correct[g] else range(n)
        u = [float(x) for x in group.uncertainty[g]]
        s.append([u[t] - u[t + 1] if group.thinking[g, t] else 0.0 for t in told])
        p = [math.exp(float(x)) for x in group.log_prob[g, :n]]
        p = [-float(x) for x in group.entropy[g, :n]] if entropy else p
        c.append([x if group.correct[g] else -x for x in p])
    s, c = scaled(s, how), scaled(c, how)
    for g, row in enumerate(c):
        for t, explored in enumerate(row):
            advantage[g, t] = (
                z[g]
                + information_weight * (s[g][t] if s[g] else 0.0)
                + exploration_weight * explored
            )
    return advantage


def numpy_reference(group, information_weight, exploration_weight):
    """docs/methods.md, `iapo_reference`: one token at a time over the padded width.

    H[i] is the answer's entropy before token i; what lies outside counts as 0.
    """
    rows, width = group.mask.shape
    z = z_of_rewards(group.reward)
    advantage = np.zeros((rows, width))
    for g in range(rows):
        h = [float(x) for x in group.uncertainty[g, :width]]

        def before(i, h=h):
            return h[i] if 0 <= i < width else 0.0

        surprise = [(before(i) + before(i - 1)) / 2 - before(i + 1) for i in range(width)]
        confidence = [float(x) for x in group.entropy[g]]
        terms = []
        for x in (surprise, confidence):
            mean = sum(x) / width
            std = math.sqrt(sum((v - mean) ** 2 for v in x) / (width - 1))
            x = [v - mean / (std + 1e-8) for v in x]  # the missing parentheses
            norm = math.sqrt(sum(v * v for v in x))
            terms.append([v / (norm + 1e-8) for v in x])
        reward = float(group.reward[g])
        sign = (reward > 0) - (reward < 0)
        for t in range(int(group.mask[g].sum())):
            advantage[g, t] = (
                z[g] + information_weight * terms[0][t] - exploration_weight * sign * terms[1][t]
            )
    return advantage


def numpy_priced(group, information_weight, price, only_correct, normalizer="rms", unit="nats"):
    """R_t = sum_{k >= t} (s_k - price), minus its regression line on u_{t-1}, divided by the rms; u
    is in nats, or is 1 - exp(-u), or the share of the mean u_0."""
    present = [row for row, mask in zip(group.uncertainty, group.mask, strict=True) if mask.any()]
    start = max(sum(float(row[0]) for row in present) / len(present), 0.1)
    in_unit = {
        "nats": lambda u: u,
        "probability": lambda u: 1 - math.exp(-u),
        "share": lambda u: u / start,
    }[unit]
    states = []  # (g, t, u_{t-1}, R_t, whether it is a thinking token)
    for g, mask in enumerate(np.asarray(group.mask)):
        if only_correct and not group.correct[g]:
            continue
        n, thinking = int(mask.sum()), int(group.thinking[g].sum())
        u = [in_unit(float(x)) for x in group.uncertainty[g]]
        for t in range(thinking):
            # s telescopes: u_{t-1} - u_end, and `thinking - t` tokens are left to pay for
            states.append((g, t, u[t], u[t] - u[thinking] - price * (thinking - t), True))
        if thinking < n:  # the token that ends thinking
            states.append((g, thinking, u[thinking], 0.0, False))
    advantage = np.where(group.mask, z_of_rewards(group.reward)[:, None], 0.0)
    x, y = (np.array([s[i] for s in states if s[4]]) for i in (2, 3))
    slope, level = np.polyfit(x, y, 1)
    surprise = [s[3] - (slope * s[2] + level) for s in states]
    rms = math.sqrt(sum(v * v for v in surprise) / len(surprise)) if normalizer == "rms" else 1
    for (g, t, *_), value in zip(states, surprise, strict=True):
        advantage[g, t] += information_weight * value / rms
    return advantage


# -------------------------------------------------------------------------------- grpo


def test_group_advantage_is_trls(usual):
    np.testing.assert_allclose(group_advantage(usual.reward), z_of_rewards(usual.reward), rtol=1e-5)
    centered = group_advantage(usual.reward, scale_rewards="none")
    np.testing.assert_allclose(centered, usual.reward - usual.reward.mean(), atol=1e-7)
    with pytest.raises(ValueError, match="scale_rewards is 'batch'; expected group or none"):
        group_advantage(usual.reward, scale_rewards="batch")


@pytest.mark.parametrize("reward", [0.0, 0.1 + 0.2, -1.5, 1e-30, 1 / 3, 1e6])
@pytest.mark.parametrize("scale", ["group", "none"])
@pytest.mark.parametrize("count", [1, 3, 7, 8])
def test_equal_rewards_give_exactly_zero(reward, scale, count):
    # The float32 mean of 7 copies of 0.1 + 0.2 is not 0.3: if rewards were not measured from the
    # lowest, the noise would be divided by a std of about 1e-8.
    same = jnp.full(count, reward, jnp.float32)
    assert (group_advantage(same, scale_rewards=scale) == 0).all()


def test_grpo(usual):
    credit = grpo(usual)
    expected = np.where(usual.mask, z_of_rewards(usual.reward)[:, None], 0.0)
    np.testing.assert_allclose(credit.advantage, expected, rtol=1e-5)
    np.testing.assert_array_equal(credit.weight, usual.mask)


def test_noise_is_not_information():
    # A probe agrees with a plain forward pass to about 3e-6 nats; such noise is not information.
    rng = np.random.default_rng(0)
    mask = jnp.ones((2, 200), bool)
    x = jnp.asarray(3e-6 * rng.standard_normal((2, 200)), jnp.float32)
    assert np.abs(normalize(x, mask)).max() < 0.2
    assert (normalize(jnp.full((2, 1000), 3.3), jnp.ones((2, 1000), bool)) == 0).all()


def test_normalize():
    # mean 2, population std sqrt(2/3); the last row does not vary and is left at 0
    x = jnp.array([[1.0, 2.0, 3.0, 99.0], [5.0, 5.0, 5.0, 99.0]])
    mask = valid_mask(jnp.array([3, 3]), 4)
    z = 1 / (math.sqrt(2 / 3) + 1e-4)
    expected = [[-z, 0.0, z, 0.0], [0.0, 0.0, 0.0, 0.0]]
    np.testing.assert_allclose(normalize(x, mask), expected, atol=1e-5)
    # over the group: 1, 2, 3, 5, 5, 5 have mean 3.5 and variance (6.25+2.25+.25+3*2.25)/6 = 15.5/6
    std = math.sqrt(15.5 / 6) + 1e-4
    expected = np.array([[-2.5, -1.5, -0.5, 0.0], [1.5, 1.5, 1.5, 0.0]]) / std
    np.testing.assert_allclose(normalize(x, mask, "group"), expected, atol=1e-5)
    norms = np.array([[math.sqrt(14)], [math.sqrt(75)]]) + 1e-4
    expected = np.array([[1, 2, 3, 0], [5, 5, 5, 0]]) / norms
    np.testing.assert_allclose(normalize(x, mask, "norm"), expected, atol=1e-5)
    np.testing.assert_array_equal(normalize(x, mask, "none"), np.where(mask, x, 0.0))
    with pytest.raises(ValueError, match="normalizer is 'z'; expected one of completion, group"):
        normalize(x, mask, "z")


# -------------------------------------------------------------------------------- iapo


@pytest.mark.parametrize(
    "information_weight, exploration_weight", [(1.0, 0.0), (0.0, 1.0), (0.3, 0.7)]
)
def test_iapo_is_the_papers_formula(usual, information_weight, exploration_weight):
    credit = iapo(
        usual, information_weight=information_weight, exploration_weight=exploration_weight
    )
    np.testing.assert_allclose(
        credit.advantage, numpy_iapo(usual, information_weight, exploration_weight), atol=2e-4
    )


@pytest.mark.parametrize("how", NORMALIZERS)
@pytest.mark.parametrize("exploration", ["probability", "entropy"])
@pytest.mark.parametrize("only_correct", [False, True])
def test_iapos_options(usual, how, exploration, only_correct):
    got = iapo(
        usual, information_weight=0.4, exploration_weight=0.6, normalizer=how,
        exploration=exploration,
        only_correct=only_correct,
    )  # fmt: skip
    entropy = exploration == "entropy"
    expected = numpy_iapo(usual, 0.4, 0.6, how=how, entropy=entropy, only_correct=only_correct)
    np.testing.assert_allclose(got.advantage, expected, atol=2e-4)
    z = np.where(usual.mask, z_of_rewards(usual.reward)[:, None], 0.0)
    np.testing.assert_allclose(got.bonus, expected - z, atol=2e-4)


@pytest.mark.parametrize("option", ["exploration", "normalizer", "information"])
def test_an_unknown_option_of_iapo_is_named(usual, option):
    with pytest.raises(ValueError, match=f"{option} is 'none such'; expected one of"):
        iapo(usual, **{option: "none such"})


def test_iapo_by_hand():
    # One completion of two tokens, both thinking, with p = 1 then 1/2 and u = 2, 1, 1:
    # s = 1, 0 -> z = +1, -1;   c = +p (right) -> z = +1, -1, and c = -p (wrong) -> z = -1, +1, but
    # for the 1e-4 beside stds of 1/2 and 1/4. Rewards 1 and -1: z(r) = +-1 / (sqrt(2) + 1e-4).
    group = Group(
        tokens=None,
        mask=jnp.ones((2, 2), bool),
        reward=jnp.array([1.0, -1.0]),
        correct=jnp.array([True, False]),
        log_prob=jnp.log(jnp.array([[1.0, 0.5]] * 2)),
        entropy=jnp.zeros((2, 2)),
        uncertainty=jnp.array([[2.0, 1.0, 1.0]] * 2),
        thinking=jnp.ones((2, 2), bool),
    )
    z = 1 / (math.sqrt(2) + 1e-4)
    s, c = 0.5 * 0.5 / (0.5 + 1e-4), 0.25 * 0.25 / (0.25 + 1e-4)
    expected = [[z + s + c, z - s - c], [-z + s - c, -z - s + c]]
    np.testing.assert_allclose(
        iapo(group, information_weight=0.5, exploration_weight=0.25).advantage, expected, atol=1e-5
    )


def test_iapo_without_its_terms_is_grpo(usual):
    np.testing.assert_array_equal(
        iapo(usual, information_weight=0.0, exploration_weight=0.0).advantage, grpo(usual).advantage
    )


# --------------------------------------------------------------------------- iapo_priced


@pytest.mark.parametrize(
    "normalizer, unit",
    [("rms", "nats"), ("none", "nats"), ("rms", "probability"), ("none", "share")],
)
@pytest.mark.parametrize("only_correct", [True, False])
@pytest.mark.parametrize("price", [0.0, 0.02, 0.5])
def test_iapo_priced_is_the_written_rule(usual, price, only_correct, normalizer, unit):
    options = dict(price=price, only_correct=only_correct, normalizer=normalizer, unit=unit)
    credit = iapo_priced(usual, information_weight=0.4, **options)
    expected = numpy_priced(usual, 0.4, **options)
    np.testing.assert_allclose(credit.advantage, expected, atol=1e-4)


def test_a_share_is_of_what_was_not_known_at_the_start(usual):
    """Doubling all nats changes nothing, unless the answer is almost known at the start."""
    rule = functools.partial(iapo_priced, information_weight=0.4, price=0.1, unit="share")
    twice = usual._replace(uncertainty=2 * usual.uncertainty)
    np.testing.assert_allclose(rule(twice).advantage, rule(usual).advantage, atol=1e-5)
    start = float(usual.uncertainty[:, 0].mean())
    small = usual._replace(uncertainty=usual.uncertainty * (0.05 / start))
    in_nats = iapo_priced(small, information_weight=0.4, price=0.1 * 0.1, unit="nats")
    np.testing.assert_allclose(rule(small).advantage, in_nats.advantage, atol=1e-4)


def test_iapo_priced_by_hand():
    # A right completion: two thinking tokens, then the token that ends thinking; u = 2, 1, 0.5
    # and a price of 0.1. s = 1, 0.5; R_1 = 1.5 - 0.2 = 1.3, R_2 = 0.5 - 0.1 = 0.4, and R = 0 for
    # the end. The line through (2, 1.3) and (1, 0.4) has slope 0.9 and says 0.4 - 0.45 = -0.05 at
    # u = 0.5. So only the end is a surprise: 0 - (-0.05) = 0.05, of rms 0.05 / sqrt(3): stopping
    # is worth alpha sqrt(3) more than expected. The wrong completion gets z(r) alone where only
    # correct ones count; otherwise it has the same surprises, and the rms is the same.
    group = Group(
        tokens=None,
        mask=jnp.ones((2, 3), bool),
        reward=jnp.array([1.0, -1.0]),
        correct=jnp.array([True, False]),
        log_prob=jnp.zeros((2, 3)),
        entropy=jnp.zeros((2, 3)),
        uncertainty=jnp.array([[2.0, 1.0, 0.5, 7.0]] * 2),
        thinking=jnp.array([[True, True, False]] * 2),
    )
    z = 1 / (math.sqrt(2) + 1e-4)
    end = 0.3 * math.sqrt(3)
    for only_correct, other in ((True, 0.0), (False, end)):
        options = dict(information_weight=0.3, price=0.1, unit="nats", only_correct=only_correct)
        got = iapo_priced(group, **options).advantage
        expected = [[z, z, z + end], [-z, -z, -z + other]]
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_a_redundant_token_costs_its_price():
    # Two right completions learn the same: 2 nats from their first token. One of them goes on for
    # three tokens that tell nothing (u = 0). Each of these has a return below that of stopping.
    u = np.zeros((2, 7), np.float32)
    u[:, 0] = 2.0
    thinking = np.arange(6) < np.array([[1], [4]])
    mask = np.arange(6) < np.array([[2], [5]])
    group = Group(
        tokens=None,
        mask=jnp.asarray(mask),
        reward=jnp.ones(2),
        correct=jnp.ones(2, bool),
        log_prob=jnp.zeros((2, 6)),
        entropy=jnp.zeros((2, 6)),
        uncertainty=jnp.asarray(u),
        thinking=jnp.asarray(thinking),
    )
    advantage = np.asarray(iapo_priced(group, information_weight=0.3, price=0.1).advantage)
    assert advantage[0, 1] > advantage[1, 1:4].max()  # stopping at once beats going on
    assert advantage[0, 0] > advantage[1, 0]
    assert (np.diff(advantage[1, 1:5]) > 0).all()  # the later, the less is left to pay


def test_iapo_priced_without_alpha_is_grpo(usual):
    np.testing.assert_array_equal(
        iapo_priced(usual, information_weight=0.0).advantage, grpo(usual).advantage
    )


def test_a_completion_that_never_stops_gets_no_end_token():
    group = usual_group(3, **DEGENERATE["no stop token"], correct=[True] * 4)
    np.testing.assert_allclose(
        iapo_priced(group, information_weight=0.4, price=0.1).advantage,
        numpy_priced(group, 0.4, 0.1, False, unit="share"),
        atol=1e-4,
    )


# ------------------------------------------------------------- ablations, controls, reference


def test_next_token_entropy_in_place_of_information():
    # H = 2, 1, 4, 1 before tokens 1 to 4; three think. s = 2 - 1, 1 - 4, 4 - 1, and 0 elsewhere.
    group = plain_group(np.zeros((1, 5)), thinking=[3], entropy=[[2.0, 1.0, 4.0, 1.0]])
    got = iapo(
        group,
        information_weight=1.0,
        exploration_weight=0.0,
        information="next_token",
        normalizer="none",
    ).advantage
    np.testing.assert_allclose(got, [[1.0, -3.0, 3.0, 0.0]], atol=1e-6)
    # Cut off while thinking: nothing is known after the last token.
    group = group._replace(thinking=jnp.ones((1, 4), bool))
    got = iapo(
        group,
        information_weight=1.0,
        exploration_weight=0.0,
        information="next_token",
        normalizer="none",
    ).advantage
    np.testing.assert_allclose(got, [[1.0, -3.0, 3.0, 0.0]], atol=1e-6)


@functools.partial(jax.jit, static_argnames="information")
def _bonus(group, key, information):
    options = dict(
        information_weight=1.0, exploration_weight=0.0, normalizer="none", information=information
    )
    return iapo(group, key, **options).bonus


def bonus_of(group, key, information):
    return np.asarray(_bonus(group, key, information))


def test_shuffled_information_is_the_same_values_elsewhere(usual):
    s, thinking = np.asarray(usual.informativeness), np.asarray(usual.thinking)
    moved = [bonus_of(usual, jax.random.key(i), "shuffled") for i in range(400)]
    for one in moved[:20]:
        assert (one[~thinking] == 0).all()
        for g in range(4):
            np.testing.assert_array_equal(np.sort(one[g, thinking[g]]), np.sort(s[g, thinking[g]]))
    # Each value is as likely at each thinking token: the mean over draws is the mean of the row.
    row = s[0, :8]
    error = 5 * row.std() / math.sqrt(400)
    np.testing.assert_allclose(np.mean(moved, 0)[0, :8], row.mean(), atol=error)


def test_random_information_has_the_same_scale(usual):
    s, thinking = np.asarray(usual.informativeness), np.asarray(usual.thinking)
    drawn = np.stack([bonus_of(usual, jax.random.key(i), "random") for i in range(400)])
    assert (drawn[:, ~thinking] == 0).all()
    row, values = s[0, :8], drawn[:, 0, :8].ravel()
    np.testing.assert_allclose(values.mean(), row.mean(), atol=5 * row.std() / math.sqrt(3200))
    np.testing.assert_allclose(values.std(), row.std(), rtol=0.1)
    correlation = np.corrcoef(values, np.tile(row, 400))[0, 1]
    assert abs(correlation) < 5 / math.sqrt(3200)  # it does not follow the information


def test_draws_belong_to_a_completions_tokens(usual):
    def keys(g):
        return jax.random.key_data(completion_keys(jax.random.key(0), g))

    assert len(np.unique(keys(usual), axis=0)) == 4
    swapped = usual._replace(tokens=usual.tokens[:, ::-1], mask=usual.mask[:, ::-1])
    assert not (keys(swapped) == keys(usual)).all(1).any()  # the order of tokens counts, too


@pytest.mark.parametrize("case", ["usual", "all right", "no stop token", "huge rewards"])
@pytest.mark.parametrize(
    "information_weight, exploration_weight", [(1.0, 0.0), (0.0, 1.0), (0.3, 0.7)]
)
def test_the_reference_is_the_authors_code(case, information_weight, exploration_weight):
    group = usual_group(1, **DEGENERATE[case])
    expected = numpy_reference(group, information_weight, exploration_weight)
    got = iapo_reference(
        group, information_weight=information_weight, exploration_weight=exploration_weight
    ).advantage
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)


def test_the_references_surprise_by_hand():
    # u = 3, 2, 2, 1 before tokens 1 to 4 (and 1 after). s = 1, 0, 1, 0.
    # surprise: 3/2 - 2 = -1/2; (2 + 3)/2 - 2 = 1/2 = s_2 + s_1/2; (2 + 2)/2 - 1 = 1; (1 + 2)/2 - 0
    # = 3/2: nothing is subtracted from u in the last column. mean 5/8, sample std of the four
    # sqrt((81 + 1 + 9 + 49)/64/3) = 0.8539; x - mean/std = x - 0.7319.
    group = plain_group([[3.0, 2.0, 2.0, 1.0, 1.0]], thinking=[4])
    x = np.array([-0.5, 0.5, 1.0, 1.5]) - 0.625 / math.sqrt(140 / 64 / 3)
    expected = x / np.sqrt((x**2).sum())
    got = iapo_reference(group, information_weight=1.0, exploration_weight=0.0).advantage
    np.testing.assert_allclose(got[0], expected, atol=1e-5)


def test_padding_changes_the_reference_as_it_does_theirs(usual):
    # The width enters its mean and its norm; a rule of ours would not see it (test_contract).
    def pad(x):
        return jnp.pad(x, ((0, 0), (0, 5)))

    wide = jax.tree.map(lambda x: pad(x) if x.ndim == 2 else x, usual)
    one, other = (
        iapo_reference(g, information_weight=1.0, exploration_weight=0.0).advantage
        for g in (usual, wide)
    )
    assert np.abs(other[:, :T] - one).max() > 0.01
