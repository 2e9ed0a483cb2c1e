"""One contract for every entry of ALGORITHMS: what a method may depend on, and what it may not.

A method runs on a stack of groups in one vmapped program, as training runs it; the tests compare
its rows. That one program serves all of them also says that no method branches on values.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from before_jax import DEVICES
from groups import DEGENERATE, OPTIONS, USUAL, T, make_group, usual_group

from iapo_jax.algorithms.methods import ALGORITHMS, make_algorithm
from iapo_jax.sharding import by_prompt, make_mesh
from iapo_jax.training.update import assign_credit
from iapo_jax.types import Credit

NAMES = [
    *("iapo", "iapo_reference", "iapo_ni", "iapo_ne", "iapo_shuffled", "iapo_random"),
    *("iapo_priced", "grpo", "dr_grpo", "rloo", "dapo", "gfpo", "gtpo", "s_grpo"),
    *("length_penalty", "length_cap", "l1_max"),
]
every_method = pytest.mark.parametrize("name", NAMES)
# The authors' code computes means over the padded width; test_advantages holds it to that.
SEES_PADDING = {"iapo_reference"}
ORDER = np.array([2, 0, 3, 1])
FOUR = [case for case in DEGENERATE if case != "one completion"]  # completions in a group


def stack(groups):
    return jax.tree.map(lambda *x: np.stack(x), *groups)


def stacked():
    """Name -> group, and key: the degenerate cases, and the usual one changed in one respect."""
    usual = usual_group()
    blind = usual._replace(uncertainty=0 * usual.uncertainty)
    cases = {
        case: make_group(np.random.default_rng(1), **(USUAL | DEGENERATE[case])) for case in FOUR
    }
    cases |= {"alone": usual, "again": usual, "another key": usual, "blind": blind}
    cases["moved"] = jax.tree.map(lambda x: x[ORDER], usual)
    keys = [jax.random.key(int(case == "another key")) for case in cases]
    return cases, jnp.stack(keys)


CASES, KEYS = stacked()


@functools.cache
def credits(name, width=T):
    """Case -> credit by this method; at another width padded with nonsense."""
    algorithm = make_algorithm(name, OPTIONS.get(name), max_length=T)
    groups = CASES.values() if width == T else map(padded, CASES.values())
    return rows_of(assign_credit(stack(groups), KEYS, algorithm=algorithm))


def rows_of(credit):
    rows = zip(*map(np.asarray, credit), strict=True)
    return {case: Credit(*row) for case, row in zip(CASES, rows, strict=True)}


def test_all_methods_are_there():
    assert sorted(ALGORITHMS) == sorted(NAMES)
    assert all(algorithm.source for algorithm in ALGORITHMS.values())


def test_every_rule_has_the_same_signature():
    for name, algorithm in ALGORITHMS.items():
        first, second, *_ = inspect.signature(algorithm.advantage).parameters
        assert (first, second) == ("group", "key"), name


def assert_finite_and_inside_the_mask(name, case, group, credit):
    assert isinstance(credit, Credit)
    for leaf in credit:
        assert leaf.shape == group.mask.shape and leaf.dtype == jnp.float32, case
        assert np.isfinite(leaf).all(), case
        assert (np.asarray(leaf)[~np.asarray(group.mask)] == 0).all(), case
    assert (np.asarray(credit.weight) >= 0).all(), case
    if case != "huge rewards" or name not in ("dr_grpo", "rloo", "length_penalty"):
        assert np.abs(credit.advantage).max() < 100, case  # the others are on the rewards' scale


@every_method
def test_finite_and_inside_the_mask(name):
    for case, group in CASES.items():
        assert_finite_and_inside_the_mask(name, case, group, credits(name)[case])


@pytest.mark.parametrize("name", ["iapo", "gfpo", "rloo"])  # mean and std, rank, leave-one-out
def test_a_group_of_one_completion(name):
    algorithm = make_algorithm(name, OPTIONS.get(name), max_length=T)
    group = make_group(np.random.default_rng(1), **(USUAL | DEGENERATE["one completion"]))
    credit = assign_credit(stack([group]), KEYS[:1], algorithm=algorithm)
    credit = jax.tree.map(lambda x: x[0], credit)
    assert_finite_and_inside_the_mask(name, "one completion", group, credit)


def padded(group):
    """Five more columns of nonsense, and nonsense where shorter completions were padded before."""

    def pad(x, value):
        return np.pad(x, ((0, 0), (0, 5)), constant_values=value)

    wide = group._replace(
        tokens=pad(group.tokens, 7),
        mask=pad(group.mask, False),
        log_prob=pad(group.log_prob, -50.0),
        entropy=pad(group.entropy, 99.0),
        uncertainty=pad(group.uncertainty, 1e3),
        thinking=pad(group.thinking, False),
    )
    size = wide.mask.shape[-1]
    beyond = np.arange(size + 1) > wide.mask.sum(-1)[:, None]

    def spoil(x, value):
        return np.where(wide.mask, x, np.asarray(value, x.dtype))

    return wide._replace(
        uncertainty=np.where(beyond, np.float32(-1e3), wide.uncertainty),
        tokens=spoil(wide.tokens, 11),
        log_prob=spoil(wide.log_prob, -40.0),
        entropy=spoil(wide.entropy, 50.0),
    )


@every_method
def test_padding_changes_nothing(name):
    worst = 0.0
    for case, wide in credits(name, width=T + 5).items():
        for leaf, other in zip(credits(name)[case], wide, strict=True):
            assert (other[:, T:] == 0).all(), case
            scale = max(1.0, np.abs(leaf).max())  # of huge rewards
            worst = max(worst, np.abs(other[:, :T] - leaf).max() / scale)
    assert worst > 1e-4 if name in SEES_PADDING else worst <= 1e-6


@every_method
def test_the_order_of_the_group_changes_nothing(name):
    for leaf, moved in zip(credits(name)["alone"], credits(name)["moved"], strict=True):
        np.testing.assert_allclose(moved, leaf[ORDER], atol=1e-5)


@functools.cache
def alone(name):
    """Credit of the usual group in a program of its own, and the gradient of its sum."""
    algorithm = make_algorithm(name, OPTIONS.get(name), max_length=T)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient(reward, group, key):
        credit = algorithm.credit(group._replace(reward=reward), key)
        return credit.advantage.sum(), credit

    slope, credit = gradient(usual_group().reward, usual_group(), jax.random.key(0))
    return credit, slope


@every_method
def test_other_prompts_change_nothing(name):
    for leaf, together in zip(alone(name)[0], credits(name)["alone"], strict=True):
        np.testing.assert_allclose(together, leaf, atol=1e-5)


@every_method
def test_gradients_of_the_rewards_are_finite(name):
    # Nothing needs them, but a 0/0 hidden in a `where` would show here.
    assert np.isfinite(alone(name)[1]).all()


@every_method
def test_only_its_own_group_fields_matter(name):
    """A method that is not marked as needing information gives the same credit without any."""
    same = np.array_equal(credits(name)["alone"].advantage, credits(name)["blind"].advantage)
    assert same == (not ALGORITHMS[name].needs_information)


@every_method
def test_what_draws_does_so_from_the_key_alone(name):
    one, again, other = (credits(name)[case] for case in ("alone", "again", "another key"))
    jax.tree.map(np.testing.assert_array_equal, one, again)
    differs = any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert differs == (name in ("iapo_shuffled", "iapo_random", "s_grpo"))


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
def test_without_its_weights_a_method_is_grpo_exactly(name):
    method = make_algorithm(name, ZERO.get(name), max_length=100)
    found = rows_of(assign_credit(stack(CASES.values()), KEYS, algorithm=method))
    for case, expected in credits("grpo").items():
        for field in ("advantage", "weight"):
            got, want = getattr(found[case], field), getattr(expected, field)
            np.testing.assert_array_equal(got, want, case)
        assert (found[case].bonus == 0).all()


@every_method
def test_methods_that_give_tokens_their_own_credit_are_all_held_to_that(name):
    # Whatever varies inside a completion is in the list above.
    credit = credits(name)["alone"]
    rows = zip(credit.advantage, CASES["alone"].mask, strict=True)
    varies = any(np.ptp(row[np.asarray(mask)]) > 1e-6 for row, mask in rows)
    assert not varies or name in ZERO
    assert varies == bool(np.abs(credit.bonus).max() > 1e-6)


def test_the_shuffled_control_has_the_same_marginal_distribution():
    # z-scored over the completion, as `iapo` has it: the same values, at other places.
    options = {"information_weight": 1.0, "exploration_weight": 0.0}
    usual, key = usual_group(), jax.random.key(1)
    plain, control = (
        jax.jit(make_algorithm(name, options).credit)(usual, key)
        for name in ("iapo", "iapo_shuffled")
    )
    moved = False
    for one, other, mask in zip(plain.bonus, control.bonus, usual.mask, strict=True):
        one, other = np.asarray(one)[mask], np.asarray(other)[mask]
        np.testing.assert_allclose(np.sort(other), np.sort(one), atol=1e-5)
        moved |= not np.allclose(one, other)
    assert moved


@pytest.mark.parametrize("name", ["iapo", "s_grpo", "gfpo"])  # information, draws, ranks
def test_devices_change_nothing(name):
    groups = jax.tree.map(lambda x: x[:DEVICES], stack(CASES.values()))
    algorithm = make_algorithm(name, OPTIONS.get(name), max_length=T)
    spread = jax.device_put((groups, KEYS[:DEVICES]), by_prompt(make_mesh(DEVICES, 1, 1)))
    found = assign_credit(*spread, algorithm=algorithm)
    expected = stack(list(credits(name).values())[:DEVICES])
    for leaf, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other, leaf, atol=1e-5)
