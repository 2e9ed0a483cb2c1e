"""Every method, and the loss on its credit, on groups as bad as they come: hypothesis and cases.

What each degenerate case gives is the table "Degenerate groups" of docs/methods.md.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from groups import OPTIONS
from hypothesis import example, given, settings
from hypothesis import strategies as st

from iapo_jax.algorithms.methods import ALGORITHMS, make_algorithm
from iapo_jax.algorithms.policy_loss import (
    LOSS_TYPES,
    k3,
    loss_statistics,
    policy_loss,
)
from iapo_jax.types import Credit, Group

N, G, T, WIDE = 8, 6, 12, 17
VARIANTS = {  # beside every method as it is
    "iapo, group": ("iapo", {"normalizer": "group"}, None),
    "iapo, norm": ("iapo", {"normalizer": "norm", "exploration": "entropy"}, None),
    "iapo, none": (
        "iapo",
        {"normalizer": "none", "information_weight": 0.5, "exploration_weight": 0.5},
        None,
    ),
    "iapo, right only": ("iapo", {"only_correct": True, "scale_rewards": "none"}, None),
    "iapo_reference, large": (
        "iapo_reference",
        {"information_weight": 1.0, "exploration_weight": 1.0},
        None,
    ),
    "iapo_priced, right only": ("iapo_priced", {"only_correct": True, "price": 0.5}, None),
    "iapo_priced, nats": ("iapo_priced", {"unit": "nats", "price": 0.05}, None),
    "iapo_priced, length": ("iapo_priced", {"target_length": 4}, "price_for_length"),
    "iapo_priced, accuracy": ("iapo_priced", {"start_steps": 1}, "price_for_accuracy"),
    "dapo, long cache": ("dapo", {"overlong_cache": 10}, None),
    "gfpo, two": ("gfpo", {"keep": 2}, None),
    "gfpo, efficiency": ("gfpo", {"metric": "efficiency"}, None),
    "gfpo, difficulty": ("gfpo", {"start_questions": 0}, "keep_for_difficulty"),
    "gtpo, tokens": ("gtpo", {"normalizer": "tokens"}, None),
    "gtpo, sides": ("gtpo", {"normalizer": "sides"}, None),
    "s_grpo, nothing": ("s_grpo", {"first": 0, "probability": 0.0}, None),
    "length_penalty, high": ("length_penalty", {"penalty": 0.9}, None),
}
METHODS = {name: (name, OPTIONS.get(name), None) for name in ALGORITHMS} | VARIANTS
# The authors' code computes means over the padded width.
SEE_PADDING = ("iapo_reference", "iapo_reference, large")
# The sign of the reward is in their rule, and reward per token in the other.
SEE_THE_LEVEL = (*SEE_PADDING, "gfpo, efficiency")


def _credit(name):
    """(group, key) -> Credit of the whole method, with settings as one step's groups move them."""
    method, options, adapt = METHODS[name]
    # Dynamic sampling happens before credit and forbids nothing here.
    algorithm = make_algorithm(method, options, adapt=adapt, max_length=T)

    def credit(group, key):
        found = {}
        if algorithm.adapt is not None:
            seen = jax.tree.map(lambda x: x[None], group)
            memory = algorithm.adapt.update(algorithm.adapt.init(), seen)
            found = algorithm.adapt.settings(memory)
        return algorithm.credit(group, key, **found)

    return credit


@partial(jax.jit, static_argnames="names")
def _all(groups, seed, names):
    """Method -> credit of groups [N, ...], all with the same key."""
    key = jax.random.key(seed)
    return {name: jax.vmap(partial(_credit(name), key=key))(groups) for name in names}


def stack(groups):
    """Groups as one, with a leading axis."""
    return jax.tree.map(lambda *x: np.stack(x), *groups)


def credits_of(*groups, seed=0, names=tuple(METHODS)):
    """Method -> the credit of each of these groups (at most N) of one shape; on the host."""
    filled = [*groups, *[groups[0]] * (N - len(groups))]  # one program for any number of them
    found = jax.device_get(_all(stack(filled), seed, names))
    numbers = range(len(groups))
    return {
        name: [jax.tree.map(lambda x, i=i: x[i], found[name]) for i in numbers] for name in names
    }


# ------------------------------------------------------------------------------ strategies

