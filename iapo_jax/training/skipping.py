"""Steps whose numbers are not finite: they change nothing, are counted, and leave their batch."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from iapo_jax.rollout.collect import Scored
from iapo_jax.sharding import fetch
from iapo_jax.types import Array, Credit, Rollout, Signals, valid_mask


class Skipped(NamedTuple):
    """What was not finite in a step, and the batch, on the host."""

    why: dict[str, Any]
    arrays: dict[str, np.ndarray]


@jax.jit
def count_non_finite(
    rollout: Rollout, signals: Signals, credit: Credit, adaptation: Any
) -> dict[str, Array]:
    """How many numbers of a rollout are NaN or infinite, by what they are; int32 scalars.

    Padding does not count.
    """
    size = rollout.tokens.shape[-1]
    mask, cuts = valid_mask(rollout.length, size), valid_mask(rollout.length + 1, size + 1)
    count = lambda x, among: (among & ~jnp.isfinite(x)).sum()  # noqa: E731
    return {
        "sampled_log_prob": count(rollout.log_prob, mask),
        "log_prob": count(signals.log_prob, mask),
        "ref_log_prob": count(signals.ref_log_prob, mask),
        "entropy": count(signals.entropy, mask),
        "uncertainty": count(signals.uncertainty, cuts),
        "advantage": count(credit.advantage, mask),
        "weight": count(credit.weight, mask),
        "adaptation": sum((count(x, True) for x in jax.tree.leaves(adaptation)), jnp.int32(0)),
    }


def why_skipped(counts: Mapping[str, Any], updates: list[Mapping[str, Any]]) -> dict[str, Any]:
    """What was not finite, for people to read; empty where all was.

    Args:
      counts: of `count_non_finite`, on the host.
      updates: loss, grad_norm and skipped of each update that was tried, on the host.
    """
    why: dict[str, Any] = {name: int(n) for name, n in counts.items() if n}
    bad = [
        {"update": number, **{name: str(float(told[name])) for name in ("loss", "grad_norm")}}
        for number, told in enumerate(updates)
        if told["skipped"]
    ]
    return why | ({"updates": bad} if bad else {})


def batch_arrays(scored: Scored, signals: Signals, credit: Credit) -> dict[str, np.ndarray]:
    """All that a step was made of, on the host, to be looked at."""
    told: dict[str, Any] = {"rows": scored.indices, "reward": scored.reward}
    told |= {"correct": scored.correct, "thinking_length": scored.thinking_length}
    parts = {"rollout": scored.rollout, "signals": signals, "credit": credit}
    parts["prompts"] = scored.rollout.prompts
    for part, values in parts.items():
        told |= {f"{part}.{name}": x for name, x in fetch(values)._asdict().items()}
    del told["rollout.prompts"]
    return {name: np.asarray(x) for name, x in told.items() if x is not None}
