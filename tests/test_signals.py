"""Signals of a rollout are those of its parts computed one by one; groups hold what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import golden_model, random_params

from iapo_jax.information.estimators import Probe, answer_entropy
from iapo_jax.information.probe_positions import every_prefix
from iapo_jax.information.signals import compute_signals, make_groups
from iapo_jax.model.scoring import score_completions
from iapo_jax.types import Prompts, Rollout, Signals

P, G, L, T = 4, 2, 5, 6
GOLDEN = golden_model("llama_untied")
MODEL, PARAMS = GOLDEN.model, GOLDEN.params
REF = random_params(GOLDEN.config, seed=5)
TEMPERATURE = jnp.float32(0.8)
POSTFIX = jnp.asarray([9, 8], jnp.int32)
RNG = np.random.default_rng(0)
LENGTH = np.array([[6, 3], [1, 5], [2, 6], [4, 4]], np.int32)
MASK = np.arange(T) < LENGTH[..., None]
ROLLOUT = Rollout(
    Prompts(RNG.integers(2, 97, (P, L)).astype(np.int32), np.array([5, 2, 4, 1], np.int32)),
    np.where(MASK, RNG.integers(2, 97, (P, G, T)), 0).astype(np.int32),
    LENGTH,
    np.zeros((P, G, T), np.float32),
    np.ones((P, G), bool),
)


def signals(rollout=ROLLOUT, ref=REF, micro=1, with_information=True):
    probe = Probe(POSTFIX, every_prefix(rollout.length, T)) if with_information else None
    made = compute_signals(
        MODEL, PARAMS, rollout, probe, ref_params=ref, temperature=TEMPERATURE, micro=micro
    )
    return jax.tree.map(np.asarray, made)


@pytest.fixture(scope="module")
def whole():
    return signals()


def assert_same(got, want):
    positions = np.arange(T + 1) <= LENGTH[..., None]
    got, want = (s._replace(uncertainty=s.uncertainty * positions) for s in (got, want))
    for name, a, b in zip(Signals._fields, got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=name)


def test_signals_are_their_parts(whole):
    @jax.jit
    def parts():
        prompts, tokens = ROLLOUT.prompts, jnp.asarray(ROLLOUT.tokens)
        policy, reference = (
            score_completions(MODEL, params, prompts, tokens, TEMPERATURE)
            for params in (PARAMS, REF)
        )
        positions = every_prefix(jnp.full((P, G), T), T)
        u = answer_entropy(MODEL, PARAMS, ROLLOUT, POSTFIX, positions=positions)
        return Signals(policy.log_prob, reference.log_prob, policy.entropy, u)

    want = parts()
    hidden = [np.where(MASK, x, 0) for x in want[:3]]
    assert np.abs(hidden[0] - hidden[1])[MASK].min() > 0  # another policy
    assert_same(whole, Signals(*hidden, np.asarray(want.uncertainty)))


@pytest.mark.parametrize("micro", [2, 4])
def test_micro_batches_change_nothing(whole, micro):
    assert_same(signals(micro=micro), whole)


def test_padding_is_zero_and_changes_nothing(whole):
    for x in whole[:3]:
        assert not x[~MASK].any()
    other = ROLLOUT._replace(
        tokens=np.where(MASK, ROLLOUT.tokens, 55).astype(np.int32),
        prompts=ROLLOUT.prompts._replace(
            tokens=np.where(
                np.arange(L) < ROLLOUT.prompts.length[:, None], ROLLOUT.prompts.tokens, 44
            ).astype(np.int32)
        ),
    )
    assert_same(signals(other), whole)


def test_without_a_reference_and_without_information(whole):
    made = signals(ref=None, with_information=False)
    np.testing.assert_array_equal(made.ref_log_prob, made.log_prob)
    np.testing.assert_allclose(made.log_prob, whole.log_prob, atol=1e-5)
    np.testing.assert_allclose(made.entropy, whole.entropy, atol=1e-5)
    assert made.uncertainty.shape == (P, G, T + 1) and not made.uncertainty.any()


def test_groups(whole):
    """thinking = tokens before the end of thinking, never padding; s_t by hand on them."""
    thinking_length = np.array([[6, 2], [9, 0], [1, 3], [4, 2]], np.int32)  # 9: beyond the end
    reward = RNG.random((P, G)).astype(np.float32)
    correct = reward > 0.5
    groups = make_groups(ROLLOUT, whole, reward, correct, thinking_length)
    for p, g, t in np.ndindex(P, G, T):
        assert groups.mask[p, g, t] == (t < LENGTH[p, g])
        thinks = t < min(thinking_length[p, g], LENGTH[p, g])
        assert groups.thinking[p, g, t] == thinks
        u = whole.uncertainty[p, g]
        want = u[t] - u[t + 1] if thinks else 0.0
        assert abs(groups.informativeness[p, g, t] - want) < 1e-6
    np.testing.assert_array_equal(groups.reward, reward)
    np.testing.assert_array_equal(groups.correct, correct)
    np.testing.assert_array_equal(groups.log_prob, whole.log_prob)
    np.testing.assert_array_equal(groups.entropy, whole.entropy)
    assert all(x.shape[0] == P for x in groups)
