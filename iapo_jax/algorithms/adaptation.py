"""Hyper-parameters that adapt during a run: a small state, updated from the groups of each step.

Rules stay pure functions of their hyper-parameters; an `Adaptation` computes the value of one of
them. Its state is part of the train state, so that a resumed run continues with it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from iapo_jax.algorithms.preconditions import check_at_least, check_fields
from iapo_jax.types import Array, Group

_PRICES = (1e-5, 10.0)  # lowest and highest price of a token
_SEEN = 8192  # the quartiles are over this many latest questions


class Adaptation(NamedTuple):
    """Pure functions over a state (any pytree of arrays)."""

    init: Callable[[], Any]
    update: Callable[[Any, Group], Any]  # (state, groups [P, ...] of this step) -> state
    settings: Callable[[Any], dict[str, Array]]  # state -> keyword arguments of the pieces


class LengthState(NamedTuple):
    """The state of `price_for_length`."""

    price: Array  # float32, of a token in the rule's unit


class AccuracyState(NamedTuple):
    """The state of `price_for_accuracy`; all float32 scalars."""

    price: Array  # of a token in the rule's unit
    accuracy: Array  # of sampled completions, smoothed
    start: Array  # mean accuracy of the first steps
    step: Array


def _moved(price: Array, error: Array, rate: float) -> Array:
    return jnp.clip(price * jnp.exp(rate * jnp.clip(error, -1.0, 1.0)), *_PRICES)


def _price(state: LengthState | AccuracyState) -> dict[str, Array]:
    return {"price": state.price}


def _check(**values: tuple[float, float]) -> None:
    for name, (value, low) in values.items():
        if value <= low:
            raise ValueError(f"{name} is {value}; expected more than {low:g}")


def price_for_length(
    *, target_length: float, price: float = 0.002, rate: float = 0.05
) -> Adaptation:
    """log price += rate clip((mean length - target_length) / target_length, -1, 1), each step.

    Where completions are longer than the target, tokens cost more. This is multiplicative dual
    ascent on the constraint E[L] <= target_length.

    Args:
      target_length: tokens.
      price: the initial price of a token, in the rule's unit.
      rate: the largest change of log price in a step.

    Raises:
      ValueError: if an argument is not positive.

    >>> adapt = price_for_length(target_length=2, price=0.1, rate=0.05)
    >>> groups = Group(mask=jnp.ones((1, 4, 3), bool), reward=jnp.zeros((1, 4)))
    >>> state = adapt.update(adapt.init(), groups)
    >>> print(adapt.settings(state)["price"].round(4))
    0.1025
    """
    _check(target_length=(target_length, 0), price=(price, 0), rate=(rate, 0))

    def update(state: LengthState, groups: Group) -> LengthState:
        length = groups.mask.sum(-1).astype(jnp.float32).mean()
        error = (length - target_length) / target_length
        return LengthState(_moved(state.price, error, rate))

    def init() -> LengthState:
        return LengthState(jnp.float32(price))

    return Adaptation(init, update, settings=_price)


def price_for_accuracy(
    *,
    price: float = 0.002,
    tolerance: float = 0.02,
    rate: float = 0.05,
    start_steps: int = 5,
    smoothing: float = 0.9,
) -> Adaptation:
    """log price += rate clip((accuracy - start + tolerance) / tolerance, -1, 1), each step.

    Tokens cost as much as accuracy allows: the price rises while the sampled accuracy (smoothed
    over steps) is at its initial level, is constant where it is `tolerance` below, and falls where
    it is lower. The initial level is the mean of the first `start_steps` steps, in which the price
    stays constant.

    Args:
      price: the initial price of a token, in the rule's unit.
      tolerance: allowed drop in accuracy, as a fraction.
      rate: the largest change of log price in a step.
      start_steps: the initial level is the mean accuracy of this many steps.
      smoothing: weight of the earlier steps, at least 0 and below 1.

    Raises:
      ValueError: for a number outside its range.

    >>> adapt = price_for_accuracy(price=0.1, start_steps=1)
    >>> groups = Group(mask=jnp.ones((1, 4, 3), bool), reward=jnp.zeros((1, 4)),
    ...                correct=jnp.ones((1, 4), bool))
    >>> state = adapt.update(adapt.update(adapt.init(), groups), groups)
    >>> print(adapt.settings(state)["price"].round(4))
    0.1051
    """
    _check(price=(price, 0), tolerance=(tolerance, 0), rate=(rate, 0), start_steps=(start_steps, 0))
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing is {smoothing}; expected at least 0 and below 1")

    def update(state: AccuracyState, groups: Group) -> AccuracyState:
        check_fields(groups, "price_for_accuracy", "correct")
        seen = groups.correct.astype(jnp.float32).mean()
        early = state.step < start_steps
        start = jnp.where(early, (state.start * state.step + seen) / (state.step + 1), state.start)
        smooth = smoothing * state.accuracy + (1 - smoothing) * seen
        accuracy = jnp.where(early, start, smooth)
        error = jnp.where(early, 0.0, (accuracy - start + tolerance) / tolerance)
        return AccuracyState(_moved(state.price, error, rate), accuracy, start, state.step + 1)

    def init() -> AccuracyState:
        return AccuracyState(*map(jnp.float32, (price, 0, 0, 0)))

    return Adaptation(init, update, settings=_price)


class DifficultyState(NamedTuple):
    """The state of `keep_for_difficulty`: a ring buffer of the latest questions."""

    rewards: Array  # [8192] mean reward of each question
    count: Array  # int32; questions seen so far


def keep_for_difficulty(*, start_questions: int = 64) -> Adaptation:
    """Quartiles of the mean rewards of the latest questions, including this step's; [3].

    For `keep_best`: algorithm 2 of arXiv:2508.09726. The paper keeps a t-digest of all questions;
    this keeps the last 8,192 and computes exact quartiles.

    Args:
      start_questions: treat every question as very hard until this many have been seen (the
        paper's warm-up).

    Raises:
      ValueError: for a negative number.

    >>> adapt = keep_for_difficulty(start_questions=0)
    >>> groups = Group(mask=jnp.ones((3, 1, 1), bool), reward=jnp.array([[0.0], [0.5], [1.0]]))
    >>> print(adapt.settings(adapt.update(adapt.init(), groups))["quartiles"])
    [0.25 0.5  0.75]
    """
    check_at_least("start_questions", start_questions, 0)

    def init() -> DifficultyState:
        return DifficultyState(jnp.zeros(_SEEN), jnp.int32(0))

    def update(state: DifficultyState, groups: Group) -> DifficultyState:
        fresh = groups.reward.mean(-1)
        place = (state.count + jnp.arange(fresh.shape[0])) % _SEEN
        return DifficultyState(state.rewards.at[place].set(fresh), state.count + fresh.shape[0])

    def settings(state: DifficultyState) -> dict[str, Array]:
        known = jnp.where(jnp.arange(_SEEN) < state.count, state.rewards, jnp.nan)
        quartiles = jnp.nanquantile(known, jnp.asarray([0.25, 0.5, 0.75]))
        beyond = jnp.nanmax(known) + 1  # above every question
        return {"quartiles": jnp.where(state.count < start_questions, beyond, quartiles)}

    return Adaptation(init, update, settings)


ADAPTATIONS: dict[str, Callable[..., Adaptation]] = {
    "price_for_length": price_for_length,
    "price_for_accuracy": price_for_accuracy,
    "keep_for_difficulty": keep_for_difficulty,
}
