"""One contract for every entry of ALGORITHMS: what a method may depend on, and what it may not."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from groups import DEGENERATE, OPTIONS, USUAL, T, make_group, usual_group

from iapo_jax.algorithms.methods import ALGORITHMS, make_algorithm
from iapo_jax.sharding import by_prompt, make_mesh
from iapo_jax.training.update import assign_credit
from iapo_jax.types import Group

NAMES = [
    *("iapo", "iapo_reference", "iapo_ni", "iapo_ne", "iapo_shuffled", "iapo_random"),
    *("iapo_priced", "grpo", "dr_grpo", "rloo", "dapo", "gfpo", "gtpo", "s_grpo"),
    *("length_penalty", "length_cap", "l1_max"),
]
METHODS = {
    name: jax.jit(make_algorithm(name, OPTIONS.get(name), max_length=T).credit)
    for name in ALGORITHMS
}
EIGHT = [case for case in DEGENERATE if case not in ("one completion", "huge rewards")][:8]
every_method = pytest.mark.parametrize("name", METHODS)
# The authors' code computes means over the padded width; test_advantages holds it to that.
SEES_PADDING = {"iapo_reference"}


@pytest.fixture
def usual():
    return usual_group()


def credit_of(name, group, seed=0):
    return METHODS[name](group, jax.random.key(seed))


def test_all_methods_are_there():
    assert sorted(ALGORITHMS) == sorted(NAMES)
    assert all(algorithm.source for algorithm in ALGORITHMS.values())


@every_method
@pytest.mark.parametrize("case", DEGENERATE)
def test_finite_and_inside_the_mask(name, case):
    group = make_group(np.random.default_rng(1), **(USUAL | DEGENERATE[case]))
    credit = credit_of(name, group)
    for leaf in credit:
        assert leaf.shape == group.mask.shape and leaf.dtype == jnp.float32
        assert np.isfinite(leaf).all()
        assert (np.asarray(leaf)[~np.asarray(group.mask)] == 0).all()
    assert (np.asarray(credit.weight) >= 0).all()
    if case != "huge rewards" or name not in ("dr_grpo", "rloo", "length_penalty"):
        assert np.abs(credit.advantage).max() < 100  # the others are on the rewards' own scale


def padded(group):
    """Five more columns of nonsense, and nonsense where shorter completions were padded before."""
    pad = lambda x, value: jnp.pad(x, ((0, 0), (0, 5)), constant_values=value)  # noqa: E731
    wide = group._replace(
        tokens=pad(group.tokens, 7),
        mask=pad(group.mask, False),
        log_prob=pad(group.log_prob, -50.0),
        entropy=pad(group.entropy, 99.0),
        uncertainty=pad(group.uncertainty, 1e3),
        thinking=pad(group.thinking, False),
    )
    size = wide.mask.shape[-1]
    beyond = np.arange(size + 1) > np.asarray(group.mask.sum(-1))[:, None]
    spoil = lambda x, value: jnp.where(wide.mask, x, value)  # noqa: E731
    return wide._replace(
        uncertainty=jnp.where(beyond, -1e3, wide.uncertainty),
        tokens=spoil(wide.tokens, 11),
        log_prob=spoil(wide.log_prob, -40.0),
        entropy=spoil(wide.entropy, 50.0),
    )


@every_method
def test_padding_changes_nothing(name, usual):
    pairs = list(zip(credit_of(name, usual), credit_of(name, padded(usual)), strict=True))
    for one, other in pairs:
        assert (other[:, T:] == 0).all()
        if name not in SEES_PADDING:
            np.testing.assert_allclose(other[:, :T], one, atol=1e-6)
    if name in SEES_PADDING:
        assert np.abs(pairs[0][1][:, :T] - pairs[0][0]).max() > 1e-4


@every_method
def test_the_order_of_the_group_changes_nothing(name, usual):
    order = np.array([2, 0, 3, 1])
    moved = credit_of(name, jax.tree.map(lambda x: x[order], usual))
    for one, other in zip(credit_of(name, usual), moved, strict=True):
        np.testing.assert_allclose(other, one[order], atol=1e-5)


@every_method
def test_other_prompts_change_nothing(name, usual):
    rng = np.random.default_rng(5)
    groups = [make_group(rng, **(USUAL | DEGENERATE[case])) for case in ("all right", "one token")]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), groups[0], usual, groups[1])
    keys = jnp.stack([jax.random.key(3), jax.random.key(0), jax.random.key(4)])
    together = jax.vmap(METHODS[name])(stacked, keys)
    for one, other in zip(credit_of(name, usual), together, strict=True):
        np.testing.assert_allclose(other[1], one, atol=1e-5)


@every_method
def test_one_trace_serves_every_group(name):
    traces = []

    @jax.jit
    def rule(group, key):
        traces.append(name)
        return METHODS[name](group, key)

    for seed, case in enumerate(("usual", "all right", "no thinking", "no stop token")):
        group = make_group(np.random.default_rng(seed), **(USUAL | DEGENERATE[case]))
        rule(group, jax.random.key(seed))
    assert traces == [name]


@every_method
def test_gradients_of_the_rewards_are_finite(name, usual):
    # Nothing needs them, but a 0/0 hidden in a `where` would show here.
    total = lambda reward: credit_of(name, usual._replace(reward=reward)).advantage.sum()  # noqa: E731
    assert np.isfinite(jax.grad(total)(usual.reward)).all()


@every_method
def test_only_its_own_group_fields_matter(name, usual):
    """A method that is not said to need information gives the same without any."""
    algorithm = ALGORITHMS[name]
    blind = usual._replace(uncertainty=0 * usual.uncertainty)
    one, other = (np.asarray(credit_of(name, g).advantage) for g in (usual, blind))
    assert np.array_equal(one, other) == (not algorithm.needs_information)


ZERO = {
    "iapo": {"information_weight": 0.0, "exploration_weight": 0.0},
    "iapo_reference": {"information_weight": 0.0, "exploration_weight": 0.0},
    "iapo_ni": {"exploration_weight": 0.0},
    "iapo_ne": {"information_weight": 0.0, "exploration_weight": 0.0},
    "iapo_shuffled": {"information_weight": 0.0, "exploration_weight": 0.0},
    "iapo_random": {"information_weight": 0.0, "exploration_weight": 0.0},
    "iapo_priced": {"information_weight": 0.0},
    "gtpo": {"entropy_weight": 0.0},
    "gfpo": {"keep": 4},
    "s_grpo": {"first": 0, "until": 0, "probability": 1.0},
}
LIKE_GRPO = [*ZERO, "grpo", "dapo"]  # dapo: none of these is overlong


@pytest.mark.parametrize("name", LIKE_GRPO)
@pytest.mark.parametrize("case", DEGENERATE)
def test_without_its_weights_a_method_is_grpo_exactly(name, case):
    group = make_group(np.random.default_rng(2), **(USUAL | DEGENERATE[case]))
    options = dict(ZERO.get(name, {}))
    if name == "gfpo":
        options["keep"] = len(group.reward)
    method = make_algorithm(name, options, max_length=100).credit
    expected = ALGORITHMS["grpo"].credit(group)
    got = method(group, jax.random.key(0))
    for field in ("advantage", "weight"):
        np.testing.assert_array_equal(getattr(got, field), getattr(expected, field))
    assert (np.asarray(got.bonus) == 0).all()


def test_methods_that_give_tokens_their_own_credit_are_all_held_to_that(usual):
    # Whatever varies inside a completion is in the list above.
    for name in METHODS:
        rows = np.asarray(credit_of(name, usual).advantage)
        varies = any(np.ptp(row[mask]) > 1e-6 for row, mask in zip(rows, usual.mask, strict=True))
        assert not varies or name in ZERO, name
        assert varies == bool(np.abs(credit_of(name, usual).bonus).max() > 1e-6), name


def test_the_shuffled_control_has_the_same_marginal_distribution(usual):
    # z-scored over the completion, as `iapo` has it: the same values, at other places.
    options = {"information_weight": 1.0, "exploration_weight": 0.0}
    plain = make_algorithm("iapo", options).credit(usual)
    control = make_algorithm("iapo_shuffled", options).credit(usual, jax.random.key(1))
    moved = False
    for one, other, mask in zip(plain.bonus, control.bonus, usual.mask, strict=True):
        one, other = np.asarray(one)[mask], np.asarray(other)[mask]
        np.testing.assert_allclose(np.sort(other), np.sort(one), atol=1e-5)
        moved |= not np.allclose(one, other)
    assert moved


@every_method
def test_what_draws_does_so_from_the_key_alone(name, usual):
    same, again, other = (credit_of(name, usual, seed) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, same, again)
    differs = any(not np.array_equal(a, b) for a, b in zip(same, other, strict=True))
    assert differs == (name in ("iapo_shuffled", "iapo_random", "s_grpo"))


@every_method
def test_the_signature_is_that_of_a_rule(name):
    first, second, *_ = inspect.signature(METHODS[name]).parameters.values()
    assert (first.name, second.name) == ("group", "key")
    assert Group._fields[:2] == ("tokens", "mask")


@every_method
def test_devices_change_nothing(name):
    groups = [usual_group(seed, **DEGENERATE[case]) for seed, case in enumerate(EIGHT)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *groups)
    keys = jax.random.split(jax.random.key(0), 8)
    algorithm = make_algorithm(name, OPTIONS.get(name), max_length=T)
    alone = assign_credit(stacked, keys, algorithm=algorithm)
    spread = jax.device_put((stacked, keys), by_prompt(make_mesh(8, 1, 1)))
    for one, other in zip(alone, assign_credit(*spread, algorithm=algorithm), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5)
