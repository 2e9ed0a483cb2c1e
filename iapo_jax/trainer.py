"""One training step: what stays fixed over a run, the rollout, its credit and its updates.

rollout = sample(...)                                device
reward  = score(decode(rollout), answers)            host, the only round trip
signals = log-probs, entropies, answer information   device
credit  = vmap(algorithm.advantage)(groups, keys)    device
state   = train_step(state, ...)                     device, donated, scanned over micro-batches
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from iapo_jax import data, probes, reporting, rollouts, update
from iapo_jax.algorithms import Algorithm, make_algorithm
from iapo_jax.checks import check_config
from iapo_jax.config import TrainConfig
from iapo_jax.errors import UserError
from iapo_jax.losses import LossOptions, loss_scale, policy_loss
from iapo_jax.metrics import compiles
from iapo_jax.rollouts import Scored
from iapo_jax.run import Run, open_run
from iapo_jax.scoring import score_completions
from iapo_jax.sharding import batch_devices, by_prompt, fetch, micro_batches, put, replicated
from iapo_jax.signals import compute_signals, make_groups
from iapo_jax.types import Array, Credit, Group, Mean, Model, Params, Prompts
from iapo_jax.update import TrainState


class TrainBatch(NamedTuple):
    """What the loss reads; leaves have a leading axis P."""

    prompts: Prompts
    tokens: Array  # [P, G, T]
    old_log_prob: Array  # [P, G, T]
    ref_log_prob: Array  # [P, G, T]
    credit: Credit


class UpdateSpec(NamedTuple):
    """The static side of an optimizer update."""

    mesh: Mesh
    model: Model
    optimizer: Any
    loss: LossOptions
    mini_batches: int  # a rollout is cut into so many updates
    micro_batches: int  # and each of them into so many passes
    max_length: int  # T of the configuration, for dr_grpo


@partial(jax.jit, static_argnames="spec", donate_argnames="state")
def train_step(
    state: TrainState, batch: TrainBatch, index: Array, temperature: Array, *, spec: UpdateSpec
) -> tuple[TrainState, dict[str, Array]]:
    """One optimizer update on mini-batch `index` of a rollout; returns scalars as metrics."""
    batch = jax.tree.map(lambda x: x[index], micro_batches(batch, spec.mini_batches))
    scale = loss_scale(batch.credit.weight)

    def loss(params: Params, part: TrainBatch) -> tuple[Array, dict[str, Mean]]:
        scores = score_completions(spec.model, params, part.prompts, part.tokens, temperature)
        return policy_loss(
            scores.log_prob,
            part.old_log_prob,
            part.ref_log_prob,
            *part.credit,
            scale,
            options=spec.loss,
            max_length=spec.max_length,
        )

    gradient, value, metrics = update.accumulate_gradients(
        loss, state.params, batch, spec.micro_batches
    )
    state, norm = update.apply_gradient(spec.mesh, spec.optimizer, state, gradient)
    metrics = {name: mean.value() for name, mean in metrics.items()}
    return state, {"loss": value, "grad_norm": norm, **metrics}


@partial(jax.jit, static_argnames="advantage")
def assign_credit(groups: Group, keys: Array, *, advantage: Callable[..., Credit]) -> Credit:
    """The rule, applied to every prompt's group."""
    return jax.vmap(advantage)(groups, keys)


class Trainer(NamedTuple):
    """Everything that stays fixed over the steps of a run."""

    config: TrainConfig
    run: Run
    algorithm: Algorithm
    problems: data.Problems
    sampler: rollouts.Sampler
    paid: rollouts.RewardFunctions
    order: Callable[[int], np.ndarray]
    schedule: Callable[[int], Array]
    spec: UpdateSpec
    asker: probes.Asker | None  # of the answer probe; None where the rule needs none
    temperature: Array


