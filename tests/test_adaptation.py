"""Hyper-parameters that adapt during the run: their updates, by hand; their effect in the rule."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from groups import usual_group

from iapo_jax.algorithms import iapo_priced
from iapo_jax.algorithms.adaptation import (
    keep_for_difficulty,
    price_for_accuracy,
    price_for_length,
)
from iapo_jax.algorithms.methods import make_algorithm
from iapo_jax.training.update import adapt_settings


def groups(length=10, correct=1.0, reward=(1.0,), count=10):
    """Groups [P, G] of this length, share of right answers and mean rewards."""
    one = usual_group(length=[length] * count, thinking=[0] * count, reward=[0.0] * count,
                      correct=np.arange(count) < correct * count)  # fmt: skip
    many = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(reward), *x.shape)), one)
    rewards = jnp.asarray(reward, jnp.float32)[:, None] + jnp.zeros((len(reward), count))
    return many._replace(reward=rewards)


def follow(adapt, steps):
    state, settings = adapt.init(), []
    for step in steps:
        state, now = adapt_settings(state, step, adapt=adapt)
        settings.append({name: np.asarray(value) for name, value in now.items()})
    return state, settings


def test_the_price_rises_where_completions_are_too_long():
    adapt = price_for_length(target_length=10.0, price=0.02, rate=0.5)
    # errors (15 - 10)/10 = 0.5, then 0, then (5 - 10)/10 = -0.5, then (30 - 10)/10, cut to 1
    _, settings = follow(adapt, [groups(15), groups(10), groups(5), groups(30)])
    expected = 0.02 * np.exp([0.25, 0.25, 0.0, 0.5])
    np.testing.assert_allclose([s["price"] for s in settings], expected, rtol=1e-5)


def test_the_price_stays_within_bounds():
    adapt = price_for_length(target_length=1000.0, price=2e-5, rate=1.0)
    _, settings = follow(adapt, [groups(5)] * 3)
    np.testing.assert_allclose(settings[-1]["price"], 1e-5, rtol=1e-5)


def test_the_price_is_as_high_as_accuracy_allows():
    adapt = price_for_accuracy(price=0.1, tolerance=0.1, rate=0.5, start_steps=2, smoothing=0.5)
    # Start: mean of 1.0 and 0.8 = 0.9; the price rests. Then smoothed accuracies 0.9 -> (0.9 +
    # 1.0)/2 = 0.95: error 1.5, cut to 1; (0.95 + 0.65)/2 = 0.8, `tolerance` below: 0; then
    # (0.8 + 0.7)/2 = 0.75: -0.5.
    steps = [groups(correct=c, count=20) for c in (1.0, 0.8, 1.0, 0.65, 0.7)]
    state, settings = follow(adapt, steps)
    expected = 0.1 * np.exp([0.0, 0.0, 0.5, 0.5, 0.25])
    np.testing.assert_allclose([s["price"] for s in settings], expected, rtol=1e-4)
    assert state.start == pytest.approx(0.9, abs=1e-6)


def test_quartiles_are_those_of_the_questions_so_far():
    adapt = keep_for_difficulty(start_questions=6)
    rng = np.random.default_rng(0)
    rewards = rng.uniform(-1, 1, (3, 4)).astype(np.float32)
    _, settings = follow(adapt, [groups(reward=r, count=4) for r in rewards])
    assert (settings[0]["quartiles"] > rewards[0].max()).all()  # 4 questions: all very hard
    for n in (2, 3):
        expected = np.quantile(rewards[:n], [0.25, 0.5, 0.75])
        np.testing.assert_allclose(settings[n - 1]["quartiles"], expected, atol=1e-6)


def test_old_questions_are_forgotten():
    adapt = keep_for_difficulty()
    old, new = groups(reward=[0.0] * 4096, count=1), groups(reward=[1.0] * 4096, count=1)
    state, settings = follow(adapt, [old, new, new])
    assert int(state.count) == 3 * 4096
    np.testing.assert_array_equal(settings[1]["quartiles"], [0.0, 0.5, 1.0])
    np.testing.assert_array_equal(settings[2]["quartiles"], [1.0, 1.0, 1.0])


def test_the_setting_reaches_the_rule():
    group = usual_group()
    options = {"target_length": 5.0, "price": 0.3, "information_weight": 0.4}
    algorithm = make_algorithm("iapo_priced", options, adapt="price_for_length")
    got = algorithm.credit(group, None, price=jnp.float32(0.1)).advantage
    np.testing.assert_allclose(
        got, iapo_priced(group, information_weight=0.4, price=0.1).advantage, atol=1e-6
    )
    assert algorithm.adapt.settings(algorithm.adapt.init())["price"] == jnp.float32(0.3)


def test_difficulty_reaches_the_filter():
    algorithm = make_algorithm("gfpo", adapt="keep_for_difficulty")
    reward = 0.6 * np.arange(8) ** 2 / 17.5  # of mean 0.6
    group = usual_group(length=[*range(1, 9)], thinking=[0] * 8, reward=reward, correct=[True] * 8)
    for quartiles, kept in (([0.1, 0.2, 0.3], 2), ([0.1, 0.2, 0.7], 3), ([0.8, 0.9, 1.0], 4)):
        credit = algorithm.credit(group, None, quartiles=jnp.asarray(quartiles))
        assert int(credit.advantage.any(-1).sum()) == kept


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: price_for_length(target_length=0.0), "target_length is 0.0; expected more than 0"),
        (lambda: price_for_length(target_length=9.0, price=0.0), "price is 0.0; expected more"),
        (lambda: price_for_accuracy(tolerance=0.0), "tolerance is 0.0; expected more than 0"),
        (lambda: price_for_accuracy(smoothing=1.0), "smoothing is 1.0; expected at least 0 and"),
        (
            lambda: keep_for_difficulty(start_questions=-1),
            "start_questions is -1; expected at least 0",
        ),
    ],
)
def test_what_makes_no_sense_is_named(call, sentence):
    with pytest.raises(ValueError) as caught:
        call()
    assert sentence in str(caught.value)


def test_prices_are_finite_forever():
    adapt = price_for_length(target_length=1.0, rate=1.0)
    state = adapt.init()
    for _ in range(20):
        state = adapt.update(state, groups(12))
    assert math.isclose(float(state.price), 10.0, rel_tol=1e-6)