ORDINARY = {
    "log_prob": lambda rng, shape: np.log(rng.uniform(0.05, 1.0, shape)),
    "entropy": lambda rng, shape: rng.uniform(0.0, 2.0, shape),
    "uncertainty": lambda rng, shape: rng.uniform(0.0, 3.0, shape),
}
EXTREME = {
    "log_prob": {
        "certain": lambda rng, shape: np.zeros(shape),
        "unlikely": lambda rng, shape: -rng.uniform(0.0, 1e4, shape),
        "impossible": lambda rng, shape: np.where(rng.random(shape) < 0.5, -1e30, 0.0),
    },
    "entropy": {
        "none": lambda rng, shape: np.zeros(shape),
        "noise": lambda rng, shape: rng.integers(-3, 4, shape) * 1e-8,  # of a sum that cancels
        "some": lambda rng, shape: np.where(rng.random(shape) < 0.5, 0.0, 12.0),
    },
    "uncertainty": {
        "none": lambda rng, shape: np.zeros(shape),
        "constant": lambda rng, shape: np.full(shape, rng.uniform(0.0, 10.0)),
        "noise": lambda rng, shape: 3.0 + 1e-6 * rng.standard_normal(shape),
        "large": lambda rng, shape: rng.uniform(0.0, 1e4, shape),
        "huge": lambda rng, shape: np.where(rng.random(shape) < 0.5, 1e30, rng.random(shape)),
    },
}
REWARDS = {
    "equal": lambda rng, level: np.full(G, level),
    "graded": lambda rng, level: rng.integers(-12, 13, G) / 8,
    "noise": lambda rng, level: level + np.float32(1e-7) * rng.integers(0, 2, G),
    "next to equal": lambda rng, level: np.nextafter(
        np.float32(level), np.where(rng.random(G) < 0.5, np.float32(np.inf), np.float32(level))
    ),
    "huge": lambda rng, level: rng.choice([-1e30, 1e30, 0.0, 1.0], G),
    "tiny": lambda rng, level: rng.choice([-1e-30, 1e-30, 0.0], G),
}


class Drawn(NamedTuple):
    """What hypothesis draws and shows; `build` makes the group of it."""

    seed: int
    lengths: list[int]
    thinking: list[int]
    correct: list[bool]
    rewards: str
    level: float
    signals: dict[str, str]  # those that are not as usual


def build(drawn):
    """A group on T columns, with nonsense on its padding."""
    rng = np.random.default_rng(drawn.seed)
    makers = ORDINARY | {name: EXTREME[name][kind] for name, kind in drawn.signals.items()}
    lengths, thinking = np.asarray(drawn.lengths), np.asarray(drawn.thinking)
    mask = np.arange(T) < lengths[:, None]
    think = mask & (np.arange(T) < thinking[:, None])

    def draw(name, width):
        return np.float32(makers[name](rng, (G, width)))

    u = draw("uncertainty", T + 1)
    return Group(
        tokens=rng.integers(0, 97, (G, T)).astype(np.int32),
        mask=mask,
        reward=np.float32(REWARDS[drawn.rewards](rng, drawn.level)),
        correct=np.asarray(drawn.correct),
        log_prob=draw("log_prob", T),
        entropy=draw("entropy", T),
        uncertainty=u,
        thinking=think,
    )


def drawn_groups(rewards=tuple(REWARDS), signals=tuple(EXTREME), shortest=0):
    """Any group of G completions of up to T tokens; those without a token are none."""
    length = st.sampled_from([shortest, 1, T]) | st.integers(shortest, T)

    def every(one):
        return st.lists(one, min_size=G, max_size=G)

    def shared(one, *same):
        return st.sampled_from([[x] * G for x in same]) | every(one)

    kinds = {name: st.sampled_from(list(EXTREME[name])) for name in signals}
    return st.builds(
        Drawn,
        seed=st.integers(0, 2**16),
        lengths=shared(length, shortest, 1, T),
        thinking=shared(st.integers(0, T), 0, T),  # answered at once; no end of thinking
        correct=shared(st.booleans(), False, True),
        rewards=st.sampled_from(rewards),
        level=st.sampled_from([0.0, -1.5, 0.3, 1e6]),
        signals=st.fixed_dictionaries({}, optional=kinds),
    )


PLAIN = dict(rewards=("equal", "graded"), signals=())  # values whose order rounding cannot change
cheaply = partial(settings, derandomize=True, deadline=None, database=None)

# ------------------------------------------------------------------------------ properties


def assert_sound(group, credit, name):
    for leaf in credit:
        assert leaf.shape == group.mask.shape and leaf.dtype == np.float32
        assert np.isfinite(leaf).all(), name
        assert (leaf[~group.mask] == 0).all(), name
    assert (credit.weight >= 0).all(), name


# The line is fitted to thinking tokens with low u, and evaluated at a stop with high u.
STEEP = Drawn(5, [1] * G, [1, 1, 0, 1, 0, 1], [False] * G, "equal", 0.0, {"uncertainty": "huge"})


