"""The committed fixtures are what torch, transformers, TRL and verl give today.

    python -m pytest --confcutdir=tests/oracle tests/oracle

Needs the packages of `tests/golden/make_golden.py`. The default test run does not collect this
folder; where it is collected and torch is missing, it fails, it does not skip.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
sys.path.insert(0, str(GOLDEN))

import make_golden  # noqa: E402


@pytest.fixture(scope="session")
def remade(tmp_path_factory):
    """The folder with everything made again."""
    out = tmp_path_factory.mktemp("golden")
    make_golden.main(out)
    return out


def weights(directory):
    """All tensors of a model's directory, whichever shards they lie in."""
    tensors = {}
    for file in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def assert_same_arrays(got, want, rtol, atol):
    assert sorted(got) == sorted(want)
    for key in want:
        assert got[key].dtype == want[key].dtype, key
        np.testing.assert_allclose(got[key], want[key], rtol=rtol, atol=atol, err_msg=key)


@pytest.mark.parametrize("name", make_golden.MODELS)
def test_models_are_current(remade, name):
    assert_same_arrays(
        weights(remade / "models" / name), weights(GOLDEN / "models" / name), rtol=0, atol=0
    )
    files = {path.name for path in (GOLDEN / "models" / name).iterdir()}
    assert files == {path.name for path in (remade / "models" / name).iterdir()}
    for file in sorted(files):
        if file.endswith(".json"):
            got, want = (
                json.loads((root / "models" / name / file).read_text()) for root in (remade, GOLDEN)
            )
            got.pop("transformers_version", None), want.pop("transformers_version", None)
            assert got == want, file


def test_logits_are_current(remade):
    assert_same_arrays(
        np.load(remade / "logits.npz"), np.load(GOLDEN / "logits.npz"), rtol=1e-5, atol=1e-5
    )


def test_grpo_loss_is_current(remade):
    # Sums of float32 in another order (other cores) move gradients by about 1e-6.
    assert_same_arrays(
        np.load(remade / "grpo_loss.npz"), np.load(GOLDEN / "grpo_loss.npz"), rtol=1e-5, atol=1e-5
    )


def test_advantages_are_current(remade):
    assert_same_arrays(
        np.load(remade / "advantages.npz"), np.load(GOLDEN / "advantages.npz"), rtol=1e-5, atol=1e-5
    )


def test_trl_log_probs_are_those_of_the_padding_free_model():
    """TRL's left padding and chunked head against one plain forward for each completion."""
    golden = np.load(GOLDEN / "grpo_loss.npz")
    model = make_golden.load_model(GOLDEN / "models" / "qwen2_tied")
    for (p, g), t in np.ndenumerate(golden["completion_length"]):
        n = golden["prompt_length"][p]
        prompt, completion = golden["prompt_tokens"][p, :n], golden["completion_tokens"][p, g, :t]
        tokens = torch.from_numpy(np.concatenate([prompt, completion]).astype(np.int64))
        with torch.no_grad():
            logits = model(tokens[None]).logits[0, n - 1 : -1] / float(golden["temperature"])
        log_probs = logits.log_softmax(-1)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        log_prob = log_probs.gather(1, tokens[n:, None])[:, 0]
        np.testing.assert_allclose(golden["log_prob"][p, g, :t], log_prob, rtol=0, atol=1e-5)
        np.testing.assert_allclose(golden["entropy"][p, g, :t], entropy, rtol=0, atol=1e-5)
        assert not golden["log_prob"][p, g, t:].any() and not golden["entropy"][p, g, t:].any()


