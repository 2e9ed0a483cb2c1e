"""What the frozen policies compute for a rollout, and the groups that credit rules read."""

from functools import partial

import jax
import jax.numpy as jnp

from iapo_jax.information.estimators import Probe, uncertainty_at
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
    rollout: Rollout,
    probe: Probe | None = None,
    *,
    ref_params: Params | None = None,
    temperature: Array | float = 1.0,
    micro: int = 1,
    estimator: str = "answer_entropy",
) -> Signals:
    """log p(o_t), its value under a reference, H_t, and u_t of a rollout, in one pass.

    Args:
      rollout: completions [P, G, T].
      probe: the postfix, where it is appended, and the answers; without a probe, u_t is 0.
      ref_params: parameters of the reference policy; by default the policy is its own reference.
      temperature: of the policy; u_t is computed at 1.
      micro: number of micro-batches; it must divide P.
      estimator: a name of `ESTIMATORS`.

    Returns:
      [P, G, T] float32 nats, 0 on padding, and u_t [P, G, T+1], constant after the last position.

    >>> from iapo_jax.model import DecoderConfig, init_params, make_model
    >>> config = DecoderConfig(vocab_size=11, hidden_size=8, intermediate_size=8, num_layers=1,
    ...                        num_heads=2, num_kv_heads=1, head_dim=4)
    >>> model, params = make_model(config), init_params(config, jax.random.key(0))
    >>> from iapo_jax import Prompts
    >>> rollout = Rollout(Prompts(jnp.array([[3, 1]]), jnp.array([2])), jnp.array([[[4, 5, 0]]]),
    ...                   length=jnp.array([[2]]), log_prob=None, finished=None)
    >>> signals = compute_signals(model, params, rollout)
    >>> print(signals.entropy.shape, signals.log_prob[0, 0, 2])
    (1, 1, 3) 0.0
    """
    params = model.gather(params)
    postfix = None if probe is None else jnp.asarray(probe.postfix, jnp.int32)
    per_prompt = None if probe is None else (probe.positions, probe.answers)

    def signals_of(parts: tuple) -> Signals:
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
            own = Probe(postfix, *asked)
            uncertainty = uncertainty_at(
                estimator, model, params, prompts, (prompt, cache), own, size
            )
        real = partial(jnp.where, valid_mask(part.length, size))
        return Signals(
            log_prob=real(scores.log_prob, 0.0),
            ref_log_prob=real(reference, 0.0),
            entropy=real(scores.entropy, 0.0),
            uncertainty=uncertainty,
        )

    batch = (rollout, per_prompt)
    if micro == 1:
        return signals_of(batch)
    return undo_micro_batches(jax.lax.map(signals_of, micro_batches(batch, micro)))


def make_groups(
    rollout: Rollout,
    signals: Signals,
    reward: Array,
    correct: Array | None = None,
    thinking_length: Array | None = None,
) -> Group:
    """The groups of all prompts: each leaf has a leading axis P, over which `jax.vmap` maps.

    Args:
      reward: [P, G] float32.
      correct: [P, G] bool; None where no rule needs it.
      thinking_length: [P, G] tokens before the one that ends the reasoning; by default all but the
        stop token.

    >>> import numpy as np
    >>> from iapo_jax import Prompts
    >>> rollout = Rollout(None, np.array([[[4, 5, 0]]]), length=np.array([[2]]), log_prob=None,
    ...                   finished=np.array([[True]]))
    >>> signals = Signals(*np.zeros((3, 1, 1, 3)), np.array([[[2.0, 0.5, 0.5, 0.5]]]))
    >>> group = make_groups(rollout, signals, reward=np.array([[1.0]]))
    >>> group.mask.tolist(), group.informativeness.tolist()
    ([[[True, True, False]]], [[[1.5, 0.0, 0.0]]])
    """
    size = rollout.tokens.shape[-1]
    mask = valid_mask(rollout.length, size)
    if thinking_length is None:
        thinking_length = rollout.length - rollout.finished
    return Group(
        mask=mask,
        reward=reward,
        correct=correct,
        log_prob=signals.log_prob,
        entropy=signals.entropy,
        uncertainty=signals.uncertainty,
        thinking=mask & valid_mask(thinking_length, size),
        tokens=rollout.tokens,
    )
