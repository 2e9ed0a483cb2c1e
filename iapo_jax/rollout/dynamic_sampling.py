"""Dynamic sampling (DAPO, arXiv:2503.14476): groups all right or all wrong give way to fresh ones.

On the host. What is drawn in a round is a function of (seed, step, round): a resumed run draws the
same.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from iapo_jax.rollout.collect import Scored


def is_mixed(correct: np.ndarray) -> np.ndarray:
    """Groups with right and wrong completions: [P, G] bool -> [P] bool."""
    return correct.any(1) & ~correct.all(1)


def collect_mixed(
    collect: Callable[[int], Scored], *, rounds: int, tell: Callable[[str], Any]
) -> tuple[Scored, dict[str, float]]:
    """A step's groups: those of round 0, the unmixed ones replaced by mixed ones of later rounds.

    At most `rounds` rounds of P prompts; places that are still unfilled then keep their group, as
    in GRPO. Returns metrics besides.

    Args:
      collect: round -> its P groups.
      tell: is told how far it is before each further round.
    """
    parts = [collect(0)]
    chosen = [(0, place) for place in range(len(parts[0].correct))]
    first = is_mixed(parts[0].correct)
    open_places = list(np.flatnonzero(~first))
    while open_places and len(parts) < rounds:
        filled = len(chosen) - len(open_places)
        tell(f"sampling round {len(parts) + 1} of {rounds}: {filled} of {len(chosen)} groups mixed")
        parts.append(collect(len(parts)))
        for fresh in np.flatnonzero(is_mixed(parts[-1].correct)):
            if open_places:
                chosen[open_places.pop(0)] = (len(parts) - 1, int(fresh))
    metrics = {
        "dynamic_sampling/rounds": float(len(parts)),
        "dynamic_sampling/first_mixed": float(first.mean()),
        # of the policy, not of groups chosen for being mixed
        "dynamic_sampling/first_accuracy": float(parts[0].correct.mean()),
        "dynamic_sampling/first_mean_length": float(parts[0].rollout.length.mean()),
        "dynamic_sampling/tokens": float(sum(part.rollout.length.sum() for part in parts)),
        "dynamic_sampling/unfilled": float(len(open_places)),
    }
    return (pick(parts, chosen) if len(parts) > 1 else parts[0]), metrics


def pick(parts: list[Scored], chosen: list[tuple[int, int]]) -> Scored:
    """The groups (part, place) of several rollouts as one, padded to the widest."""
    width = max(part.rollout.tokens.shape[-1] for part in parts)
    size = parts[0].rollout.length.shape[1]
    take = lambda *arrays: np.stack([arrays[part][place] for part, place in chosen])  # noqa: E731
    rollouts = [_widen(part.rollout, width) for part in parts]
    texts = [
        text
        for part, place in chosen
        for text in parts[part].texts[place * size : (place + 1) * size]
    ]
    add = lambda name: _add([getattr(part, name) for part in parts])  # noqa: E731
    names = ("indices", "reward", "rewards", "correct", "thinking_length")
    fields = {name: jax.tree.map(take, *(getattr(part, name) for part in parts)) for name in names}
    return Scored(
        rollout=jax.tree.map(take, *rollouts),
        texts=texts,
        seconds=add("seconds"),
        checker=add("checker"),
        **fields,
    )


def _add(parts: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(part[name] for part in parts) for name in parts[0]}


def _widen(rollout: Any, width: int) -> Any:
    pad = lambda x: np.pad(x, ((0, 0), (0, 0), (0, width - x.shape[-1])))  # noqa: E731
    return rollout._replace(tokens=pad(rollout.tokens), log_prob=pad(rollout.log_prob))
