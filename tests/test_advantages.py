"""Credit rules against scalar loops in numpy and cases by hand; one contract for all of them."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iapo_jax.advantages import group_advantage, grpo, iapo, iapo_priced, standardise
from iapo_jax.algorithms import ALGORITHMS, make_algorithm
from iapo_jax.types import Group, valid_mask

G, T = 4, 12


def make_group(rng, *, length, thinking, reward, correct):
    """A group of random signals; columns beyond a completion's length hold nonsense."""
    length, thinking = np.asarray(length), np.asarray(thinking)
    size = max(T, int(length.max()))
    mask = np.arange(size) < length[:, None]
    think = mask & (np.arange(size) < thinking[:, None])
    u = rng.uniform(0.0, 3.0, (len(length), size + 1)).astype(np.float32)
    return Group(
        mask=jnp.asarray(mask),
        reward=jnp.asarray(reward, jnp.float32),
        correct=jnp.asarray(correct),
        log_prob=jnp.asarray(np.where(mask, np.log(rng.uniform(0.05, 1.0, mask.shape)), 0.0), "f4"),
        entropy=jnp.asarray(np.where(mask, rng.uniform(0.0, 2.0, mask.shape), 0.0), "f4"),
        uncertainty=jnp.asarray(u),
        informativeness=jnp.asarray(np.where(think, u[:, :-1] - u[:, 1:], 0.0), "f4"),
        thinking=jnp.asarray(think),
    )


USUAL = dict(
    length=[12, 7, 9, 5], thinking=[8, 4, 9, 0], reward=[1.5, -0.5, 0.5, -1.5],
    correct=[True, False, True, False],
)  # fmt: skip
# Differences from USUAL: what a group may be at its worst.
DEGENERATE = {
    "usual": {},
    "all right": dict(correct=[True] * 4, reward=[1.5] * 4),
    "all wrong": dict(correct=[False] * 4, reward=[-1.5] * 4),
    "one token": dict(length=[1, 1, 1, 1], thinking=[0, 1, 0, 1]),
    "no thinking": dict(thinking=[0, 0, 0, 0]),
    "no stop token": dict(length=[12, 7, 9, 5], thinking=[12, 7, 9, 5]),
    "all truncated": dict(length=[12] * 4, thinking=[12] * 4, correct=[False] * 4),
    "one completion": dict(length=[6], thinking=[4], reward=[1.0], correct=[True]),
    "huge rewards": dict(reward=[1e6, -1e6, 1e6, 0.0]),
}


@pytest.fixture
def usual():
    return make_group(np.random.default_rng(0), **USUAL)


# ------------------------------------------------------------------------------- by numpy


def z_of_rewards(reward):
    reward = np.asarray(reward, np.float64)
    if len(set(reward)) == 1:
        return np.zeros(len(reward))
    return (reward - reward.mean()) / (reward.std(ddof=1) + 1e-4)


def z_of_tokens(values):
    mean = sum(values) / len(values)
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
    return [(v - mean) / (std + 1e-6) for v in values]


def numpy_iapo(group, alpha, beta):
    """method.md, token by token: A_t = z(r) + alpha z(s_t) + beta z(c_t)."""
    advantage = np.zeros(group.mask.shape)
    z = z_of_rewards(group.reward)
    for g, mask in enumerate(np.asarray(group.mask)):
        n = int(mask.sum())
        s, c = [], []
        for t in range(n):
            u_tm1, u_t = (float(group.uncertainty[g, i]) for i in (t, t + 1))
            s.append(u_tm1 - u_t if group.thinking[g, t] else 0.0)
            p = math.exp(float(group.log_prob[g, t]))
            c.append(p if group.correct[g] else -p)
        for t, (one, other) in enumerate(zip(z_of_tokens(s), z_of_tokens(c), strict=True)):
            advantage[g, t] = z[g] + alpha * one + beta * other
    return advantage