@cheaply(max_examples=80)
@given(drawn_groups())
@example(STEEP)
def test_credit_is_finite_and_nothing_is_given_to_padding(drawn):
    several = stack([build(drawn._replace(seed=drawn.seed + i)) for i in range(N)])
    for name, credit in jax.device_get(_all(several, 0, tuple(METHODS))).items():
        assert_sound(several, credit, name)


def close(one, other, name):
    scale = max(1.0, np.abs(other.advantage).max())
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * scale, err_msg=name)


@cheaply(max_examples=30)
@given(drawn_groups(**PLAIN), st.permutations(range(G)))
def test_credit_moves_with_its_completion(drawn, order):
    group, order = build(drawn), np.asarray(order)
    moved = jax.tree.map(lambda x: x[order], group)
    for name, (credit, other) in credits_of(group, moved).items():
        close(other, jax.tree.map(lambda x: x[order], credit), name)  # noqa: B023


@cheaply(max_examples=30)
@given(drawn_groups(**PLAIN, shortest=1), st.sampled_from([-3.0, 1.0, 16.0]))
def test_a_reward_for_everybody_changes_nothing(drawn, constant):
    group = build(drawn)
    raised = group._replace(reward=group.reward + np.float32(constant))
    for name, (credit, other) in credits_of(group, raised).items():
        if name not in SEE_THE_LEVEL:
            close(other, credit, name)


def widened(group, spoil):
    """The group on more columns, with other nonsense wherever the mask is False."""
    more = WIDE - T

    def pad(x):
        return np.pad(x, ((0, 0), (0, more)))

    wide = group._replace(
        **{
            name: pad(getattr(group, name))
            for name in Group._fields
            if name not in ("reward", "correct")
        }
    )
    beyond = np.arange(WIDE + 1) > group.mask.sum(-1)[:, None]

    def hide(x):
        return np.where(wide.mask, x, x.dtype.type(spoil))

    return wide._replace(
        tokens=hide(wide.tokens),
        log_prob=hide(wide.log_prob),
        entropy=hide(wide.entropy),
        uncertainty=np.where(beyond, np.float32(spoil), wide.uncertainty),
    )


# test_contract holds the methods as they are to it: here those that draw, and other options.
TOLD_WIDTHS = ("iapo_shuffled", "iapo_random", "s_grpo", "gtpo", *VARIANTS)


@cheaply(max_examples=30)
@given(drawn_groups(**PLAIN), st.sampled_from([0, 7, 96]))
def test_padding_changes_nothing(drawn, spoil):
    group = build(drawn)
    narrow, wide = credits_of(group, group), credits_of(widened(group, spoil), names=TOLD_WIDTHS)
    for name in TOLD_WIDTHS:
        credit, (other,) = narrow[name][0], wide[name]
        assert all((x[:, T:] == 0).all() for x in other), name
        if name not in SEE_PADDING:
            close(jax.tree.map(lambda x: x[:, :T], other), credit, name)


# ----------------------------------------------------------------- the table of docs/methods.md

BY_TOKEN = ("iapo", "iapo_", "gtpo")  # prefixes of methods that give each token its own credit
BY_LENGTH = ("dapo", "length_penalty", "length_cap", "l1_max")  # and of what shapes by length
LENGTHS = [12, 7, 9, 5, 11, 1]
THINKING = [8, 4, 9, 0, 6, 0]


def named(*beginnings):
    return [name for name in METHODS if name.startswith(beginnings)]


def case(*, seed=0, lengths=LENGTHS, thinking=THINKING, right=(1, 0, 1, 0, 0, 1), **changed):
    """The usual group with what the case is about; `changed` are fields of `Group`."""
    right = np.broadcast_to(np.asarray(right, bool), G)
    lengths, thinking = np.broadcast_to(lengths, G), np.broadcast_to(thinking, G)
    drawn = Drawn(seed, lengths, thinking, right, "equal", 0.0, {})
    group = build(drawn)
    return group._replace(reward=np.where(right, np.float32(1.5), np.float32(-1.5)))._replace(
        **{name: np.asarray(value, np.float32) for name, value in changed.items()}
    )


def credits_of_case(**changes):
    """The group of a case; method -> (Credit, what is the same for all tokens of a completion)."""
    group = case(**changes)
    found = {name: credit[0] for name, credit in credits_of(group, group).items()}
    for name, credit in found.items():
        assert_sound(group, credit, name)
    return group, found, {name: c.advantage - c.bonus for name, c in found.items()}


