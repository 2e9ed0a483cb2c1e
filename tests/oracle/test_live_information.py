"""Answer information against transformers: a full float32 forward of each prefix and its answers.

    python -m pytest --confcutdir=tests/oracle tests/oracle

Prompts and completions of mixed lengths, answers of one to four tokens, for every architecture.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from iapo_jax import Answers, Probe, Prompts, Rollout, compute_signals
from iapo_jax.information import choose_positions, every_prefix
from iapo_jax.information.estimators import entropy_at, log_prob_at, set_entropy_at
from iapo_jax.model import forward_completions, make_model, prefill
from iapo_jax.pretrained.architecture import decoder_config
from iapo_jax.pretrained.weights import load_params

MODELS = Path(__file__).resolve().parent.parent / "golden" / "models"
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(2, 90, n).tolist() for n in (7, 3)]
COMPLETIONS = [[RNG.integers(2, 90, n).tolist() for n in row] for row in ((9, 4), (1, 7))]
POSTFIX = RNG.integers(2, 90, 3).tolist()
LENGTHS = [[3, 1, 4], [2, 4]]  # of the answers
MEANING = [[0, 1, 1], [0, 1, 0]]


def pad(rows, width):
    return np.asarray([row + [0] * (width - len(row)) for row in rows], np.int32)


@pytest.fixture(scope="module", params=sorted(path.name for path in MODELS.iterdir()))
def pair(request):
    """A model of transformers, and ours from the same directory."""
    directory = MODELS / request.param
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    config = decoder_config(json.loads((directory / "config.json").read_text()))
    return theirs, make_model(config), load_params(directory, config)


@torch.no_grad()
def log_softmax(model, ids):
    return model(torch.tensor([ids])).logits[0].double().log_softmax(-1).numpy()


def likely_answers(model):
    """The most likely first tokens behind a prompt and the postfix, each with its likeliest rest.

    Of random ones a single answer would have all the probability: a set without uncertainty.
    """
    found = []
    for p, lengths in enumerate(LENGTHS):
        stem = PROMPTS[p] + POSTFIX
        firsts = np.argsort(-log_softmax(model, stem)[-1])[: len(lengths)].tolist()
        rows = [[first] for first in firsts]
        for row, length in zip(rows, lengths, strict=True):
            while len(row) < length:
                row.append(int(log_softmax(model, stem + row)[-1].argmax()))
        found.append(rows)
    return found


def theirs_of(model, answers):
    """(entropy, log p of each answer) after every prefix; {(p, g, t): ...}."""
    found = {}
    for p, g in np.ndindex(2, 2):
        for t in range(len(COMPLETIONS[p][g]) + 1):
            stem = PROMPTS[p] + COMPLETIONS[p][g][:t] + POSTFIX
            last = log_softmax(model, stem)[-1]
            log_p = []
            for answer in answers[p]:
                rows = log_softmax(model, stem + answer)[len(stem) - 1 : -1]
                log_p.append(rows[np.arange(len(answer)), answer].sum())
            found[p, g, t] = -(np.exp(last) * last).sum(), np.asarray(log_p)
    return found


def ours_of(model, params, asked):
    prompts = Prompts(jnp.asarray(pad(PROMPTS, 8)), jnp.asarray([len(row) for row in PROMPTS]))
    tokens = jnp.asarray([pad(rows, 10) for rows in COMPLETIONS])
    length = jnp.asarray([[len(row) for row in rows] for rows in COMPLETIONS])
    rows = [answers + [[]] * (3 - len(answers)) for answers in asked]
    answers = Answers(
        jnp.asarray([pad(row, 5) for row in rows])[:, None],
        jnp.asarray([[len(answer) for answer in row] for row in rows])[:, None],
        jnp.asarray(MEANING)[:, None],
    )

    @jax.jit
    def run(params):
        context = prefill(model, params, prompts)
        _, cache = forward_completions(model, params, prompts, tokens, context)
        asked = model, params, prompts, (context, cache), jnp.asarray(POSTFIX)
        positions = every_prefix(length, tokens.shape[-1])
        return (
            entropy_at(*asked, positions),
            log_prob_at(*asked, positions, answers),
            set_entropy_at(*asked, positions, answers),
        )

    return [np.asarray(x) for x in run(params)]


def test_all_estimators_at_every_prefix(pair):
    theirs, model, params = pair
    answers = likely_answers(theirs)
    entropy, log_prob, set_entropy = ours_of(model, params, answers)
    wanted = theirs_of(theirs, answers)
    assert len(wanted) == 10 + 5 + 2 + 8

    def entropy_of(q):
        return -(q * np.log(q)).sum()

    of_sets, of_texts = [], []
    for (p, g, t), (want, log_p) in wanted.items():
        q = np.exp(log_p - np.logaddexp.reduce(log_p))
        of_texts.append(entropy_of(q))
        q = np.bincount(MEANING[p][: len(q)], q)
        of_sets.append(entropy_of(q))
        np.testing.assert_allclose(entropy[p, g, t], want, atol=1e-4)
        np.testing.assert_allclose(log_prob[p, g, t], -log_p[0], atol=1e-4)
        np.testing.assert_allclose(set_entropy[p, g, t], of_sets[-1], atol=1e-4)
    # The prefixes differ, and so does what is left when answers of one meaning are one.
    assert np.ptp(of_sets) > 0.1 and np.max(np.subtract(of_texts, of_sets)) > 0.01


OWN = [[RNG.integers(2, 90, n).tolist() for n in row] for row in ((4, 1), (0, 2))]


def test_own_answers_in_training_signals(pair):
    """`compute_signals` with an answer of each completion's own, one of which has none, and cuts
    at every third token: what transformers says there, straight between, constant behind."""
    theirs, model, params = pair
    length = np.asarray([[len(row) for row in rows] for rows in COMPLETIONS], np.int32)
    tokens = np.asarray([pad(rows, 10) for rows in COMPLETIONS])
    prompts = Prompts(pad(PROMPTS, 8), np.asarray([len(row) for row in PROMPTS], np.int32))
    zeros, flags = np.zeros(tokens.shape, np.float32), np.ones((2, 2), bool)
    answers = Answers(
        np.asarray([pad(rows, 5) for rows in OWN])[:, :, None],
        np.asarray([[len(row) for row in rows] for rows in OWN], np.int32)[..., None],
        np.zeros((2, 2, 1), np.int32),
    )
    positions = choose_positions(jnp.asarray(length), tokens.shape[-1], stride=3)
    probe = Probe(np.asarray(POSTFIX, np.int32), jax.tree.map(np.asarray, positions), answers)
    rollout = Rollout(prompts, tokens, length, zeros, flags)
    options = dict(estimator="answer_log_prob")
    found = compute_signals(model, params, rollout, probe, **options)
    for p, g in np.ndindex(2, 2):
        at, want = sorted({*range(0, length[p, g], 3), int(length[p, g])}), []
        for t in at:
            stem = PROMPTS[p] + COMPLETIONS[p][g][:t] + POSTFIX
            rows = log_softmax(theirs, stem + OWN[p][g])[len(stem) - 1 :]
            want.append(-rows[np.arange(len(OWN[p][g])), OWN[p][g]].sum() if OWN[p][g] else 0.0)
        straight = np.interp(np.arange(tokens.shape[-1] + 1), at, want)
        np.testing.assert_allclose(found.uncertainty[p, g], straight, atol=1e-4)
        # The other signals of the same pass, against the same model.
        whole = PROMPTS[p] + COMPLETIONS[p][g]
        rows = log_softmax(theirs, whole)[len(PROMPTS[p]) - 1 : -1]
        own = rows[np.arange(length[p, g]), COMPLETIONS[p][g]]
        np.testing.assert_allclose(found.log_prob[p, g, : length[p, g]], own, atol=1e-4)
