"""The letters in shapes, and the tuples that modules pass to each other.

Shapes
    P prompts in a step          G completions of one prompt
    L prompt tokens              T completion tokens
    K tokens of the exit postfix A tokens of an answer    C probed positions
    V vocabulary                 D model width            N layers
    H query heads                M key/value heads        d head width
    S tokens of a segment        Y answers of a set

A step is one rollout with all the updates that are made from it: max_steps, save_steps,
checkpoints, logs and rows of metrics count steps. An update is one application of the optimizer;
`TrainState.updates` counts them.

Units: entropies, log-probabilities and information in nats; lengths in tokens. Masks are True on
real tokens. Every segment is right-padded: row i holds ``length[i]`` real tokens, then padding.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array
Params = Any  # a nested dict of arrays, see `model.init_params`


class Prompts(NamedTuple):
    """Prompts of a step, right-padded."""

    tokens: Array  # [P, L] int32
    length: Array  # [P] int32, at least 1


class Rollout(NamedTuple):
    """Prompts with G sampled completions each."""

    prompts: Prompts
    tokens: Array  # [P, G, T] int32; padding (id 0) from `length` on
    length: Array  # [P, G] int32; counts the stop token, so stopping has a gradient
    log_prob: Array  # [P, G, T] float32 nats, full softmax at the temperature; 0 on padding
    finished: Array  # [P, G] bool; True where a stop token ended the completion


class Signals(NamedTuple):
    """What the frozen policies compute for a rollout: the inputs of credit and loss."""

    log_prob: Array  # [P, G, T] nats, under the policy that sampled, recomputed by the scorer
    ref_log_prob: Array  # [P, G, T] nats, under the reference; equal to `log_prob` without one
    entropy: Array  # [P, G, T] nats, of the next-token distribution before token t
    uncertainty: Array  # [P, G, T+1] nats, u_t about the answer after t tokens; 0 without a probe


class ProbePositions(NamedTuple):
    """The prefixes of each completion after which the model is made to answer."""

    index: Array  # [P, G, C] int32, ascending: tokens read; from `count` on, the last is repeated
    count: Array  # [P, G] int32, at least 1


class Answers(NamedTuple):
    """Answers to teacher-force, right-padded; the second axis has size 1 where a group shares them.

    Used slots come first; in unused slots, `length` is 0.
    """

    tokens: Array  # [P, G or 1, Y, A] int32; Y answers
    length: Array  # [P, G or 1, Y] int32
    meaning: Array  # [P, G or 1, Y] int32 in [0, Y); equal where two texts are the same answer


class Group(NamedTuple):
    """All that a credit rule may look at: G completions of ONE prompt.

    `mask` and `reward` suffice for GRPO; a rule that needs another field refuses a group without
    it. Stacked for P prompts, every leaf has a leading axis P.

    >>> import numpy as np
    >>> mask, thinking = np.ones((2, 3), bool), np.array([[True, True, False]] * 2)
    >>> group = Group(mask, reward=np.array([1.0, 0.0]), thinking=thinking,
    ...               uncertainty=np.array([[2.0, 1.5, 0.5, 0.5], [2.0, 2.0, 1.0, 1.0]]))
    >>> group.informativeness.tolist()
    [[0.5, 1.0, 0.0], [0.0, 1.0, 0.0]]
    """

    mask: Array  # [G, T] bool; True up to and including the stop token, False for all tokens of a
    # completion that a filter has left out
    reward: Array  # [G] float32
    correct: Array | None = None  # [G] bool
    log_prob: Array | None = None  # [G, T] nats
    entropy: Array | None = None  # [G, T] nats
    uncertainty: Array | None = None  # [G, T+1] nats; column t is u_t, after t tokens
    thinking: Array | None = None  # [G, T] bool; True on tokens before the one that ends reasoning
    tokens: Array | None = None  # [G, T] int32

    @property
    def informativeness(self) -> Array:
        """s_t = u_{t-1} - u_t on thinking tokens, 0 elsewhere: [G, T] nats.

        Raises:
          ValueError: if `uncertainty` or `thinking` is None.
        """
        for name in ("uncertainty", "thinking"):
            if getattr(self, name) is None:
                raise ValueError(f"Group.informativeness needs Group.{name}, which is None")
        return informativeness(self.uncertainty, self.thinking)


def informativeness(uncertainty: Array, thinking: Array) -> Array:
    """s_t = u_{t-1} - u_t on thinking tokens, 0 elsewhere: [..., T+1] -> [..., T] nats.

    Over a completion that thinks from its start, the sum is u_0 - u_(end of thinking).

    >>> import numpy as np
    >>> informativeness(np.array([2.0, 1.5, 1.75]), np.array([True, True])).tolist()
    [0.5, -0.25]
    """
    return jax.numpy.where(thinking, uncertainty[..., :-1] - uncertainty[..., 1:], 0.0)


class Credit(NamedTuple):
    """What a credit rule returns for one prompt."""

    advantage: Array  # [G, T] float32
    weight: Array  # [G, T] float32 >= 0; 0 where a token or a completion is left out of the loss
    bonus: Array | None = None  # [G, T]: the part of `advantage` that the rule adds per token,
    # for the diagnostics; None if the rule does not separate it


class Mean(NamedTuple):
    """A running mean, as the sum and the number of its items."""

    sum: Array
    count: Array

    def value(self) -> Array:
        """sum / count; 0 if there are no items."""
        return self.sum / jax.numpy.where(self.count > 0, self.count, 1)


def valid_mask(length: Array, size: int) -> Array:
    """True where position < length: [...] lengths -> [..., size] bool."""
    return jax.numpy.arange(size) < length[..., None]


class Cache(NamedTuple):
    """Keys and values of a block of tokens, for every layer.

    Leaves are [N, *lead, S, M, d] where the layers are stacked, or a tuple of N arrays
    [*lead, S, M, d] where they are unrolled: the layout of the parameters that made them.
    """

    keys: Any
    values: Any


class Context(NamedTuple):
    """Cached tokens, as new tokens [*lead, S] read them.

    The cache's leading axes are the first axes of `lead`; it is shared along the others. A new
    token reads the first `visible` cached tokens. `visible` is aligned with the axes of the new
    tokens from the left, and broadcasts over missing axes: [P] for prompts, [1, 1, C] for C
    positions.
    """

    cache: Cache
    visible: Array  # int32


class Model(NamedTuple):
    """A language model as pure functions; the algorithms use only this interface."""

    forward: Callable[..., tuple[Array, Cache]]
    # forward(params, tokens [*lead, S], positions [*lead, S], contexts, outputs_from=0) ->
    # (hidden [*lead, S - outputs_from, D] of the tokens from that one on, the cache of all).
    # New tokens also read themselves, causally.
    logit_weight: Callable[[Params], Array]  # params -> [V, D] float32; logits = hidden @ W^T
    unroll: Callable[[Params], Params]  # the same parameters, laid out for one-token steps
    gather: Callable[[Params], Params] = lambda params: params
    # the same parameters, with the embedding gathered over devices once, outside loops
    devices: int = 1  # number of devices that a batch is split over; chunk sizes are per device