def test_all_right_or_all_wrong_leaves_no_term_of_the_group():
    for right in (True, False):
        for lengths in (LENGTHS, 9):
            group, credit, base = credits_of_case(right=right, lengths=lengths)
            for name in METHODS:
                shaped = name.startswith("dapo" if not right else BY_LENGTH)
                if lengths == 9 or not shaped:
                    # a bonus is subtracted from a rounded sum again
                    np.testing.assert_allclose(base[name], 0, atol=1e-6, err_msg=name)
                if not name.startswith(BY_TOKEN):
                    assert (credit[name].bonus == 0).all(), name
                    assert shaped or (credit[name].advantage == 0).all(), name
            order = np.argsort(LENGTHS)
            for name in named(*BY_LENGTH) if lengths is LENGTHS else ():  # the shorter, the better
                first = base[name][order, 0]
                assert (np.diff(first) <= 1e-6).all(), name
                assert (first[0] > first[-1]) == (right or name.startswith("dapo")), name
            if not right:
                assert (credit["iapo_priced, right only"].advantage == 0).all()
                assert credit["iapo_priced"].bonus.any()


def test_a_completion_alone_is_compared_with_nobody():
    _, credit, base = credits_of_case(lengths=[0, 0, 7, 0, 0, 0], right=True)
    for name in METHODS:
        np.testing.assert_allclose(base[name], 0, atol=1e-6, err_msg=name)
        if not name.startswith(BY_TOKEN):
            assert (credit[name].advantage == 0).all(), name


def test_no_token_is_no_completion():
    """Nobody's statistics see it, whatever its reward; a filter does not choose it."""
    lengths = np.where(np.arange(G) < 2, 0, LENGTHS)
    rewards = np.array([0.0, 0.0, 1.5, -1.5, -1.5, 1.5], np.float32)
    spoilt = np.where(np.arange(G) < 2, np.float32(50), rewards)
    _, plain, _ = credits_of_case(lengths=lengths, reward=rewards)
    _, other, _ = credits_of_case(lengths=lengths, reward=spoilt, right=(0, 0, 1, 0, 0, 1))
    for name in METHODS:
        if name != "gfpo, difficulty":  # it looks at the mean reward of the question
            close(other[name], plain[name], name)
    for name in named("gfpo"):
        assert plain[name].advantage.any(), name
    _, nothing, _ = credits_of_case(lengths=0)
    for name in METHODS:
        assert not any(x.any() for x in nothing[name]), name


def test_one_token_has_nothing_to_be_compared_with():
    """Empty completions are these: a stop token at once."""
    _, credit, _ = credits_of_case(lengths=1, thinking=[0, 1, 0, 1, 0, 0])
    for name in ("iapo", "iapo, right only", "iapo_ni", "iapo_ne", "iapo_shuffled", "iapo_random"):
        assert (credit[name].bonus == 0).all(), name
    np.testing.assert_array_equal(credit["iapo"].advantage, credit["grpo"].advantage)


def test_without_thinking_there_is_no_information():
    """Answered at once: s is 0 everywhere, and only exploration is left of IAPO."""
    _, credit, _ = credits_of_case(thinking=0)
    for name in ("iapo", "iapo_ne", "iapo_shuffled", "iapo_random"):
        np.testing.assert_array_equal(credit[name].bonus, credit["iapo_ni"].bonus, err_msg=name)
        assert credit[name].bonus.any()
    for name in named("iapo_priced"):
        assert (credit[name].bonus == 0).all(), name


def test_without_an_end_all_is_thinking():
    """Truncated, or the end was never written: nothing stops, so the price has no effect."""
    group, credit, _ = credits_of_case(thinking=T, right=True)
    for name in named("iapo_priced"):
        bonus = credit[name].bonus
        assert bonus[group.mask].any(), name
        # residuals of a line through all of its points sum to 0
        np.testing.assert_allclose(bonus.sum(), 0, atol=1e-4, err_msg=name)
    _, credit, _ = credits_of_case(thinking=T, lengths=T, right=False)
    assert (credit["iapo_priced, right only"].advantage == 0).all()


def test_signals_that_do_not_vary_say_nothing():
    group, credit, _ = credits_of_case(
        right=True,
        log_prob=np.zeros((G, T)),
        entropy=np.zeros((G, T)),
        uncertainty=np.full((G, T + 1), 3.3),
    )
    quiet = [*named("gtpo"), "iapo", "iapo, group", "iapo, right only", "iapo_ni", "iapo_ne"]
    for name in (*quiet, "iapo_shuffled", "iapo_random"):
        assert (credit[name].bonus == 0).all(), name
    # Incorrect completions without entropy share their loss equally, so there is no difference.
    _, credit, _ = credits_of_case(right=False, entropy=np.zeros((G, T)), reward=np.full(G, -1.5))
    np.testing.assert_allclose(credit["gtpo"].advantage, 0, atol=1e-3)