def numpy_priced(group, alpha, price, only_correct):
    """method.md: R_t = sum_{k >= t} (s_k - price), less its line on u_{t-1}, by its rms."""
    states = []  # (g, t, u_{t-1}, R_t, whether it is a thinking token)
    for g, mask in enumerate(np.asarray(group.mask)):
        if only_correct and not group.correct[g]:
            continue
        n, thinking = int(mask.sum()), int(group.thinking[g].sum())
        u = [float(x) for x in group.uncertainty[g]]
        for t in range(thinking):
            # s telescopes: u_{t-1} - u_end, and `thinking - t` tokens are left to pay for
            states.append((g, t, u[t], u[t] - u[thinking] - price * (thinking - t), True))
        if thinking < n:  # the token that ends thinking
            states.append((g, thinking, u[thinking], 0.0, False))
    advantage = np.where(group.mask, z_of_rewards(group.reward)[:, None], 0.0)
    x, y = (np.array([s[i] for s in states if s[4]]) for i in (2, 3))
    slope, level = np.polyfit(x, y, 1)
    surprise = [s[3] - (slope * s[2] + level) for s in states]
    rms = math.sqrt(sum(v * v for v in surprise) / len(surprise))
    for (g, t, *_), value in zip(states, surprise, strict=True):
        advantage[g, t] += alpha * value / rms
    return advantage


# -------------------------------------------------------------------------------- grpo


def test_group_advantage_is_trls(usual):
    np.testing.assert_allclose(group_advantage(usual.reward), z_of_rewards(usual.reward), rtol=1e-5)
    centred = group_advantage(usual.reward, scale_rewards="none")
    np.testing.assert_allclose(centred, usual.reward - usual.reward.mean(), atol=1e-7)
    with pytest.raises(ValueError, match="scale_rewards is 'batch'; expected group or none"):
        group_advantage(usual.reward, scale_rewards="batch")


@pytest.mark.parametrize("reward", [0.0, 0.1 + 0.2, -1.5, 1e-30, 1 / 3, 1e6])
@pytest.mark.parametrize("scale", ["group", "none"])
@pytest.mark.parametrize("count", [1, 3, 7, 8])
def test_equal_rewards_give_exactly_zero(reward, scale, count):
    # The float32 mean of 7 copies of 0.1 + 0.2 is not 0.3: without a comparison for equality
    # the noise is divided by a std of about 1e-8.
    same = jnp.full(count, reward, jnp.float32)
    assert (group_advantage(same, scale_rewards=scale) == 0).all()


def test_grpo(usual):
    credit = grpo(usual)
    expected = np.where(usual.mask, z_of_rewards(usual.reward)[:, None], 0.0)
    np.testing.assert_allclose(credit.advantage, expected, rtol=1e-5)
    np.testing.assert_array_equal(credit.weight, usual.mask)


def test_standardise(usual):
    # mean 2, population std sqrt(2/3); the last row does not vary and is left at 0
    x = jnp.array([[1.0, 2.0, 3.0, 99.0], [5.0, 5.0, 5.0, 99.0]])
    mask = valid_mask(jnp.array([3, 3]), 4)
    root = math.sqrt(3 / 2)
    expected = [[-root, 0.0, root, 0.0], [0.0, 0.0, 0.0, 0.0]]
    np.testing.assert_allclose(standardise(x, mask), expected, atol=1e-5)


# -------------------------------------------------------------------------------- iapo


@pytest.mark.parametrize("alpha, beta", [(1.0, 0.0), (0.0, 1.0), (0.3, 0.7)])
def test_iapo_is_the_papers_formula(usual, alpha, beta):
    credit = iapo(usual, alpha=alpha, beta=beta)
    np.testing.assert_allclose(credit.advantage, numpy_iapo(usual, alpha, beta), atol=2e-4)


def test_iapo_by_hand():
    # One completion of two tokens, both thinking, with p = 1 then 1/2 and u = 2, 1, 1:
    # s = 1, 0 -> z = +1, -1;   c = +p (right) -> z = +1, -1, and c = -p (wrong) -> z = -1, +1.
    # Rewards 1 and -1: z(r) = +-1 / (sqrt(2) + 1e-4).
    group = Group(
        mask=jnp.ones((2, 2), bool),
        reward=jnp.array([1.0, -1.0]),
        correct=jnp.array([True, False]),
        log_prob=jnp.log(jnp.array([[1.0, 0.5]] * 2)),
        entropy=jnp.zeros((2, 2)),
        uncertainty=jnp.array([[2.0, 1.0, 1.0]] * 2),
        informativeness=jnp.array([[1.0, 0.0]] * 2),
        thinking=jnp.ones((2, 2), bool),
    )
    z = 1 / (math.sqrt(2) + 1e-4)
    expected = [[z + 0.5 + 0.25, z - 0.5 - 0.25], [-z + 0.5 - 0.25, -z - 0.5 + 0.25]]
    np.testing.assert_allclose(iapo(group, alpha=0.5, beta=0.25).advantage, expected, atol=1e-5)


