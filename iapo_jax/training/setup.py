"""What stays fixed over a run of reinforcement learning, checked before any time is spent."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from iapo_jax.algorithms import advantages
from iapo_jax.algorithms.methods import ALGORITHMS, OWN, Algorithm, make_algorithm
from iapo_jax.algorithms.options import parameters_of
from iapo_jax.config.checks import check_config
from iapo_jax.config.train import TrainConfig
from iapo_jax.data import loading
from iapo_jax.data import problems as data
from iapo_jax.data import prompts as chat_prompts
from iapo_jax.data.order import batch_order
from iapo_jax.errors import UserError
from iapo_jax.information import probes
from iapo_jax.pretrained.directory import check_replaceable
from iapo_jax.pretrained.loaded import LoadedModel, prepare_model, start_mesh
from iapo_jax.rollout import rewards
from iapo_jax.rollout import sampler as sampler_module
from iapo_jax.runtime import plugins, processes
from iapo_jax.sharding import batch_devices, put, replicated
from iapo_jax.training import optimizer
from iapo_jax.training.checkpoint_selection import Selection, split_problems
from iapo_jax.training.update import UpdateSpec, assign_credit
from iapo_jax.types import Array, Credit, Group

# Rules whose credit for a group of one is 0. Those of information have some left.
_COMPARING = (advantages.grpo, advantages.rloo)


_SPARE = 0x5DA90  # apart from the seed of the order itself


class Setup(NamedTuple):
    """Everything that stays fixed over the steps of a loaded."""

    config: TrainConfig
    loaded: LoadedModel  # without parameters
    algorithm: Algorithm
    problems: data.Problems
    questions: list[Any]  # of all its rows, also of those that are not trained on
    notes: list[str]  # what was done to the data set's rows
    selection: Selection
    sampler: sampler_module.Sampler
    reward_functions: rewards.RewardFunctions
    order: Callable[[int], np.ndarray]
    extra_prompts: Callable[[int], np.ndarray]  # further prompts, for dynamic sampling
    schedule: Callable[[int], Array]
    spec: UpdateSpec
    probe_maker: probes.ProbeMaker | None  # of the answer probe; None where the rule needs none
    temperature: Array


def set_up(
    config: TrainConfig,
    *,
    advantage: Callable[..., Credit] | Algorithm | None = None,
    reward_functions: Sequence[Callable] | None = None,
    topology: str | None = None,
) -> Setup:
    """Checks the config and builds what a run needs, before any time is spent.

    Every reward function is called once, on a few rows of the data (`rollouts.try_rewards`).

    Raises:
      UserError: one sentence for the first thing that is wrong.
    """
    check_config(config)
    check_replaceable(Path(config.output_dir) / "hf")
    algorithm = _algorithm(config, advantage)
    reward_functions = rewards.load_rewards(config.reward, reward_functions)
    _check_sampling(config)
    if algorithm.dynamic_sampling and config.batch.num_generations == 1:
        raise UserError(
            "batch.num_generations is 1: no group can be right and wrong, which is what "
            "algorithm.dynamic_sampling waits for; expected at least 2"
        )
    rule = getattr(algorithm.advantage, "func", algorithm.advantage)  # of a partial
    if config.batch.num_generations == 1 and rule in _COMPARING:
        raise UserError(
            f"batch.num_generations is 1: the rule {rule.__name__} compares the completions of a "
            "prompt with each other, and one alone gets no credit; expected at least 2"
        )
    probes.check_section(config.information)
    asked = probes.settle(config.information, algorithm.estimator)
    config = dataclasses.replace(config, information=asked)
    mesh = start_mesh(
        config.mesh, compilation_cache=config.log.compilation_cache, topology=topology
    )
    loaded = prepare_model(config.model, mesh)
    own = plugins.names_a_place(config.algorithm.name)
    source = f"algorithm.name {config.algorithm.name!r}" if own else "algorithm.options"
    _check_rule(config, algorithm, "advantage" if advantage else source)
    _check_top_k(config, loaded)
    micro = _micro_batch_size(config, loaded)
    rows = loading.load_training(config)
    problems = data.make_problems(
        rows.rows,
        loaded.pretrained.tokenizer,
        chat_prompts.resolve_prompt(config.prompt, rows.prompt),
        config.data.max_prompt_length,
        loaded=rows,
    )
    limit, strict = config.data.max_prompt_length, config.data.strict
    notes = [*rows.notes, *data.note_left_out(problems, rows, limit, strict=strict)]
    problems, held = split_problems(problems, config.selection, config.seed)
    processes.on_process_zero(
        lambda: rewards.try_on_problems(
            reward_functions, problems, config.batch.num_generations, config.data.dataset
        ),
        None,
    )
    sampler = sampler_module.make_sampler(
        loaded,
        problems,
        num_generations=config.batch.num_generations,
        max_length=config.sampling.max_completion_length,
        sampling=config.sampling,
    )
    probe_maker = None
    if algorithm.needs_information or config.information.always:
        probe_maker = probes.make_probe_maker(
            config.information, loaded.pretrained, loaded.mesh, problems.answers
        )
    everywhere = replicated(loaded.mesh)
    batch = config.batch
    updates = config.max_steps * batch.mini_batches * batch.num_iterations
    spec = UpdateSpec(
        loaded.mesh,
        loaded.model,
        optimizer.make_optimizer(config.optimizer, updates),
        algorithm.loss,
        batch.mini_batches,
        batch.prompts_per_step // batch.mini_batches // micro,
        config.sampling.max_completion_length,
    )
    return Setup(
        config,
        loaded,
        algorithm,
        problems,
        [row.question for row in rows.rows],
        notes,
        Selection(config, loaded, held),
        sampler,
        reward_functions,
        batch_order(len(problems.tokens), batch.prompts_per_step, config.seed),
        batch_order(len(problems.tokens), batch.prompts_per_step, config.seed ^ _SPARE),
        optimizer.make_schedule(config.optimizer, updates),
        spec,
        probe_maker,
        put(np.float32(config.sampling.temperature), everywhere),
    )


def _algorithm(
    config: TrainConfig, advantage: Callable[..., Credit] | Algorithm | None
) -> Algorithm:
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


def _method(section: Any, own: Any) -> tuple[Any, dict[str, Any]]:
    """The method of the config, or one's own, and its options."""
    named: Any = section.name
    if plugins.names_a_place(section.name):
        named = plugins.load(section.name, f"algorithm.name {section.name!r}")
        if not callable(named) and not isinstance(named, Algorithm):
            raise UserError(
                f"algorithm.name {section.name!r} is a {type(named).__name__}; expected a function "
                "(group, key) -> Credit, or an Algorithm"
            )
    elif named not in ALGORITHMS:
        make_algorithm(named)  # its sentence names the nearest
    if own is None:
        return named, section.options
    if not isinstance(own, Algorithm):  # a rule, which may look at anything
        surrounding = ALGORITHMS.get(section.name, OWN)
        if not callable(own):
            raise UserError(
                f"advantage is {own!r}; expected a function (group, key) -> Credit, or an "
                "Algorithm (a name goes to algorithm.name)"
            )
        own = surrounding._replace(advantage=own, needs_information=True, source="your own rule")
    replaced = ALGORITHMS.get(section.name)
    theirs = _options_of(replaced) - _options_of(own) if replaced else set()
    return own, {key: value for key, value in section.options.items() if key not in theirs}


