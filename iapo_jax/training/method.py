"""The method of a run, from the config or the caller, checked before it is used."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from iapo_jax.algorithms import advantages
from iapo_jax.algorithms.methods import ALGORITHMS, OWN, Algorithm, make_algorithm
from iapo_jax.algorithms.options import parameters_of
from iapo_jax.config.train import AlgorithmSection, TrainConfig
from iapo_jax.errors import UserError
from iapo_jax.runtime import plugins
from iapo_jax.training.update import assign_credit
from iapo_jax.types import Credit, Group

# A group of one completion gets no credit from these rules, but does from rules that use
# information.
_COMPARING = (advantages.grpo, advantages.rloo)


def check_group_size(config: TrainConfig, algorithm: Algorithm) -> None:
    """Requires groups that are large enough for the algorithm.

    Raises:
      UserError: if groups of one completion could never get any credit.
    """
    if config.batch.num_generations > 1:
        return
    if algorithm.dynamic_sampling:
        raise UserError(
            "batch.num_generations is 1: no group can have correct and incorrect completions, "
            "which algorithm.dynamic_sampling requires; expected at least 2"
        )
    rule = getattr(algorithm.advantage, "func", algorithm.advantage)  # of a partial
    if rule in _COMPARING:
        raise UserError(
            f"batch.num_generations is 1: the rule {rule.__name__} compares the completions of a "
            "prompt with each other, and a single one gets no credit; expected at least 2"
        )


def configured_algorithm(
    config: TrainConfig, advantage: Callable[..., Credit] | Algorithm | None
) -> Algorithm:
    """The algorithm that the config names or that the caller passes, with the configured options.

    Raises:
      UserError: naming the field or the argument.
    """
    section = config.algorithm
    try:
        return make_algorithm(
            *_method(section, advantage),
            adapt=section.adapt,
            max_length=config.sampling.max_completion_length,
            dynamic_sampling=section.dynamic_sampling,
            loss_type=section.loss_type,
            epsilon=section.epsilon,
            epsilon_high=section.epsilon_high,
            beta=section.beta,
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def _method(
    section: AlgorithmSection, own: Callable[..., Credit] | Algorithm | None
) -> tuple[str | Callable[..., Credit] | Algorithm, dict[str, Any]]:
    """The method that the config names or that the caller passes, and its options."""
    named: Any = section.name
    if plugins.names_a_place(section.name):
        named = plugins.load(section.name, f"algorithm.name {section.name!r}")
        if not callable(named) and not isinstance(named, Algorithm):
            raise UserError(
                f"algorithm.name {section.name!r} has type {type(named).__name__}; expected a "
                "function (group, key) -> Credit, or an Algorithm"
            )
    elif named not in ALGORITHMS:
        make_algorithm(named)  # raises, and suggests the nearest name
    if own is None:
        return named, section.options
    if not isinstance(own, Algorithm):  # a rule, which may read any field of the group
        surrounding = ALGORITHMS.get(section.name, OWN)
        if not callable(own):
            raise UserError(
                f"advantage is {own!r}; expected a function (group, key) -> Credit, or an "
                "Algorithm (algorithm.name takes names)"
            )
        own = surrounding._replace(advantage=own, needs_information=True, source="your own rule")
    replaced = ALGORITHMS.get(section.name)
    theirs = _options_of(replaced) - _options_of(own) if replaced else set()
    return own, {key: value for key, value in section.options.items() if key not in theirs}


def _options_of(algorithm: Algorithm) -> set[str]:
    return set().union(*map(parameters_of, algorithm.pieces().values()))


def check_rule(config: TrainConfig, algorithm: Algorithm, *, own: bool) -> None:
    """Traces the credit rule on shapes alone, to find mistakes before weights are loaded.

    Args:
      own: whether the rule comes from the caller of `train` and not from the config.

    Raises:
      UserError: for an unknown option, a wrong signature, or a result that is not a `Credit`.
    """
    source = "algorithm.options"
    if own:
        source = "advantage"
    elif plugins.names_a_place(config.algorithm.name):
        source = f"algorithm.name {config.algorithm.name!r}"
    shape = (config.batch.num_generations, config.sampling.max_completion_length)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    expected = f"Credit of two float arrays [G, T] = {list(shape)}"
    credit = partial(assign_credit, algorithm=algorithm)
    settings = {} if algorithm.adapt is None else algorithm.adapt.settings(algorithm.adapt.init())
    try:
        credit = jax.eval_shape(credit, _abstract_groups(*shape), keys, settings)
    except Exception as error:  # a user's rule may raise any exception
        file = plugins.file_of(algorithm.advantage)
        reason = _first_line(error) + (plugins.place_of(error, file) if file else "")
        if source != "algorithm.options":
            reason += f"; the rule is called with (group, key) and must return a {expected}"
        raise UserError(f"{source}: {reason}") from error
    leaves = jax.tree.leaves(credit)
    if not isinstance(credit, Credit) or not all(_is_float_of(shape, x) for x in leaves):
        found = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape[1:])}", credit)
        raise UserError(f"{source}: the rule returned {found}; expected a {expected}")


def _abstract_groups(completions: int, tokens: int) -> Group:
    """The shapes of a group, with a leading axis of length 1."""

    def array(*shape: int, dtype: type) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, completions, *shape), dtype)

    return Group(
        tokens=array(tokens, dtype=np.int32),
        mask=array(tokens, dtype=bool),
        reward=array(dtype=np.float32),
        correct=array(dtype=bool),
        log_prob=array(tokens, dtype=np.float32),
        entropy=array(tokens, dtype=np.float32),
        uncertainty=array(tokens + 1, dtype=np.float32),
        thinking=array(tokens, dtype=bool),
    )


def _is_float_of(shape: tuple[int, int], x: jax.ShapeDtypeStruct) -> bool:
    return x.shape[1:] == shape and jnp.issubdtype(x.dtype, jnp.floating)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines() or [type(error).__name__]
    plain = isinstance(error, ValueError | TypeError | AttributeError)
    return text[0] if plain else f"{type(error).__name__}: {text[0]}"
