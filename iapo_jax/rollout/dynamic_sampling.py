"""Dynamic sampling (DAPO, arXiv:2503.14476): mixed groups replace uniform groups.

A group is mixed if it has correct and incorrect completions; in a uniform group the accuracy reward
gives no advantage. Everything here runs on the host. The completions of a round depend only on
(seed, step, round), so a resumed run samples the same ones.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from iapo_jax.rollout.generation import RewardedRollout, RolloutSeconds
from iapo_jax.types import Rollout


class SamplingRounds(NamedTuple):
    """What dynamic sampling did in a step.

    The fields `first_...` describe the policy without bias; later rounds keep only mixed groups.
    """

    rounds: int
    first_mixed: float  # share of mixed groups in the first round
    first_accuracy: float
    first_mean_length: float  # tokens
    tokens: int  # sampled in all rounds
    unfilled: int  # groups that are still uniform after the last round


def is_mixed(correct: np.ndarray) -> np.ndarray:
    """Groups with correct and incorrect completions: [P, G] bool -> [P] bool."""
    return correct.any(1) & ~correct.all(1)


def sample_mixed(
    generate: Callable[[int], RewardedRollout], *, rounds: int, report: Callable[[str], Any]
) -> tuple[RewardedRollout, SamplingRounds]:
    """The groups of round 0, with uniform groups replaced by mixed groups of later rounds.

    There are at most `rounds` rounds of P prompts. A group that is still uniform after the last one
    stays, as in GRPO.

    Args:
      generate: samples the P groups of a round, counted from 0.
      report: receives a line of progress before each further round.
    """
    parts = [generate(0)]
    chosen = [(0, place) for place in range(len(parts[0].correct))]
    first = is_mixed(parts[0].correct)
    open_places = list(np.flatnonzero(~first))
    while open_places and len(parts) < rounds:
        filled, number = len(chosen) - len(open_places), len(parts) + 1
        report(f"sampling round {number} of {rounds}: {filled} of {len(chosen)} groups mixed")
        parts.append(generate(len(parts)))
        for fresh in np.flatnonzero(is_mixed(parts[-1].correct)):
            if open_places:
                chosen[open_places.pop(0)] = (len(parts) - 1, int(fresh))
    found = SamplingRounds(
        rounds=len(parts),
        first_mixed=float(first.mean()),
        first_accuracy=float(parts[0].correct.mean()),
        first_mean_length=float(parts[0].rollout.length.mean()),
        tokens=sum(part.sampled_tokens() for part in parts),
        unfilled=len(open_places),
    )
    return (pick_groups(parts, chosen) if len(parts) > 1 else parts[0]), found


def pick_groups(parts: list[RewardedRollout], chosen: list[tuple[int, int]]) -> RewardedRollout:
    """One rollout of the groups (part, place) of several rollouts, padded to the widest."""
    width = max(part.rollout.tokens.shape[-1] for part in parts)
    size = parts[0].rollout.length.shape[1]

    def take(*arrays: np.ndarray) -> np.ndarray:
        return np.stack([arrays[part][place] for part, place in chosen])

    def take_texts(name: str) -> list[str]:
        return [
            text
            for part, place in chosen
            for text in getattr(parts[part], name)[place * size : (place + 1) * size]
        ]

    names = ("indices", "reward", "rewards", "correct", "thinking_length")
    arrays = {name: jax.tree.map(take, *(getattr(part, name) for part in parts)) for name in names}
    rollouts = [_widen(part.rollout, width) for part in parts]
    return RewardedRollout(
        rollout=jax.tree.map(take, *rollouts),
        texts=take_texts("texts"),
        complete_texts=take_texts("complete_texts"),
        seconds=RolloutSeconds(*map(sum, zip(*(part.seconds for part in parts), strict=True))),
        checker={name: sum(part.checker[name] for part in parts) for name in parts[0].checker},
        **arrays,
    )


def _widen(rollout: Rollout, width: int) -> Rollout:
    missing = width - rollout.tokens.shape[-1]
    padding = ((0, 0), (0, 0), (0, missing))
    return rollout._replace(
        tokens=np.pad(rollout.tokens, padding), log_prob=np.pad(rollout.log_prob, padding)
    )
