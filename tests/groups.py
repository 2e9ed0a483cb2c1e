"""Groups of random signals, and what a group may be at its worst; shared by the tests of credit."""

import jax.numpy as jnp
import numpy as np

from iapo_jax.types import Group

T = 12


def make_group(rng, *, length, thinking, reward, correct):
    """A group of random signals; columns beyond a completion's length hold nonsense."""
    length, thinking = np.asarray(length), np.asarray(thinking)
    size = max(T, int(length.max()))
    mask = np.arange(size) < length[:, None]
    think = mask & (np.arange(size) < thinking[:, None])
    u = rng.uniform(0.0, 3.0, (len(length), size + 1)).astype(np.float32)
    return Group(
        tokens=jnp.asarray(np.where(mask, rng.integers(0, 97, mask.shape), 0), jnp.int32),
        mask=jnp.asarray(mask),
        reward=jnp.asarray(reward, jnp.float32),
        correct=jnp.asarray(correct),
        log_prob=jnp.asarray(np.where(mask, np.log(rng.uniform(0.05, 1.0, mask.shape)), 0.0), "f4"),
        entropy=jnp.asarray(np.where(mask, rng.uniform(0.0, 2.0, mask.shape), 0.0), "f4"),
        uncertainty=jnp.asarray(u),
        thinking=jnp.asarray(think),
    )


USUAL = dict(
    length=[12, 7, 9, 5], thinking=[8, 4, 9, 0], reward=[1.5, -0.5, 0.5, -1.5],
    correct=[True, False, True, False],
)  # fmt: skip
# Differences from USUAL.
DEGENERATE = {
    "usual": {},
    "all right": dict(correct=[True] * 4, reward=[1.5] * 4),
    "all wrong": dict(correct=[False] * 4, reward=[-1.5] * 4),
    "one right": dict(correct=[True, False, False, False], reward=[1.5, -1.5, -1.5, -1.5]),
    "equal lengths": dict(length=[9] * 4, thinking=[6] * 4),
    "one token": dict(length=[1, 1, 1, 1], thinking=[0, 1, 0, 1]),
    "no thinking": dict(thinking=[0, 0, 0, 0]),
    "no stop token": dict(length=[12, 7, 9, 5], thinking=[12, 7, 9, 5]),
    "all truncated": dict(length=[12] * 4, thinking=[12] * 4, correct=[False] * 4),
    "one completion": dict(length=[6], thinking=[4], reward=[1.0], correct=[True]),
    "huge rewards": dict(reward=[1e6, -1e6, 1e6, 0.0]),
}

# Options without a default, and options that have an effect on only twelve tokens.
OPTIONS = {
    "length_cap": {"cap": 8},
    "l1_max": {"target_length": 8, "slope": 0.1},
    "s_grpo": {"first": 2, "until": 10},
}


def usual_group(seed=0, **changes):
    return make_group(np.random.default_rng(seed), **(USUAL | changes))


def plain_group(u, *, thinking, mask=None, reward=None, correct=None, log_prob=None, entropy=None):
    """A group from its uncertainties [G, T+1] and lengths of thinking; the rest is simple."""
    u = np.asarray(u, np.float32)
    shape = (u.shape[0], u.shape[1] - 1)
    mask = np.ones(shape, bool) if mask is None else np.asarray(mask)
    think = mask & (np.arange(shape[1]) < np.asarray(thinking)[:, None])

    def default(x, like):
        return np.zeros(shape) if x is None else np.broadcast_to(x, shape) + like

    return Group(
        tokens=jnp.asarray(np.arange(np.prod(shape)).reshape(shape), jnp.int32),
        mask=jnp.asarray(mask),
        reward=jnp.asarray(np.ones(shape[0]) if reward is None else reward, jnp.float32),
        correct=jnp.asarray(np.ones(shape[0], bool) if correct is None else correct),
        log_prob=jnp.asarray(default(log_prob, 0), jnp.float32),
        entropy=jnp.asarray(default(entropy, 0), jnp.float32),
        uncertainty=jnp.asarray(u),
        thinking=jnp.asarray(think),
    )