def test_batch_exercises_the_loss():
    """Clipping acts on both sides, and is ignored on both sides where the sign says so."""
    golden = np.load(GOLDEN / "grpo_loss.npz")
    mask = np.arange(12) < golden["completion_length"][..., None]
    ratio = np.exp(golden["log_prob"] - golden["old_log_prob"])
    for advantage in (golden["advantages_B"][..., None], golden["advantages_BT"]):
        for outside in (ratio < 1 - golden["epsilon"], ratio > 1 + golden["epsilon_high"]):
            assert (mask & outside & (advantage < 0)).any()
            assert (mask & outside & (advantage > 0)).any()
    for which in ("B", "BT"):
        losses = [float(golden[f"loss/{t}/{which}"]) for t in ("grpo", "bnpo", "dr_grpo")]
        assert np.diff(np.sort(losses)).min() > 1e-2
        assert golden[f"loss/dapo/{which}"] == golden[f"loss/bnpo/{which}"]  # one whole batch
        whole, micro = golden[f"loss/bnpo/{which}"], golden[f"micro_loss/bnpo/{which}"].sum()
        assert abs(whole - micro) > 1e-2  # bnpo depends on the micro-batches; dapo does not:
        whole, micro = golden[f"loss/dapo/{which}"], golden[f"micro_loss/dapo/{which}"].sum()
        np.testing.assert_allclose(micro, whole, atol=1e-6)


def test_advantages_of_trl_and_verl_agree():
    """As far as they should: up to the epsilon, and to the leave-one-out factor."""
    golden = np.load(GOLDEN / "advantages.npz")
    reward = golden["reward"]
    factor = reward.shape[1] / (reward.shape[1] - 1)
    close = dict(rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(golden["verl/dr_grpo"], golden["trl/none"], **close)
    np.testing.assert_allclose(golden["verl/rloo"], golden["trl/rloo"], **close)
    np.testing.assert_allclose(golden["trl/none"] * factor, golden["trl/rloo"], **close)
    std = reward.std(axis=1, ddof=1, keepdims=True)
    for key, epsilon in {"trl/group": 1e-4, "verl/grpo": 1e-6}.items():
        np.testing.assert_allclose(golden[key] * (std + epsilon), golden["trl/none"], **close)
    assert np.abs(golden["trl/group"] - golden["verl/grpo"]).max() > 1e-4  # the epsilon is seen
    equal = (reward == reward[:, :1]).all(axis=1)
    assert equal.sum() == 1
    for key in ("trl/group", "trl/none", "trl/rloo", "verl/grpo", "verl/dr_grpo", "verl/rloo"):
        assert not golden[key][equal].any() and golden[key][~equal].all(), key


def test_aggregations_differ():
    """Each mode has another value, and so it would with the padding; no row is empty."""
    golden = np.load(GOLDEN / "advantages.npz")
    loss, mask = golden["per_token_loss"], golden["mask"]
    P, G, T = mask.shape
    assert set(mask.sum(-1).ravel()) == set(range(1, T + 1)) and loss[~mask].all()
    value = {mode: float(golden[f"verl/agg/{mode}"]) for mode in make_golden.AGGREGATIONS}
    padded = [loss.mean(), loss.sum(-1).mean(), loss.sum() / T]
    assert np.diff(np.sort([*value.values(), *padded])).min() > 1e-3
    # verl divides this one by the length T alone, not by the number of rows as well.
    whole = value["seq-mean-token-sum"] * P * G / T
    np.testing.assert_allclose(value["seq-mean-token-sum-norm"], whole, rtol=1e-5)


@pytest.mark.parametrize(
    "name, change",
    [(name, {"rms_norm_eps": 1e-6}) for name in make_golden.MODELS]
    + [(name, {"rope_parameters": make_golden.rope(10000.0)}) for name in make_golden.MODELS]
    + [("llama_tied", {"rope_parameters": make_golden.rope(500.0)})],
)
def test_logits_depend_on_the_config(name, change):
    """A loader that ignores one of these fields cannot pass against `logits.npz`."""
    golden = np.load(GOLDEN / "logits.npz")
    model = make_golden.load_model(GOLDEN / "models" / name)
    config = model.config
    for key, value in change.items():
        setattr(config, key, value)
    other = type(model)(config).eval()
    other.load_state_dict(model.state_dict())
    tokens = torch.from_numpy(golden[f"tokens/{name}"][:1].astype(np.int64))
    with torch.no_grad():
        logits = other(tokens).logits.numpy()
    assert np.abs(logits - golden[f"logits/{name}"][:1]).max() > 1e-2
