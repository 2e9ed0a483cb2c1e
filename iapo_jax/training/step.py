"""One training step: a rollout, its credit, and all the updates that are made from it.

rollout = generate(...)                  device: sample; host: decode, check answers, reward
signals = score_rollout(...)             device: log-probs, entropies, answer information
credit  = compute_credit(...)            device: vmap(algorithm.credit)(groups, keys)
state   = update_policy(...)             device: donated, scanned over micro-batches

A step returns what it computed as a `StepRecord`; `step_metrics` turns that into metrics.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from iapo_jax.algorithms.policy_loss import LossStatistics
from iapo_jax.information import probes
from iapo_jax.information.signals import compute_signals, make_groups
from iapo_jax.rollout import sampler
from iapo_jax.rollout.dynamic_sampling import SamplingRounds, sample_mixed
from iapo_jax.rollout.generation import (
    RewardedRollout,
    completions_by_prompt,
    generate_and_score,
)
from iapo_jax.sharding import by_prompt, fetch, put
from iapo_jax.training.optimizer import TrainState, UpdateResult
from iapo_jax.training.setup import Setup
from iapo_jax.training.update import (
    TrainBatch,
    adapt_settings,
    assign_credit,
    count_non_finite,
    policy_update,
)
from iapo_jax.types import Array, Credit, Group, Params, Rollout, Signals


class ScoredRollout(NamedTuple):
    """A rollout on the mesh, scored by the policies."""

    rollout: Rollout
    signals: Signals
    groups: Group  # leaves have a leading axis P


class PolicyUpdate(NamedTuple):
    """One optimizer update, on the host."""

    result: UpdateResult
    statistics: LossStatistics  # the value of each `Mean`


class StepSeconds(NamedTuple):
    """Wall time in seconds of the parts of a step after the rollout, and of the entire step."""

    signals: float
    update: float
    step: float


class StepRecord(NamedTuple):
    """Everything that a step computed; its metrics and files are made from it."""

    rewarded: RewardedRollout
    rounds: SamplingRounds | None  # None without dynamic sampling
    scored: ScoredRollout
    credit: Credit
    settings: dict[str, Array]  # the values of hyper-parameters that adapt during the run
    non_finite: dict[str, int]  # values of the rollout that are not finite, by kind
    updates: list[PolicyUpdate]  # empty if there are such values
    planned_updates: int
    learning_rate: float  # of the first update
    seconds: StepSeconds

    def sampled_tokens(self) -> int:
        """The number of sampled tokens, in all rounds of dynamic sampling."""
        return self.rewarded.sampled_tokens() if self.rounds is None else self.rounds.tokens

    def failures(self) -> dict[str, Any]:
        """What was not finite, as JSON values; empty if everything was finite."""
        found: dict[str, Any] = {name: int(n) for name, n in self.non_finite.items() if n}
        skipped = [
            {
                "update": number,
                "loss": str(float(update.result.loss)),
                "grad_norm": str(float(update.result.grad_norm)),
            }
            for number, update in enumerate(self.updates)
            if update.result.skipped
        ]
        return found | ({"updates": skipped} if skipped else {})


def train_step(
    setup: Setup,
    state: TrainState,
    ref_params: Params | None,
    step: int,
    report: Callable[[str], Any] = lambda _: None,
) -> tuple[TrainState, StepRecord]:
    """Runs one step: a rollout and its updates.

    If a value of the rollout or of its credit is not finite, there are no updates and the state
    does not change. An update whose loss, gradient or new parameters are not finite is skipped.

    Args:
      ref_params: parameters of the reference policy; None without a KL.
      step: the number of the step, from 0.
      report: receives a line of progress before each further round of sampling.
    """
    started = time.perf_counter()
    learning_rate = float(setup.schedule(int(fetch(state.updates))))
    rewarded, rounds = generate(setup, state.params, step, report)
    generated = time.perf_counter()
    scored = score_rollout(setup, state.params, ref_params, rewarded)
    credit, adaptation, settings = compute_credit(
        setup, scored, state.adaptation, rewarded.indices, step
    )
    non_finite = fetch(count_non_finite(scored.rollout, scored.signals, credit, adaptation))
    credited = time.perf_counter()
    updates: list[PolicyUpdate] = []
    if not any(non_finite.values()):
        state, updates = update_policy(setup, state, scored, credit, adaptation)
    ended = time.perf_counter()
    batch = setup.config.batch
    return state, StepRecord(
        rewarded=rewarded,
        rounds=rounds,
        scored=scored,
        credit=credit,
        settings=settings,
        non_finite=non_finite,
        updates=updates,
        planned_updates=batch.mini_batches * batch.num_iterations,
        learning_rate=learning_rate,
        seconds=StepSeconds(
            signals=credited - generated, update=ended - credited, step=ended - started
        ),
    )


def generate(
    setup: Setup, params: Params, step: int, report: Callable[[str], Any] = lambda _: None
) -> tuple[RewardedRollout, SamplingRounds | None]:
    """The rollout of a step, in several rounds if the algorithm uses dynamic sampling."""
    draw = partial(
        generate_and_score,
        params,
        step=step,
        sampler=setup.sampler,
        pretrained=setup.loaded.pretrained,
        problems=setup.problems,
        reward_functions=setup.reward_functions,
        config=setup.config,
    )
    if not setup.algorithm.dynamic_sampling:
        return draw(setup.order(step)), None
    rounds = setup.config.algorithm.max_rounds

    def draw_round(round: int) -> RewardedRollout:
        if round == 0:
            return draw(setup.order(step))
        return draw(setup.extra_prompts(step * (rounds - 1) + round - 1), round=round)

    return sample_mixed(draw_round, rounds=rounds, report=report)


def score_rollout(
    setup: Setup, params: Params, ref_params: Params | None, rewarded: RewardedRollout
) -> ScoredRollout:
    """Log-probabilities, entropies and answer information, and the groups for the credit rule."""
    split = by_prompt(setup.loaded.mesh)
    rollout = put(rewarded.rollout, split)
    found = put((rewarded.reward, rewarded.correct, rewarded.thinking_length), split)
    probe = None
    if setup.probe_maker is not None:
        answers, texts = completions_by_prompt(setup.problems, rewarded)
        until = rollout.length if setup.algorithm.after_thinking else found[-1]
        probe = probes.make_probe(setup.probe_maker, rollout.tokens, until, answers, texts)
    signals = compute_signals(
        setup.loaded.model,
        params,
        rollout,
        probe,
        ref_params=ref_params,
        temperature=setup.temperature,
        micro=setup.spec.micro_batches * setup.spec.mini_batches,
        estimator=setup.config.information.estimator,
    )
    groups = jax.jit(make_groups)(rollout, signals, *found)
    return ScoredRollout(rollout=rollout, signals=signals, groups=groups)


def compute_credit(
    setup: Setup, scored: ScoredRollout, adaptation: Any, rows: np.ndarray, step: int
) -> tuple[Credit, Any, dict[str, Array]]:
    """The credit of all groups, the next state of the adaptation, and the values that it sets.

    Args:
      rows: [P] indices of the prompts, which determine the random keys of the rule.
    """
    algorithm = setup.algorithm
    settings: dict[str, Array] = {}
    if algorithm.adapt is not None:
        adaptation, settings = adapt_settings(adaptation, scored.groups, adapt=algorithm.adapt)
    numbers = sampler.distinct_rows(rows, len(setup.problems.tokens))
    # Negative steps, so that the keys differ from those of the sampler.
    keys = setup.sampler.keys(setup.config.seed, -1 - step, numbers)
    credit = assign_credit(scored.groups, keys, settings, algorithm=algorithm)
    return credit, adaptation, settings


def update_policy(
    setup: Setup, state: TrainState, scored: ScoredRollout, credit: Credit, adaptation: Any
) -> tuple[TrainState, list[PolicyUpdate]]:
    """All updates of a step: `num_iterations` passes over the mini-batches of its rollout.

    The adaptation advances unless every update was skipped.
    """
    sizes = setup.config.batch
    batch = TrainBatch(
        prompts=scored.rollout.prompts,
        tokens=scored.rollout.tokens,
        old_log_prob=scored.signals.log_prob,
        ref_log_prob=scored.signals.ref_log_prob,
        credit=credit._replace(bonus=None),
    )
    updates = []
    for number in range(sizes.mini_batches * sizes.num_iterations):
        state, *found = policy_update(
            state,
            batch,
            np.int32(number % sizes.mini_batches),
            setup.temperature,
            mesh=setup.loaded.mesh,
            model=setup.loaded.model,
            spec=setup.spec,
        )
        updates.append(PolicyUpdate(*found))
    updates = fetch(updates)
    if not all(update.result.skipped for update in updates):
        state = state._replace(adaptation=adaptation)
    return state, updates


def batch_arrays(record: StepRecord) -> dict[str, np.ndarray]:
    """The arrays of a skipped step, on the host, for finding the cause."""
    rewarded = record.rewarded
    found: dict[str, Any] = {"rows": rewarded.indices, "reward": rewarded.reward}
    found |= {"correct": rewarded.correct, "thinking_length": rewarded.thinking_length}
    parts = {
        "rollout": rewarded.rollout,
        "signals": record.scored.signals,
        "credit": record.credit._replace(bonus=None),
        "prompts": rewarded.rollout.prompts,
    }
    for part, values in parts.items():
        found |= {f"{part}.{name}": x for name, x in fetch(values)._asdict().items()}
    del found["rollout.prompts"]
    return {name: np.asarray(x) for name, x in found.items() if x is not None}