def test_iapo_without_its_terms_is_grpo(usual):
    np.testing.assert_array_equal(iapo(usual, alpha=0.0, beta=0.0).advantage, grpo(usual).advantage)


# --------------------------------------------------------------------------- iapo_priced


@pytest.mark.parametrize("only_correct", [True, False])
@pytest.mark.parametrize("price", [0.0, 0.02, 0.5])
def test_iapo_priced_is_the_written_rule(usual, price, only_correct):
    credit = iapo_priced(usual, alpha=0.4, price=price, only_correct=only_correct)
    expected = numpy_priced(usual, 0.4, price, only_correct)
    np.testing.assert_allclose(credit.advantage, expected, atol=1e-4)


def test_iapo_priced_by_hand():
    # A right completion: two thinking tokens, then the token that ends thinking; u = 2, 1, 0.5
    # and a price of 0.1. s = 1, 0.5; R_1 = 1.5 - 0.2 = 1.3, R_2 = 0.5 - 0.1 = 0.4, and R = 0 for
    # the end. The line through (2, 1.3) and (1, 0.4) has slope 0.9 and says 0.4 - 0.45 = -0.05 at
    # u = 0.5. So only the end is a surprise: 0 - (-0.05) = 0.05, of rms 0.05 / sqrt(3): stopping
    # is worth alpha sqrt(3) more than expected. The wrong completion gets z(r) alone.
    group = Group(
        mask=jnp.ones((2, 3), bool),
        reward=jnp.array([1.0, -1.0]),
        correct=jnp.array([True, False]),
        log_prob=jnp.zeros((2, 3)),
        entropy=jnp.zeros((2, 3)),
        uncertainty=jnp.array([[2.0, 1.0, 0.5, 7.0]] * 2),
        informativeness=jnp.array([[1.0, 0.5, 0.0]] * 2),
        thinking=jnp.array([[True, True, False]] * 2),
    )
    z = 1 / (math.sqrt(2) + 1e-4)
    got = iapo_priced(group, alpha=0.3, price=0.1).advantage
    expected = [[z, z, z + 0.3 * math.sqrt(3)], [-z] * 3]
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_a_redundant_token_costs_its_price():
    # Two right completions learn the same: 2 nats from their first token. One of them goes on for
    # three tokens that tell nothing (u = 0). Each of these has a return below that of stopping.
    u = np.zeros((2, 7), np.float32)
    u[:, 0] = 2.0
    thinking = np.arange(6) < np.array([[1], [4]])
    mask = np.arange(6) < np.array([[2], [5]])
    group = Group(
        mask=jnp.asarray(mask),
        reward=jnp.ones(2),
        correct=jnp.ones(2, bool),
        log_prob=jnp.zeros((2, 6)),
        entropy=jnp.zeros((2, 6)),
        uncertainty=jnp.asarray(u),
        informativeness=jnp.asarray(np.where(thinking, u[:, :-1] - u[:, 1:], 0.0)),
        thinking=jnp.asarray(thinking),
    )
    advantage = np.asarray(iapo_priced(group, alpha=0.3, price=0.1).advantage)
    assert advantage[0, 1] > advantage[1, 1:4].max()  # stopping at once beats going on
    assert advantage[0, 0] > advantage[1, 0]
    assert (np.diff(advantage[1, 1:5]) > 0).all()  # the later, the less is left to pay


def test_iapo_priced_without_alpha_is_grpo(usual):
    np.testing.assert_array_equal(iapo_priced(usual, alpha=0.0).advantage, grpo(usual).advantage)


def test_a_completion_that_never_stops_gets_no_end_token():
    rng = np.random.default_rng(3)
    group = make_group(rng, **(USUAL | DEGENERATE["no stop token"] | dict(correct=[True] * 4)))
    np.testing.assert_allclose(
        iapo_priced(group, alpha=0.4, price=0.1).advantage,
        numpy_priced(group, 0.4, 0.1, True),
        atol=1e-4,
    )


# ------------------------------------------------------------------ the contract of all rules

RULES = {name: algorithm.advantage for name, algorithm in ALGORITHMS.items()}
every_rule = pytest.mark.parametrize("name", RULES)


def credit_of(name, group):
    return RULES[name](group, jax.random.key(0))


