"""One training step: the rollout, its credit and its updates.

rollout = sample(...)                                device
reward  = score(decode(rollout), answers)            host, the only round trip
signals = log-probs, entropies, answer information   device
credit  = vmap(algorithm.credit)(groups, keys)       device
state   = policy_update(state, ...)                     device, donated, scanned over micro-batches
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from iapo_jax.information import probes
from iapo_jax.information.signals import compute_signals, make_groups
from iapo_jax.rollout import collect as rollouts
from iapo_jax.rollout import dynamic_sampling, sampler
from iapo_jax.rollout.collect import Scored
from iapo_jax.runtime.console import compiles
from iapo_jax.sharding import by_prompt, fetch, put
from iapo_jax.training import step_metrics
from iapo_jax.training.optimizer import TrainState
from iapo_jax.training.setup import Setup
from iapo_jax.training.skipping import (
    Skipped,
    batch_arrays,
    count_non_finite,
    why_skipped,
)
from iapo_jax.training.update import (
    TrainBatch,
    adapt_settings,
    assign_credit,
    policy_update,
)
from iapo_jax.types import Array, Group, Params, Rollout, Signals


class ScoredRollout(NamedTuple):
    """A rollout on the mesh, and what the policies say about it."""

    rollout: Rollout
    signals: Signals
    groups: Group  # leaves have a leading axis P


def score_rollout(
    setup: Setup, params: Params, ref_params: Params | None, scored: Scored
) -> ScoredRollout:
    """Scores and probes a rollout; its groups as the credit rules see them."""
    split, section = by_prompt(setup.loaded.mesh), setup.config.information
    rollout = put(scored.rollout, split)
    host = put((scored.reward, scored.correct, scored.thinking_length), split)
    probe = None
    if setup.probe_maker is not None:
        golds, texts = rollouts.answered(setup.problems, scored)
        until = rollout.length if setup.algorithm.after_thinking else host[-1]
        probe = probes.make_probe(setup.probe_maker, rollout.tokens, until, golds, texts)
    signals = compute_signals(
        setup.loaded.model,
        params,
        rollout,
        probe,
        ref_params=ref_params,
        temperature=setup.temperature,
        micro=setup.spec.micro_batches * setup.spec.mini_batches,
        estimator=section.estimator,
    )
    return ScoredRollout(rollout, signals, jax.jit(make_groups)(rollout, signals, *host))


def compute_credit(
    setup: Setup, scored_rollout: ScoredRollout, adaptation: Any, rows: np.ndarray, step: int
) -> tuple[TrainBatch, Any, dict[str, Array]]:
    """The batch of the updates, the new state of the adaptation, and metrics.

    Args:
      rows: of the prompts.
    """
    rollout, signals, groups = scored_rollout
    algorithm = setup.algorithm
    settings: dict[str, Array] = {}
    if algorithm.adapt is not None:
        adaptation, settings = adapt_settings(adaptation, groups, adapt=algorithm.adapt)
    numbers = sampler.distinct_rows(rows, len(setup.problems.tokens))
    keys = setup.sampler.keys(setup.config.seed, -1 - step, numbers)  # not the sampler's
    credit = assign_credit(groups, keys, settings, algorithm=algorithm)
    metrics = step_metrics.device_metrics(
        rollout,
        groups,
        credit,
        threshold=setup.config.information.redundant_below,
        asked=setup.probe_maker is not None,
    )
    metrics |= step_metrics.setting_metrics(settings)
    batch = TrainBatch(
        rollout.prompts,
        rollout.tokens,
        signals.log_prob,
        signals.ref_log_prob,
        credit._replace(bonus=None),
    )
    return batch, adaptation, metrics


def collect_groups(
    setup: Setup, params: Params, step: int, tell: Callable[[str], Any]
) -> tuple[Scored, dict[str, float]]:
    """The step's rollout, in several rounds where the algorithm samples dynamically."""
    rounds = setup.config.algorithm.max_rounds if setup.algorithm.dynamic_sampling else 1

    def collect(round: int) -> Scored:
        indices = (
            setup.extra_prompts(step * (rounds - 1) + round - 1) if round else setup.order(step)
        )
        return rollouts.generate_and_score(
            setup.sampler,
            setup.loaded.pretrained,
            params,
            setup.problems,
            indices,
            setup.reward_functions,
            setup.config,
            step,
            round,
        )

    if not setup.algorithm.dynamic_sampling:
        return collect(0), {}
    return dynamic_sampling.collect_mixed(collect, rounds=rounds, tell=tell)


def train_step(
    setup: Setup,
    state: TrainState,
    ref_params: Params | None,
    step: int,
    tell: Callable[[str], Any] = lambda _: None,
) -> tuple[TrainState, Scored, dict[str, float], Skipped | None]:
    """One rollout and its updates; `step` counts from 0, `tell` hears of further rounds.

    Where a number of the rollout or of its credit is not finite there are no updates, and the
    state is as it was; where the loss or the gradient of an update is not, that update is left out.
    """
    config, started = setup.config, time.perf_counter()
    scored, sampling = collect_groups(setup, state.params, step, tell)
    collected = time.perf_counter()
    scored_rollout = score_rollout(setup, state.params, ref_params, scored)
    batch, adaptation, metrics = compute_credit(
        setup, scored_rollout, state.adaptation, scored.indices, step
    )
    counts = count_non_finite(
        scored_rollout.rollout, scored_rollout.signals, batch.credit, adaptation
    )
    metrics, counts, done = fetch((metrics, counts, state.updates))
    credited = time.perf_counter()
    tried = config.batch.mini_batches * config.batch.num_iterations
    updates: list[Any] = []
    if not any(counts.values()):
        for number in range(tried):
            index = np.int32(number % config.batch.mini_batches)
            state, values = policy_update(state, batch, index, setup.temperature, spec=setup.spec)
            updates.append(values)
        updates = fetch(updates)
        if not all(told["skipped"] for told in updates):
            state = state._replace(adaptation=adaptation)
    ended = time.perf_counter()
    why = why_skipped(counts, updates)
    row = step_metrics.host_metrics(scored) | sampling
    row |= {name: float(value) for name, value in metrics.items()}
    row |= step_metrics.update_metrics(updates, tried)
    row["learning_rate"] = float(setup.schedule(int(done)))
    row |= scored.seconds
    row["time/signals"] = credited - collected
    row["time/update"] = ended - credited
    row["time/step"] = ended - started
    sampled = sampling.get("dynamic_sampling/tokens", float(scored.rollout.length.sum()))
    row["completions/sampled_tokens"] = sampled
    row["perf/completion_tokens_per_second"] = sampled / (ended - started)
    row["compiles"] = compiles()
    skipped = (
        Skipped(why, batch_arrays(scored, scored_rollout.signals, batch.credit)) if why else None
    )
    return state, scored, row, skipped