def make_trainer(
    config: TrainConfig,
    *,
    advantage: Callable[..., Credit] | None = None,
    reward_functions: Sequence[Callable] | None = None,
) -> Trainer:
    """Checks the config and builds what a run needs, before any time is spent.

    Raises:
      UserError: one sentence for the first thing that is wrong.
    """
    check_config(config)
    algorithm = _algorithm(config, advantage)
    paid = rollouts.load_rewards(config.reward, reward_functions)
    _check_sampling(config)
    probes.check_section(config.information)
    run = open_run(config)
    _check_rule(config, algorithm, "advantage" if advantage else "algorithm.options")
    _check_top_k(config, run)
    micro = _micro_batch_size(config, run)
    rows = data.parse_rows(data.load_rows(config.data), config.data.dataset)
    problems = data.make_problems(
        rows, run.pretrained.tokenizer, config.prompt, config.data.max_prompt_length
    )
    sampler = rollouts.make_sampler(
        run,
        problems,
        num_generations=config.batch.num_generations,
        max_length=config.sampling.max_completion_length,
        sampling=config.sampling,
    )
    asker = None
    if algorithm.needs_information:
        asker = probes.make_asker(config.information, run.pretrained, run.mesh, problems.answers)
    everywhere = replicated(run.mesh)
    batch = config.batch
    updates = config.max_steps * batch.mini_batches * batch.num_iterations
    spec = UpdateSpec(
        run.mesh,
        run.model,
        update.make_optimizer(config.optimizer, updates),
        algorithm.loss,
        batch.mini_batches,
        batch.prompts_per_step // batch.mini_batches // micro,
        config.sampling.max_completion_length,
    )
    return Trainer(
        config,
        run,
        algorithm,
        problems,
        sampler,
        paid,
        data.batch_order(len(problems.tokens), config.batch.prompts_per_step, config.seed),
        update.make_schedule(config.optimizer, updates),
        spec,
        asker,
        put(np.float32(config.sampling.temperature), everywhere),
    )


def _algorithm(config: TrainConfig, advantage: Callable[..., Credit] | None) -> Algorithm:
    section = config.algorithm
    try:
        algorithm = make_algorithm(
            section.name,
            {} if advantage else section.options,
            loss_type=section.loss_type,
            epsilon=section.epsilon,
            epsilon_high=section.epsilon_high,
            beta=section.beta,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    if advantage:  # it may look at anything
        algorithm = algorithm._replace(advantage=advantage, needs_information=True)
    return algorithm


def _check_rule(config: TrainConfig, algorithm: Algorithm, source: str) -> None:
    """Traces the rule on shapes alone: a wrong option, signature or result shows at once."""
    shape = (config.batch.num_generations, config.sampling.max_completion_length)
    struct = lambda shape, dtype: jax.ShapeDtypeStruct((1, *shape), dtype)  # noqa: E731
    floats, flags = struct(shape, np.float32), struct(shape, bool)
    group = Group(
        mask=flags,
        reward=struct(shape[:1], np.float32),
        correct=struct(shape[:1], bool),
        log_prob=floats,
        entropy=floats,
        uncertainty=struct((shape[0], shape[1] + 1), np.float32),
        informativeness=floats,
        thinking=flags,
    )
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    expected = f"Credit of two float arrays [G, T] = {list(shape)}"
    try:
        credit = jax.eval_shape(partial(assign_credit, advantage=algorithm.advantage), group, keys)
    except Exception as error:  # whatever a rule of one's own may raise
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        called = f"; the rule is called with (group, key) and returns {expected}"
        raise UserError(f"{source}: {reason}" + called * (source == "advantage")) from error
    found = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape[1:])}", credit)
    fits = lambda x: x.shape[1:] == shape and jnp.issubdtype(x.dtype, jnp.floating)  # noqa: E731
    if not isinstance(credit, Credit) or not all(map(fits, jax.tree.leaves(credit))):
        raise UserError(f"{source}: the rule returned {found}; expected {expected}")


