"""Sampling against the scorer, greedy decoding by full forwards, and its promises."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import golden_model, plain_logits

from iapo_jax.model.sampling import keep_top_k, keep_top_p, prompt_keys, sample, sample_token
from iapo_jax.model.scoring import score_completions
from iapo_jax.types import Prompts

V, G, T = 97, 3, 12
LENGTH = np.array([5, 2, 4], np.int32)
TOKENS = np.random.default_rng(0).integers(2, V, (3, 5)).astype(np.int32)
TOKENS[np.arange(5) >= LENGTH[:, None]] = 0
STOP = np.array([7, 11, 30, 31, 32, 33], np.int32)
ALL = np.ones(V, bool)
GOLDEN = golden_model("qwen2_tied")
MODEL, PARAMS = GOLDEN.model, GOLDEN.params
UNROLLED = MODEL.unroll(PARAMS)
score = jax.jit(score_completions, static_argnums=0)


def rollout(seed=0, rows=(0, 1, 2), params=UNROLLED, **options):
    """Completions of some of the three prompts; temperature 1 unless told."""
    rows = np.asarray(rows)
    options = dict(num_generations=G, max_length=T, stop_ids=STOP, allowed=ALL) | options
    options["temperature"] = jnp.float32(options.get("temperature", 1.0))
    prompts = Prompts(jnp.asarray(TOKENS[rows]), jnp.asarray(LENGTH[rows]))
    made = sample(MODEL, params, prompts, prompt_keys(seed, 0, rows), **options)
    return jax.tree.map(np.asarray, made)


@pytest.fixture(scope="module")
def drawn():
    """One rollout at temperature 1.7: long, short and cut-off completions."""
    made = rollout(temperature=1.7)
    assert made.finished.any() and not made.finished.all()
    assert made.length.min() < made.length.max()
    return made


def assert_same(a, b, log_prob=1e-5):
    np.testing.assert_array_equal(a.tokens, b.tokens)
    np.testing.assert_array_equal(a.length, b.length)
    np.testing.assert_array_equal(a.finished, b.finished)
    np.testing.assert_allclose(a.log_prob, b.log_prob, atol=log_prob)


def test_log_probs_are_the_scorers(drawn):
    real = np.arange(T) < drawn.length[..., None]
    scores = score(MODEL, PARAMS, drawn.prompts, drawn.tokens, jnp.float32(1.7))
    np.testing.assert_allclose(drawn.log_prob[real], scores.log_prob[real], atol=1e-4)
    assert not drawn.log_prob[~real].any()


def test_truncated_draws_report_the_whole_policys_log_probs():
    """top-k and top-p change what is drawn, not whose log-probability is reported."""
    made = rollout(temperature=1.3, top_k=9, top_p=0.8)
    real = np.arange(T) < made.length[..., None]
    scores = score(MODEL, PARAMS, made.prompts, made.tokens, jnp.float32(1.3))
    np.testing.assert_allclose(made.log_prob[real], scores.log_prob[real], atol=1e-4)


def test_the_best_token_each_time_is_greedy_decoding():
    """top_k = 1 against argmax of full forwards, one token at a time."""
    made = rollout(top_k=1)
    rows = np.zeros((3, 5 + T), np.int32)
    rows[:, :5] = TOKENS
    for t in range(T):
        at = LENGTH + t
        logits = np.asarray(plain_logits(MODEL, PARAMS, rows))
        rows[np.arange(3), at] = logits[np.arange(3), at - 1].argmax(-1)
    for p in range(3):
        greedy = rows[p, LENGTH[p] : LENGTH[p] + T]
        hits = np.flatnonzero(np.isin(greedy, STOP))
        size = hits[0] + 1 if len(hits) else T
        for g in range(G):
            assert made.length[p, g] == size
            np.testing.assert_array_equal(made.tokens[p, g, :size], greedy[:size])


def test_the_first_stop_token_ends_a_completion_and_is_part_of_it(drawn):
    ends = set()
    for p, g in np.ndindex(3, G):
        size, tokens = drawn.length[p, g], drawn.tokens[p, g]
        assert size >= 1
        assert not np.isin(tokens[: size - 1], STOP).any()
        assert not tokens[size:].any() and not drawn.log_prob[p, g, size:].any()
        assert drawn.finished[p, g] == np.isin(tokens[size - 1], STOP)
        assert drawn.finished[p, g] or size == T
        ends.add(int(tokens[size - 1]))
    assert len(ends & set(STOP.tolist())) >= 2  # more than one of the stop ids ended something


def test_stop_on_the_first_and_on_the_last_token():
    made = rollout(stop_ids=np.arange(V, dtype=np.int32))  # everything stops
    assert made.finished.all() and (made.length == 1).all() and not made.tokens[..., 1:].any()
    never = rollout(stop_ids=np.array([V + 5], np.int32))
    assert not never.finished.any() and (never.length == T).all()
    last = np.unique(never.tokens[..., -1])
    only_last = ~np.isin(never.tokens[..., :-1], last).any(-1)
    assert only_last.any()
    again = rollout(stop_ids=np.pad(last, (0, V - len(last)), mode="edge"))
    assert (again.length[only_last] == T).all() and again.finished[only_last].all()


def test_the_loop_ends_when_all_are_done(monkeypatch):
    """With every id a stop token the body runs once, whatever room is left: the cache beyond it
    is never written. Counted by a callback in the model."""
    steps = []

    def counting(params, tokens, positions, contexts):
        if tokens.shape[-1] == 1:
            jax.debug.callback(lambda _: steps.append(1), tokens)
        return MODEL.forward(params, tokens, positions, contexts)

    model = MODEL._replace(forward=counting)
    prompts = Prompts(jnp.asarray(TOKENS), jnp.asarray(LENGTH))
    options = dict(num_generations=2, max_length=T, allowed=ALL)
    keys = prompt_keys(0, 0, np.arange(3))
    everything = np.arange(V, dtype=np.int32)
    sample(
        model, UNROLLED, prompts, keys, stop_ids=everything, **options
    ).length.block_until_ready()
    jax.effects_barrier()
    assert len(steps) == 1


def test_defaults_are_one_key_stacked_parameters_and_every_token():
    """The same completions as from a key for each prompt, unrolled parameters, all ids allowed."""
    prompts, key = Prompts(jnp.asarray(TOKENS), jnp.asarray(LENGTH)), jax.random.key(5)
    options = dict(num_generations=G, max_length=T)
    short = sample(MODEL, PARAMS, prompts, key, stop_ids=STOP.tolist(), **options)
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(3))
    more = dict(allowed=ALL, temperature=jnp.float32(1), first=jnp.zeros(3, jnp.int32))
    long = sample(MODEL, UNROLLED, prompts, keys, stop_ids=STOP, **more, **options)
    jax.tree.map(np.testing.assert_array_equal, short, long)
    assert short.finished.any() and len({row.tobytes() for row in np.asarray(short.tokens[0])}) > 1


def test_ids_without_a_token_are_never_drawn():
    """Ids whose logits are by far the highest, but which are not allowed."""
    padding = np.arange(V) >= 80
    head = np.array(PARAMS["embedding"])
    params = {**UNROLLED, "head": jnp.asarray(np.where(padding[:, None], 40 * head, head))}
    free = rollout(params=params)
    assert np.mean(free.tokens >= 80) > 0.5  # they would be drawn
    for options in ({}, dict(top_k=3), dict(top_p=0.5)):
        made = rollout(params=params, allowed=~padding, **options)
        assert (made.tokens < 80).all()


def test_a_completion_does_not_depend_on_its_neighbors(drawn):
    """Order of prompts, batch size and number of completions: same key, same tokens."""

    def take(rows, g):
        return jax.tree.map(lambda x: x[rows, :g], drawn._replace(prompts=()))

    warm = partial(rollout, temperature=1.7)
    assert_same(warm(rows=(2, 0, 1)), take([2, 0, 1], G))
    assert_same(warm(rows=(1,)), take([1], G))
    assert_same(warm(rows=(0, 2), num_generations=2), take([0, 2], 2))


def test_padding_of_prompts_changes_nothing(drawn):
    wide = np.pad(TOKENS, ((0, 0), (0, 4)), constant_values=50)
    wide[:, :5][np.arange(5) >= LENGTH[:, None]] = 60
    prompts = Prompts(jnp.asarray(wide), jnp.asarray(LENGTH))
    options = dict(num_generations=G, max_length=T, stop_ids=STOP, allowed=ALL)
    keys = prompt_keys(0, 0, np.arange(3))
    made = sample(MODEL, UNROLLED, prompts, keys, temperature=jnp.float32(1.7), **options)
    assert_same(jax.tree.map(np.asarray, made), drawn)


def test_a_seed_gives_the_same_completions_and_another_gives_others(drawn):
    assert_same(rollout(temperature=1.7), drawn, log_prob=0)
    other = rollout(seed=1, temperature=1.7)
    # All but one at most: two completions may stop at once, with the same token.
    assert (other.tokens != drawn.tokens).any(-1).sum() >= 3 * G - 1
    assert len(np.unique(drawn.tokens.reshape(-1, T), axis=0)) >= 3 * G - 1


def test_stacked_parameters_give_the_same(drawn):
    assert_same(rollout(params=PARAMS, temperature=1.7), drawn)


def test_prompt_keys_are_a_function_of_seed_step_and_row():
    def data(*a):
        return np.asarray(jax.random.key_data(prompt_keys(*a)))

    whole = data(3, 5, np.arange(6))
    np.testing.assert_array_equal(data(3, 5, np.array([4, 1])), whole[[4, 1]])
    every = np.concatenate([whole, data(3, 6, np.arange(6)), data(4, 5, np.arange(6))])
    assert len(np.unique(every, axis=0)) == 18


# ------------------------------------------------------------------ one token


@pytest.mark.parametrize("top_k, top_p", [(0, 1.0), (3, 1.0), (0, 0.75)])
def test_frequencies_are_the_softmax(top_k, top_p):
    """20,000 draws with a fixed key: chi-square within 4 standard deviations of its mean."""
    probability = np.array([0.05, 0.3, 0.1, 0.25, 0.2, 0.1])
    allowed = np.array([1, 1, 1, 1, 1, 0], bool)
    kept = {(0, 1.0): [0, 1, 2, 3, 4], (3, 1.0): [1, 3, 4], (0, 0.75): [1, 3, 4]}[top_k, top_p]
    # Allowed ids renormalized: 0.056, 0.333, 0.111, 0.278, 0.222; the first three of the sorted
    # ones reach 0.833, the first two only 0.611.
    number = 20_000
    keys = jax.random.split(jax.random.key(0), number)
    logits = jnp.broadcast_to(jnp.float32(np.log(probability) + 3), (number, 6))
    token, log_prob = sample_token(keys, logits, jnp.asarray(allowed), top_k=top_k, top_p=top_p)
    np.testing.assert_allclose(log_prob, np.log(probability)[token], atol=1e-5)
    counts = np.bincount(token, minlength=6)
    assert set(np.flatnonzero(counts)) == set(kept)
    expected = number * probability[kept] / probability[kept].sum()
    chi2 = ((counts[kept] - expected) ** 2 / expected).sum()
    freedom = len(kept) - 1
    assert abs(chi2 - freedom) < 4 * np.sqrt(2 * freedom)


def sorted_top_p(logits, p):
    """The reference: sort, keep tokens until their mass reaches p, and all ties with the last."""
    order = np.argsort(-logits)
    probability = np.exp(np.float64(logits) - logits.max())
    probability /= probability.sum()
    before = np.cumsum(probability[order]) - probability[order]
    last = np.flatnonzero(before < p)[-1]
    return logits >= logits[order[last]]


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999])
def test_top_p_is_the_sorted_reference(p):
    rng = np.random.default_rng(4)
    logits = np.float32(rng.standard_normal((40, 500)) * np.linspace(0.1, 8, 40)[:, None])
    logits[:3, 100:200] = logits[:3, 100:101]  # ties
    logits[3] = 1.0  # only ties: everything is kept
    got = np.asarray(keep_top_p(jnp.asarray(logits), p))
    for row, out in zip(logits, got, strict=True):
        want = sorted_top_p(row, p)
        np.testing.assert_array_equal(out > -1e29, want)
        np.testing.assert_array_equal(out[want], row[want])


@pytest.mark.parametrize("k", [1, 5, 500])
def test_top_k_is_the_sorted_reference(k):
    logits = np.float32(np.random.default_rng(5).standard_normal((8, 500)))
    logits[0, :7] = 9.0  # seven ties for the best: all are kept
    got = np.asarray(keep_top_k(jnp.asarray(logits), k))
    smallest = np.sort(logits, axis=-1)[:, -k][:, None]
    np.testing.assert_array_equal(got > -1e29, logits >= smallest)