@every_rule
@pytest.mark.parametrize("case", DEGENERATE)
def test_finite_and_inside_the_mask(name, case):
    group = make_group(np.random.default_rng(1), **(USUAL | DEGENERATE[case]))
    credit = credit_of(name, group)
    for leaf in credit:
        assert leaf.shape == group.mask.shape and leaf.dtype == jnp.float32
        assert np.isfinite(leaf).all()
        assert (np.asarray(leaf)[~np.asarray(group.mask)] == 0).all()
    assert (np.asarray(credit.weight) >= 0).all()
    assert np.abs(credit.advantage).max() < 100


@every_rule
def test_padding_changes_nothing(name, usual):
    pad = lambda x, value: jnp.pad(x, ((0, 0), (0, 5)), constant_values=value)  # noqa: E731
    padded = usual._replace(
        mask=pad(usual.mask, False),
        log_prob=pad(usual.log_prob, -50.0),
        entropy=pad(usual.entropy, 99.0),
        uncertainty=pad(usual.uncertainty, 1e3),
        informativeness=pad(usual.informativeness, 0.0),
        thinking=pad(usual.thinking, False),
    )
    # nonsense also where the shorter completions are already padded
    beyond = np.arange(18) > np.asarray(usual.mask.sum(-1))[:, None]
    padded = padded._replace(uncertainty=jnp.where(beyond, -1e3, padded.uncertainty))
    for one, other in zip(credit_of(name, usual), credit_of(name, padded), strict=True):
        np.testing.assert_allclose(other[:, :T], one, atol=1e-6)
        assert (other[:, T:] == 0).all()


@every_rule
def test_the_order_of_the_group_changes_nothing(name, usual):
    order = np.array([2, 0, 3, 1])
    moved = credit_of(name, jax.tree.map(lambda x: x[order], usual))
    for one, other in zip(credit_of(name, usual), moved, strict=True):
        np.testing.assert_allclose(other, one[order], atol=1e-5)


@every_rule
def test_other_prompts_change_nothing(name, usual):
    rng = np.random.default_rng(5)
    groups = [make_group(rng, **(USUAL | DEGENERATE[case])) for case in ("all right", "one token")]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), groups[0], usual, groups[1])
    together = jax.vmap(RULES[name])(stacked, jax.random.split(jax.random.key(1), 3))
    for one, other in zip(credit_of(name, usual), together, strict=True):
        np.testing.assert_allclose(other[1], one, atol=1e-5)


@every_rule
def test_one_trace_serves_every_group(name):
    traces = []

    @jax.jit
    def rule(group, key):
        traces.append(name)
        return RULES[name](group, key)

    for seed, case in enumerate(("usual", "all right", "no thinking", "no stop token")):
        group = make_group(np.random.default_rng(seed), **(USUAL | DEGENERATE[case]))
        rule(group, jax.random.key(seed))
    assert traces == [name]


@every_rule
def test_gradients_of_the_rewards_are_finite(name, usual):
    # Nothing needs them, but a 0/0 hidden in a `where` would show here.
    total = lambda reward: credit_of(name, usual._replace(reward=reward)).advantage.sum()  # noqa: E731
    assert np.isfinite(jax.grad(total)(usual.reward)).all()


def test_make_algorithm_binds_options(usual):
    bound = make_algorithm("iapo", {"alpha": 0.0, "beta": 0}, beta=0.5, loss_type="dapo")
    np.testing.assert_array_equal(bound.advantage(usual, None).advantage, grpo(usual).advantage)
    assert bound.loss == ALGORITHMS["iapo"].loss._replace(beta=0.5, loss_type="dapo")
    assert bound.needs_information
    assert make_algorithm("grpo", {}) == ALGORITHMS["grpo"]


@pytest.mark.parametrize(
    "build, sentence",
    [
        (partial(make_algorithm, "gropo", {}), "algorithm.name is 'gropo'; did you mean grpo?"),
        (partial(make_algorithm, "iapo", {"alpa": 1.0}), "options.alpa is unknown; did you mean"),
        (partial(make_algorithm, "iapo", {"alpha": "1"}), "alpha is '1'; expected float"),
        (partial(make_algorithm, "iapo", {"alpha": True}), "alpha is True; expected float"),
        (partial(make_algorithm, "iapo_priced", {"only_correct": 1}), "is 1; expected bool"),
    ],
)
def test_make_algorithm_mistakes(build, sentence):
    with pytest.raises(ValueError) as caught:
        build()
    assert sentence in str(caught.value)