def _check_top_k(config: TrainConfig, run: Run) -> None:
    size = run.pretrained.config.vocab_size
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


def _micro_batch_size(config: TrainConfig, run: Run) -> int:
    """Prompts in one forward and backward pass, checked against the rest of the batch."""
    batch, devices = config.batch, batch_devices(run.mesh)
    prompts, minis = batch.prompts_per_step, batch.mini_batches
    if prompts % minis:
        raise UserError(
            f"batch.mini_batches is {minis}; it must divide prompts_per_step ({prompts})"
        )
    micro = batch.micro_batch_size or prompts // minis
    if (prompts // minis) % micro or micro % devices:
        raise UserError(
            f"batch.micro_batch_size is {micro}; it must divide the {prompts // minis} prompts of "
            f"an optimizer update and be a multiple of the {devices} devices that share a batch"
        )
    return micro


def compute_credit(
    trainer: Trainer, params: Params, ref_params: Params | None, scored: Scored, step: int
) -> tuple[TrainBatch, dict[str, Array]]:
    """Signals, groups and credit of a rollout, as the batch of its updates, and their metrics."""
    split = by_prompt(trainer.run.mesh)
    rollout = put(scored.rollout, split)
    host = put((scored.reward, scored.correct, scored.thinking_length), split)
    probe = None
    if trainer.asker is not None:
        golds, texts = rollouts.answered(trainer.problems, scored)
        probe = probes.ask(trainer.asker, rollout.tokens, host[-1], golds, texts)
    signals = compute_signals(
        trainer.run.model,
        params,
        ref_params,
        rollout,
        probe,
        trainer.temperature,
        micro=trainer.spec.micro_batches * trainer.spec.mini_batches,
        estimator=trainer.config.information.estimator,
    )
    groups = jax.jit(make_groups)(rollout, signals, *host)
    rows = rollouts.distinct_rows(scored.indices, len(trainer.problems.tokens))
    keys = trainer.sampler.keys(trainer.config.seed, -1 - step, rows)  # apart from the sampler's
    credit = assign_credit(groups, keys, advantage=trainer.algorithm.advantage)
    batch = TrainBatch(
        rollout.prompts, rollout.tokens, signals.log_prob, signals.ref_log_prob, credit
    )
    return batch, reporting.device_metrics(rollout, groups, credit)


def run_step(
    trainer: Trainer, state: TrainState, ref_params: Params | None, step: int
) -> tuple[TrainState, Scored, dict[str, float]]:
    """One rollout and its updates; `step` counts from 0."""
    config, started = trainer.config, time.perf_counter()
    scored = rollouts.collect(
        trainer.sampler,
        state.params,
        trainer.problems,
        trainer.order(step),
        trainer.paid,
        config,
        step,
    )
    collected = time.perf_counter()
    batch, metrics = compute_credit(trainer, state.params, ref_params, scored, step)
    metrics = fetch(metrics)
    credited = time.perf_counter()
    updates = []
    for number in range(config.batch.mini_batches * config.batch.num_iterations):
        index = np.int32(number % config.batch.mini_batches)
        state, values = train_step(state, batch, index, trainer.temperature, spec=trainer.spec)
        updates.append(values)
    updates = fetch(updates)
    ended = time.perf_counter()
    row = reporting.host_metrics(scored)
    row |= {name: float(value) for name, value in metrics.items()}
    row |= {name: float(np.mean([u[name] for u in updates])) for name in updates[0]}
    row["learning_rate"] = float(trainer.schedule(step * len(updates)))
    row |= scored.seconds
    row["time/signals"] = credited - collected
    row["time/update"] = ended - credited
    row["time/step"] = ended - started
    row["perf/completion_tokens_per_second"] = float(scored.rollout.length.sum()) / (
        ended - started
    )
    row["compiles"] = compiles()
    return state, scored, row
