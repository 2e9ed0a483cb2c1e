"""Everything that stays fixed over a run of reinforcement learning, checked before it starts."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from iapo_jax.algorithms.methods import Algorithm
from iapo_jax.config.checks import check_config
from iapo_jax.config.train import TrainConfig
from iapo_jax.data import loading
from iapo_jax.data import problems as data
from iapo_jax.data import prompts as chat_prompts
from iapo_jax.data.order import batch_order
from iapo_jax.errors import UserError
from iapo_jax.information import probes
from iapo_jax.pretrained.loaded_model import LoadedModel, prepare_model, start_mesh
from iapo_jax.pretrained.model_directory import check_replaceable
from iapo_jax.rollout import reward_trial, rewards
from iapo_jax.rollout import sampler as sampler_module
from iapo_jax.runtime import processes
from iapo_jax.sharding import batch_devices, put, replicated
from iapo_jax.training import optimizer
from iapo_jax.training.checkpoint_selection import Selection, split_problems
from iapo_jax.training.method import check_group_size, check_rule, configured_algorithm
from iapo_jax.training.update import UpdateSpec
from iapo_jax.types import Array, Credit

_EXTRA_PROMPTS = 0x5DA90  # changes the seed, so that extra prompts have a different order


class Setup(NamedTuple):
    """Everything that stays fixed over the steps of a run."""

    config: TrainConfig
    loaded: LoadedModel  # mesh, tokenizer and model; its parameters are None
    algorithm: Algorithm
    problems: data.Problems  # the training problems
    questions: list[str | list[dict]]  # of all rows, including held-out and too long ones
    notes: list[str]  # changes to the rows of the dataset, for the user
    selection: Selection
    reward_functions: rewards.RewardFunctions
    order: Callable[[int], np.ndarray]  # step -> [P] rows
    extra_prompts: Callable[[int], np.ndarray]  # number -> [P] further rows, for dynamic sampling
    schedule: Callable[[int], Array]  # update -> learning rate
    spec: UpdateSpec
    sampler: sampler_module.Sampler
    probe_maker: probes.ProbeMaker | None  # None where the rule needs no information
    temperature: Array  # float32 scalar on the mesh


def set_up(
    config: TrainConfig,
    *,
    advantage: Callable[..., Credit] | Algorithm | None = None,
    reward_functions: Sequence[Callable] | None = None,
    topology: str | None = None,
) -> Setup:
    """Checks the config and builds everything that a run needs, before weights are loaded.

    The checks run in this order: the config alone, the method, the model without its weights, the
    data, the reward functions (each is called once on a few rows), and their combinations.

    Raises:
      UserError: describing the first mistake.
    """
    check_config(config)
    check_replaceable(Path(config.output_dir) / "hf")
    algorithm = configured_algorithm(config, advantage)
    functions = rewards.load_rewards(config.reward, reward_functions)
    _check_sampling(config)
    check_group_size(config, algorithm)
    probes.check_section(config.information)
    information = probes.settle(config.information, algorithm.estimator)
    config = dataclasses.replace(config, information=information)
    mesh = start_mesh(
        config.mesh, compilation_cache=config.log.compilation_cache, topology=topology
    )
    loaded = prepare_model(config.model, mesh)
    check_rule(config, algorithm, own=advantage is not None)
    _check_top_k(config, loaded)
    spec = _update_spec(config, algorithm, _micro_batches(config, loaded))
    data_set, problems, notes = _load_problems(config, loaded)
    problems, held = split_problems(problems, config.selection, config.seed)
    _try_rewards(config, functions, problems)
    draw_rows = partial(batch_order, len(problems.tokens), config.batch.prompts_per_step)
    return Setup(
        config=config,
        loaded=loaded,
        algorithm=algorithm,
        problems=problems,
        questions=[row.question for row in data_set.rows],
        notes=notes,
        selection=Selection(config, loaded, held),
        reward_functions=functions,
        order=draw_rows(config.seed),
        extra_prompts=draw_rows(config.seed ^ _EXTRA_PROMPTS),
        schedule=optimizer.make_schedule(config.optimizer, _count_updates(config)),
        spec=spec,
        sampler=_sampler(config, loaded, problems),
        probe_maker=_probe_maker(config, algorithm, loaded, problems),
        temperature=put(np.float32(config.sampling.temperature), replicated(mesh)),
    )


def _load_problems(
    config: TrainConfig, loaded: LoadedModel
) -> tuple[loading.LoadedSet, data.Problems, list[str]]:
    """The training data, its problems as prompts of this model, and notes about changed rows."""
    data_set = loading.load_training(config)
    limit = config.data.max_prompt_length
    problems = data.make_problems(
        data_set.rows,
        loaded.pretrained.tokenizer,
        chat_prompts.resolve_prompt(config.prompt, data_set.prompt),
        limit,
        loaded=data_set,
    )
    left_out = data.note_left_out(problems, data_set, limit, strict=config.data.strict)
    return data_set, problems, [*data_set.notes, *left_out]


def _try_rewards(
    config: TrainConfig, functions: rewards.RewardFunctions, problems: data.Problems
) -> None:
    count, name = config.batch.num_generations, config.data.dataset
    processes.on_process_zero(
        lambda: reward_trial.try_on_problems(functions, problems, count, name), None
    )


def _sampler(
    config: TrainConfig, loaded: LoadedModel, problems: data.Problems
) -> sampler_module.Sampler:
    return sampler_module.make_sampler(
        loaded,
        problems,
        num_generations=config.batch.num_generations,
        max_length=config.sampling.max_completion_length,
        sampling=config.sampling,
    )


def _probe_maker(
    config: TrainConfig, algorithm: Algorithm, loaded: LoadedModel, problems: data.Problems
) -> probes.ProbeMaker | None:
    if not (algorithm.needs_information or config.information.always):
        return None
    return probes.make_probe_maker(
        config.information, loaded.pretrained, loaded.mesh, problems.answers
    )


def _count_updates(config: TrainConfig) -> int:
    return config.max_steps * config.batch.mini_batches * config.batch.num_iterations


def _update_spec(config: TrainConfig, algorithm: Algorithm, micro_batches: int) -> UpdateSpec:
    return UpdateSpec(
        optimizer=optimizer.make_optimizer(config.optimizer, _count_updates(config)),
        loss=algorithm.loss,
        mini_batches=config.batch.mini_batches,
        micro_batches=micro_batches,
        max_length=config.sampling.max_completion_length,
    )


def _check_top_k(config: TrainConfig, loaded: LoadedModel) -> None:
    size = loaded.pretrained.config.vocab_size
    for name in ("sampling", "eval"):
        k = getattr(config, name).top_k
        if k > size:
            raise UserError(f"{name}.top_k is {k}; expected at most {size}, the vocabulary size")


def _check_sampling(config: TrainConfig) -> None:
    section = config.sampling
    truncated = section.top_p < 1 or section.top_k > 0
    if truncated and not section.allow_truncated_distribution:
        raise UserError(
            f"sampling.top_p is {section.top_p} and sampling.top_k is {section.top_k}, but the "
            "loss scores the untruncated distribution; expected top_p=1 and top_k=0, or "
            "sampling.allow_truncated_distribution=true"
        )


def _micro_batches(config: TrainConfig, loaded: LoadedModel) -> int:
    batch = config.batch
    prompts, minis = batch.prompts_per_step, batch.mini_batches
    if prompts % minis:
        raise UserError(
            f"batch.mini_batches is {minis}; expected a divisor of batch.prompts_per_step "
            f"({prompts})"
        )
    return optimizer.count_micro_batches(
        batch.micro_batch_size,
        prompts // minis,
        batch_devices(loaded.mesh),
        field="prompts_per_step",
        unit="prompts",
        updates=minis,
    )