def _options_of(algorithm: Algorithm) -> set[str]:
    return set().union(*map(parameters_of, algorithm.pieces().values()))


def _check_rule(config: TrainConfig, algorithm: Algorithm, source: str) -> None:
    """Traces the rule on shapes alone: a wrong option, signature or result shows at once."""
    shape = (config.batch.num_generations, config.sampling.max_completion_length)
    struct = lambda shape, dtype: jax.ShapeDtypeStruct((1, *shape), dtype)  # noqa: E731
    floats, flags = struct(shape, np.float32), struct(shape, bool)
    group = Group(
        tokens=struct(shape, np.int32),
        mask=flags,
        reward=struct(shape[:1], np.float32),
        correct=struct(shape[:1], bool),
        log_prob=floats,
        entropy=floats,
        uncertainty=struct((shape[0], shape[1] + 1), np.float32),
        thinking=flags,
    )
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    expected = f"Credit of two float arrays [G, T] = {list(shape)}"
    credit = partial(assign_credit, algorithm=algorithm)
    settings = {} if algorithm.adapt is None else algorithm.adapt.settings(algorithm.adapt.init())
    try:
        credit = jax.eval_shape(credit, group, keys, settings)
    except Exception as error:  # whatever a rule of one's own may raise
        file = plugins.file_of(algorithm.advantage)
        reason = _first_line(error) + (plugins.place_of(error, file) if file else "")
        called = f"; the rule is called with (group, key) and returns {expected}"
        raise UserError(f"{source}: {reason}" + called * (source != "algorithm.options")) from error
    found = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape[1:])}", credit)
    fits = lambda x: x.shape[1:] == shape and jnp.issubdtype(x.dtype, jnp.floating)  # noqa: E731
    if not isinstance(credit, Credit) or not all(map(fits, jax.tree.leaves(credit))):
        raise UserError(f"{source}: the rule returned {found}; expected {expected}")


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines() or [type(error).__name__]
    plain = isinstance(error, ValueError | TypeError | AttributeError)
    return text[0] if plain else f"{type(error).__name__}: {text[0]}"


def _check_top_k(config: TrainConfig, loaded: LoadedModel) -> None:
    size = loaded.pretrained.config.vocab_size
    for name in ("sampling", "eval"):
        k = getattr(config, name).top_k
        if k > size:
            raise UserError(f"{name}.top_k is {k}; expected at most the vocabulary of {size}")


def _check_sampling(config: TrainConfig) -> None:
    section = config.sampling
    truncated = section.top_p < 1 or section.top_k > 0
    if truncated and not section.allow_truncated_distribution:
        raise UserError(
            f"sampling.top_p is {section.top_p} and top_k {section.top_k}: the loss would score "
            "another distribution than was drawn from; expected 1 and 0, or "
            "sampling.allow_truncated_distribution=true"
        )


def _micro_batch_size(config: TrainConfig, loaded: LoadedModel) -> int:
    """Prompts in one forward and backward pass, checked against the rest of the batch."""
    batch, devices = config.batch, batch_devices(loaded.mesh)
    prompts, minis = batch.prompts_per_step, batch.mini_batches
    if prompts % minis:
        raise UserError(
            f"batch.mini_batches is {minis}; it must divide prompts_per_step ({prompts})"
        )
    micro = batch.micro_batch_size or prompts // minis
    if not batch.micro_batch_size and micro % devices:
        raise UserError(
            f"batch.prompts_per_step is {prompts}; expected a multiple of the {devices} devices "
            "that share a batch" + f" times batch.mini_batches ({minis})" * (minis > 1)
        )
    if (prompts // minis) % micro or micro % devices:
        raise UserError(
            f"batch.micro_batch_size is {micro}; it must divide the {prompts // minis} prompts of "
            f"an optimizer update and be a multiple of the {devices} devices that share a batch"
        )
    return micro