def test_rewards_that_differ_by_rounding_are_nearly_equal():
    noise = 1e-7 * np.array([0, 1, 0, 1, 1, 0])
    _, _, base = credits_of_case(lengths=9, right=True, reward=1.0 + noise)
    for name in METHODS:
        assert np.abs(base[name]).max() < 2e-3, name


def test_what_a_filter_leaves_out_stays_in_the_loss_with_nothing():
    group, credit, _ = credits_of_case()
    for name in named("gfpo"):
        np.testing.assert_array_equal(credit[name].weight, group.mask, err_msg=name)
        assert (~credit[name].advantage.any(-1)).sum() >= 2, name


# ------------------------------------------------------------------------------------ loss


@jax.jit
def _losses(log_prob, old, ref, advantage, weight):
    """Loss type -> ((loss, statistics), gradient of log_prob) for each credit [M, G, T]."""

    def one(loss_type, advantage, weight):
        def loss(log_prob):
            read = log_prob, old, Credit(advantage, weight)
            value = policy_loss(*read, loss_type=loss_type, beta=0.04, ref_log_prob=ref)
            return value, loss_statistics(*read, ref_log_prob=ref)

        return jax.value_and_grad(loss, has_aux=True)(log_prob)

    return {kind: jax.vmap(partial(one, kind))(advantage, weight) for kind in LOSS_TYPES}


RATIOS = {
    "same": lambda rng: np.zeros((G, T)),
    "near": lambda rng: 0.3 * rng.standard_normal((G, T)),
    "far": lambda rng: 100 * rng.standard_normal((G, T)),
    "overflow": lambda rng: rng.choice([-1e4, 0.0, 1e4], (G, T)),
    "impossible": lambda rng: rng.choice([-1e30, 0.0, 1e30], (G, T)),
}
kinds_of_ratio = st.sampled_from(list(RATIOS))


@cheaply(max_examples=40)
@given(drawn_groups(rewards=tuple(set(REWARDS) - {"huge"})), kinds_of_ratio, kinds_of_ratio)
def test_loss_and_gradient_are_finite(drawn, old, ref):
    group, rng = build(drawn), np.random.default_rng(drawn.seed)

    # Padding may hold whatever it likes.
    def nonsense(x):
        return np.where(group.mask, np.float32(x), np.float32(np.nan))

    far = [nonsense(group.log_prob + RATIOS[kind](rng)) for kind in (old, ref)]
    credits = {name: found[0] for name, found in credits_of(group, group).items()}
    advantage, weight = (np.stack([credits[name][i] for name in METHODS]) for i in (0, 1))
    # 1e30 nats without a normalizer exceed 1e27, beyond which the loss is not specified.
    advantage = np.where(np.abs(advantage).max((1, 2), keepdims=True) < 1e27, advantage, 0)
    found = jax.device_get(_losses(nonsense(group.log_prob), *far, advantage, weight))
    for kind, ((loss, statistics), gradient) in found.items():
        for value in jax.tree.leaves((loss, statistics, gradient)):
            assert np.isfinite(value).all(), kind
        assert (gradient[weight == 0] == 0).all(), kind
        nothing = ~weight.any((1, 2))
        assert (loss[nothing] == 0).all() and (gradient[nothing] == 0).all(), kind
        assert nothing[list(METHODS).index("s_grpo, nothing")]


def test_a_ratio_counts_up_to_its_limit():
    """exp(20) at most, without a slope beyond it; the same for the KL of a far reference."""
    ones = jnp.ones((1, 1))

    def loss(log_prob, advantage):
        return policy_loss(log_prob * ones, 0 * ones, Credit(advantage * ones, ones))

    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(loss)))(
        jnp.array([19.0, 25.0, 1e4, 1e4, -1e4]), jnp.array([-1.0, -1.0, -1.0, 1.0, -1.0])
    )
    limit = np.exp(20.0)
    np.testing.assert_allclose(values, [np.exp(19.0), limit, limit, -1.28, 0.8], rtol=1e-5)
    np.testing.assert_allclose(slopes, [np.exp(19.0), 0, 0, 0, 0], rtol=1e-5)
    far = k3(jnp.zeros(3), jnp.array([25.0, 1e4, -1e4]))
    np.testing.assert_allclose(far, [limit - 21, limit - 21, 1e4 - 1], rtol=1e-5)
