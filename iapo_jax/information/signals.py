"""What the frozen policies say about a rollout, and its groups as the credit rules see them."""

from functools import partial

import jax
import jax.numpy as jnp

from iapo_jax.information import estimators
from iapo_jax.information.estimators import Probe
from iapo_jax.model.scoring import (
    forward_completions,
    prefill,
    score_completions,
    token_scores,
)
from iapo_jax.sharding import micro_batches, undo_micro_batches
from iapo_jax.types import Array, Group, Model, Params, Rollout, Signals, valid_mask


@partial(jax.jit, static_argnames=("model", "micro", "estimator"))
def compute_signals(
    model: Model,
    params: Params,
    ref_params: Params | None,
    rollout: Rollout,
    probe: Probe | None,
    temperature: Array,
    *,
    micro: int = 1,
    estimator: str = "answer_entropy",
) -> Signals:
    """Log-probabilities, entropies and uncertainties of a rollout, in `micro` micro-batches.

    Args:
      ref_params: the reference of the KL; None where there is none.
      probe: what to ask about the answer, and where; None where nobody wants to know.
      estimator: a name of `information.ESTIMATORS`.
    """

    params = model.gather(params)
    postfix = None if probe is None else probe.postfix
    per_prompt = None if probe is None else (probe.positions, probe.answers)

    def one(parts: tuple) -> Signals:
        part, asked = parts
        prompts, tokens = part.prompts, part.tokens
        prompt = prefill(model, params, prompts)
        hidden, cache = forward_completions(model, params, prompts, tokens, prompt)
        weight = model.logit_weight(params)
        scores = token_scores(
            hidden[..., :-1, :], weight, tokens, temperature, devices=model.devices
        )
        reference = scores.log_prob
        if ref_params is not None:
            reference = score_completions(model, ref_params, prompts, tokens, temperature).log_prob
        size = tokens.shape[-1]
        uncertainty = jnp.zeros((*tokens.shape[:-1], size + 1))
        if asked is not None:
            uncertainty = estimators.answer_uncertainty(
                estimator, model, params, prompts, (prompt, cache), Probe(postfix, *asked), size
            )
        mask = valid_mask(part.length, size)
        hide = lambda x: jnp.where(mask, x, 0.0)  # noqa: E731
        return Signals(hide(scores.log_prob), hide(reference), hide(scores.entropy), uncertainty)

    batch = (rollout, per_prompt)
    if micro == 1:
        return one(batch)
    return undo_micro_batches(jax.lax.map(one, micro_batches(batch, micro)))


def make_groups(
    rollout: Rollout, signals: Signals, reward: Array, correct: Array, thinking_length: Array
) -> Group:
    """The groups of all prompts, each leaf with a leading axis P, to be vmapped over.

    Args:
      reward, correct, thinking_length: [P, G]; the last in tokens, those before the one that
        ends the reasoning.
    """
    size = rollout.tokens.shape[-1]
    mask = valid_mask(rollout.length, size)
    thinking = mask & valid_mask(thinking_length, size)
    return Group(
        tokens=rollout.tokens,
        mask=mask,
        reward=reward,
        correct=correct,
        log_prob=signals.log_prob,
        entropy=signals.entropy,
        uncertainty=signals.uncertainty,
        thinking=thinking,
    )
