"""Dynamic sampling: which groups are taken from which round, and nothing else changes."""

import numpy as np
import pytest

from iapo_jax.rollout.dynamic_sampling import is_mixed, sample_mixed
from iapo_jax.rollout.generation import RewardedRollout, RolloutSeconds
from iapo_jax.types import Prompts, Rollout

P, G = 4, 3


def part(number, mixed, width):
    """A round whose groups with a 1 in `mixed` have right and wrong completions."""
    correct = np.ones((P, G), bool)
    correct[np.asarray(mixed, bool), 0] = False
    correct[0] &= bool(mixed[0])  # a group all wrong, where it is not mixed
    if mixed[0]:
        correct[0] = [True, False, True]
    mark = 100 * number + np.arange(P)
    lead = np.broadcast_to(mark[:, None], (P, G))
    rollout = Rollout(
        Prompts(np.full((P, 5), number), mark),
        np.broadcast_to(lead[..., None], (P, G, width)).astype(np.int32),
        np.full((P, G), width),
        np.full((P, G, width), -1.0, np.float32),
        np.ones((P, G), bool),
    )
    texts = [f"{m}.{g}" for m in mark for g in range(G)]
    return RewardedRollout(
        rollout=rollout,
        indices=mark,
        texts=texts,
        complete_texts=["<think>" + text for text in texts],
        reward=lead.astype(np.float32),
        rewards={"accuracy": lead + 0.5},
        correct=correct,
        thinking_length=np.zeros((P, G), np.int32),
        seconds=RolloutSeconds(sample=1.0, reward=0.5),
        checker={"timeouts": 1, "errors": 0},
    )


def collect(*rounds, limit=10, widths=(4, 6, 5, 4)):
    asked, told = [], []

    def one(number):
        asked.append(number)
        return part(number, rounds[number], widths[number])

    scored, found = sample_mixed(one, rounds=limit, report=told.append)
    return scored, found, asked, told


def test_is_mixed():
    correct = np.array([[True, True], [False, False], [True, False]])
    np.testing.assert_array_equal(is_mixed(correct), [False, False, True])


def test_nothing_is_drawn_again_where_all_groups_are_mixed():
    scored, found, asked, told = collect([1, 1, 1, 1])
    assert asked == [0] and told == []
    assert scored.indices.tolist() == [0, 1, 2, 3]
    assert found.rounds == found.first_mixed == 1


def test_unmixed_groups_give_way_in_their_places():
    scored, found, asked, told = collect([0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 1, 1])
    assert asked == [0, 1, 2]
    assert scored.indices.tolist() == [102, 1, 200, 202]
    assert is_mixed(scored.correct).all()
    # every field comes from the same group, padded to the widest round
    assert scored.rollout.prompts.length.tolist() == [102, 1, 200, 202]
    assert scored.rollout.tokens.shape == (P, G, 6)
    assert scored.rollout.tokens[:, 0, 0].tolist() == [102, 1, 200, 202]
    assert scored.rollout.tokens[1, 0].tolist() == [1, 1, 1, 1, 0, 0]
    assert scored.rollout.log_prob[1, 0].tolist() == [-1, -1, -1, -1, 0, 0]
    assert scored.texts[:4] == ["102.0", "102.1", "102.2", "1.0"] and len(scored.texts) == P * G
    np.testing.assert_array_equal(scored.rewards["accuracy"][:, 0], [102.5, 1.5, 200.5, 202.5])
    assert scored.seconds == (3.0, 1.5) and scored.checker == {"timeouts": 3, "errors": 0}
    assert scored.complete_texts == ["<think>" + text for text in scored.texts]
    assert found.unfilled == 0
    assert found.first_accuracy == part(0, [0, 1, 0, 0], 4).correct.mean()
    assert found.first_mean_length == 4
    assert found.tokens == P * G * (4 + 6 + 5)
    assert told == [
        "sampling round 2 of 10: 1 of 4 groups mixed",
        "sampling round 3 of 10: 2 of 4 groups mixed",
    ]


@pytest.mark.parametrize("limit", [1, 2])
def test_it_is_bounded(limit):
    scored, found, asked, _ = collect([0, 1, 0, 0], [0, 1, 0, 0], limit=limit)
    assert asked == list(range(limit))
    assert scored.indices.tolist() == ([0, 1, 2, 3] if limit == 1 else [101, 1, 2, 3])
    assert found.unfilled == 4 - limit
