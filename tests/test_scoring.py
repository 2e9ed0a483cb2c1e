"""The chunked head against a dense log-softmax, and what it never builds."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import golden_model, plain_logits
from jax.extend.core import jaxprs_in_params

from iapo_jax.model import scoring
from iapo_jax.model.scoring import completion_inputs, score_completions, token_scores
from iapo_jax.types import Prompts

ROWS, S, D, V = (2, 3), 7, 8, 11


def dense(hidden, weight, tokens, temperature):
    """The definition: full log-softmax in float32."""
    logits = jnp.einsum("...d,vd->...v", hidden.astype(jnp.float32), weight.astype(jnp.float32))
    log_p = jax.nn.log_softmax(logits / temperature)
    log_prob = jnp.take_along_axis(log_p, tokens[..., None], -1)[..., 0]
    return log_prob, -(jnp.exp(log_p) * log_p).sum(-1)


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    hidden = np.float32(rng.standard_normal((*ROWS, S, D)))
    weight = np.float32(2 * rng.standard_normal((V, D)))
    tokens = rng.integers(0, V, (*ROWS, S)).astype(np.int32)
    cotangents = np.float32(rng.standard_normal((2, *ROWS, S)))
    return hidden, weight, tokens, cotangents


def scores_and_gradients(scores, hidden, weight, tokens, temperature, cotangents):
    """Both outputs; the gradients in hidden and weight of each output alone, and of their sum."""

    def total(hidden, weight, mix):
        made = scores(hidden, weight, tokens, temperature)
        return sum(m * (x * c).sum() for m, x, c in zip(mix, made, cotangents, strict=True))

    gradients = jax.vmap(jax.grad(total, argnums=(0, 1)), (None, None, 0))
    mixes = jnp.asarray([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    return tuple(scores(hidden, weight, tokens, temperature)), gradients(hidden, weight, mixes)


@pytest.mark.parametrize("chunk", [1, 3, 7], ids=lambda n: f"chunk{n}")
def test_scores_and_gradients_are_those_of_the_dense_softmax(monkeypatch, case, chunk):
    """Chunks of 1, of 3 (7 is no multiple), and all at once; two temperatures."""
    hidden, weight, tokens, cotangents = case
    monkeypatch.setattr(scoring, "CHUNK_LOGITS", chunk * 6 * V)
    sizes = []
    inner = scoring.logits_of
    monkeypatch.setattr(scoring, "logits_of", lambda h, w: sizes.append(h.shape[-2]) or inner(h, w))
    got_of, want_of = (jax.jit(partial(scores_and_gradients, f)) for f in (token_scores, dense))
    for temperature in (1.0, 0.6):
        got = got_of(hidden, weight, tokens, temperature, cotangents)
        want = want_of(hidden, weight, tokens, temperature, cotangents)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)
    assert set(sizes) == {chunk}


def test_closed_forms():
    """One-hot states and log-probabilities as weights; a uniform row has entropy log V."""
    p = np.array([[0.5, 0.25, 0.125, 0.125], [0.25, 0.25, 0.25, 0.25]], np.float32)
    hidden, weight = np.eye(2, dtype=np.float32), np.log(p).T
    tokens = np.array([2, 1], np.int32)
    scores = token_scores(hidden, weight, tokens, 1.0)
    np.testing.assert_allclose(scores.log_prob, np.log([0.125, 0.25]), rtol=1e-6)
    np.testing.assert_allclose(scores.entropy, [1.75 * np.log(2), np.log(4)], rtol=1e-6)
    # At temperature 1/2 the probabilities are squared: 1/4, 1/16, 1/64, 1/64 of their sum 22/64.
    half = token_scores(hidden, weight, tokens, 0.5)
    np.testing.assert_allclose(half.log_prob, np.log([1 / 22, 0.25]), rtol=1e-6)


def test_bfloat16_states_have_float32_logits_and_weight_gradients(case):
    """As the dense float32 softmax of the rounded states; only d hidden is rounded again."""
    hidden, weight, tokens, cotangents = case
    low = jnp.asarray(hidden, jnp.bfloat16)
    scores, (d_hidden, d_weight) = jax.jit(partial(scores_and_gradients, token_scores))(
        low, weight, tokens, 1.0, cotangents
    )
    want, (want_hidden, want_weight) = jax.jit(partial(scores_and_gradients, dense))(
        low, weight, tokens, 1.0, cotangents
    )
    assert scores[0].dtype == scores[1].dtype == d_weight.dtype == jnp.float32
    assert d_hidden.dtype == jnp.bfloat16
    np.testing.assert_allclose(scores, want, atol=2e-5)
    np.testing.assert_allclose(d_weight, want_weight, atol=5e-5)
    d_hidden, want_hidden = (np.asarray(x, np.float32) for x in (d_hidden, want_hidden))
    np.testing.assert_allclose(d_hidden, want_hidden, atol=0.02 * np.abs(want_hidden).max())


def largest_array(jaxpr):
    """Elements of the largest array that a computation names, in all of its sub-computations."""
    largest = 0
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            largest = max(largest, int(np.prod(getattr(variable.aval, "shape", ()))))
        for inner in jaxprs_in_params(equation.params):
            largest = max(largest, largest_array(inner))
    return largest


def test_the_logits_of_all_tokens_never_exist(monkeypatch):
    """T = 512 and V = 20,000 in chunks of 32: nothing near T * V is named or allocated."""
    size, vocabulary, width = 512, 20_000, 16
    monkeypatch.setattr(scoring, "CHUNK_LOGITS", 32 * vocabulary)
    hidden = jax.ShapeDtypeStruct((1, size, width), jnp.bfloat16)
    weight = jax.ShapeDtypeStruct((vocabulary, width), jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, size), jnp.int32)

    def total(scores, hidden, weight, tokens):
        log_prob, entropy = scores(hidden, weight, tokens, 0.9)
        return (log_prob + entropy).sum()

    def measure(scores):
        step = jax.value_and_grad(partial(total, scores), argnums=(0, 1))
        traced = jax.jit(step).trace(hidden, weight, tokens)
        memory = traced.lower().compile().memory_analysis()
        return largest_array(traced.jaxpr.jaxpr), memory.temp_size_in_bytes

    chunk, whole = 32 * vocabulary, size * vocabulary
    named, allocated = measure(token_scores)
    assert named == chunk
    assert allocated < 4 * 6 * chunk < 4 * whole / 2  # a few chunks of float32
    named, allocated = measure(dense)  # the measurement detects the dense version
    assert named >= whole
    assert allocated >= 4 * whole


# ------------------------------------------------------------------ completions of prompts


def test_completion_inputs():
    prompts = Prompts(jnp.asarray([[5, 6, 7], [8, 0, 0]]), jnp.asarray([3, 1]))
    tokens = jnp.asarray([[[1, 2]], [[3, 4]]])
    inputs, positions = completion_inputs(prompts, tokens)
    np.testing.assert_array_equal(inputs, [[[7, 1, 2]], [[8, 3, 4]]])
    np.testing.assert_array_equal(positions, [[[2, 3, 4]], [[0, 1, 2]]])


def test_completions_score_as_plain_sequences():
    """Mixed prompt lengths (one of a single token): scores and parameter gradients."""
    golden = golden_model("qwen3_untied")
    rng = np.random.default_rng(1)
    length, T = np.array([5, 1, 4]), 6
    prompts = rng.integers(2, 97, (3, 5)).astype(np.int32)
    tokens = rng.integers(2, 97, (3, 2, T)).astype(np.int32)
    cotangents = np.float32(rng.standard_normal((2, 3, 2, T)))
    rows = np.zeros((3, 2, 5 + T), np.int32)
    for p, g in np.ndindex(3, 2):
        rows[p, g, : length[p] + T] = np.concatenate([prompts[p, : length[p]], tokens[p, g]])

    def ours(params):
        return score_completions(golden.model, params, Prompts(prompts, length), tokens, 0.7)

    def plain(params):
        logits = plain_logits(golden.model, params, rows.reshape(6, -1)).reshape(3, 2, 5 + T, 97)
        before = [logits[p, :, n - 1 : n - 1 + T] for p, n in enumerate(length)]
        log_p = jax.nn.log_softmax(jnp.stack(before) / 0.7)
        log_prob = jnp.take_along_axis(log_p, jnp.asarray(tokens)[..., None], -1)[..., 0]
        return log_prob, -(jnp.exp(log_p) * log_p).sum(-1)

    def both(scores):
        def total(params):
            made = tuple(scores(params))
            return sum((x * c).sum() for x, c in zip(made, cotangents, strict=True)), made

        gradient, made = jax.jit(jax.grad(total, has_aux=True))(golden.params)
        return made, gradient

    (got, gradient), (want, want_gradient) = both(ours), both(plain)
    np.testing.assert_allclose(got, want, atol=2e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(want_gradient), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1, np.abs(b).max()))
