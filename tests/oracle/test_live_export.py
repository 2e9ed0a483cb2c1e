"""What we write is opened by transformers as it is, and computes what the original computed.

    python -m pytest --confcutdir=tests/oracle tests/oracle

Needs torch beside the package's own dependencies.
"""

import importlib
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from iapo_jax.model.decoder import make_model
from iapo_jax.pretrained.architecture import decoder_config
from iapo_jax.pretrained.model_directory import save_pretrained
from iapo_jax.pretrained.weights import load_params
from iapo_jax.runtime.files import read_json

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
NAMES = sorted(path.name for path in (GOLDEN / "models").iterdir())


@pytest.fixture(scope="session")
def tokenizer():
    sys.path.insert(0, str(ROOT / "experiments" / "arithmetic"))
    return importlib.import_module("tokenizer").build_tokenizer()


@pytest.fixture(scope="session")
def logits():
    with np.load(GOLDEN / "logits.npz") as arrays:
        return dict(arrays)


def exported(name, tokenizer, out, dtype="float32"):
    """A golden model through our parameters and back to a directory."""
    source = GOLDEN / "models" / name
    hf = read_json(source / "config.json")
    config = decoder_config(hf)
    params = load_params(source, config)
    generation = {"eos_token_id": [1, 5], "do_sample": True, "temperature": 0.7}
    save_pretrained(params, hf, tokenizer, out, generation_config=generation, dtype=dtype)
    return config, params


def torch_logits(model, tokens, length):
    """As the fixture was made: each row alone, without padding; zeros on padding."""
    made = np.zeros((*tokens.shape, 97), np.float32)
    with torch.no_grad():
        for row, n in enumerate(length):
            ids = torch.from_numpy(tokens[row : row + 1, :n].astype(np.int64))
            made[row, :n] = model(ids).logits[0].float().numpy()
    return made


@pytest.mark.parametrize("name", NAMES)
def test_transformers_opens_what_we_write(name, tokenizer, logits, tmp_path):
    out = tmp_path / "hf"
    exported(name, tokenizer, out)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(report.values()), report  # nothing missing, unexpected, mismatched
    assert next(model.parameters()).dtype == torch.float32
    got = torch_logits(model.eval(), logits[f"tokens/{name}"], logits[f"length/{name}"])
    np.testing.assert_allclose(got, logits[f"logits/{name}"], atol=1e-4)
    assert model.generation_config.eos_token_id == [1, 5]
    assert model.generation_config.temperature == 0.7
    opened = transformers.AutoTokenizer.from_pretrained(out)
    text = "<think>12+3=15. </think><answer>15</answer>"
    ids = opened.encode(text, add_special_tokens=False)
    assert ids == tokenizer.encode(text, add_special_tokens=False)
    assert opened.decode(ids) == text
    chat = [{"role": "user", "content": "1+1"}]
    render = dict(tokenize=False, add_generation_prompt=True)
    assert opened.apply_chat_template(chat, **render) == tokenizer.apply_chat_template(
        chat, **render
    )


def test_bfloat16_directory(tokenizer, logits, tmp_path):
    """transformers takes the dtype from config.json; our float32 reading of it agrees with its."""
    name, out = "qwen2_tied", tmp_path / "hf"
    config, _ = exported(name, tokenizer, out, dtype="bfloat16")
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert next(model.parameters()).dtype == torch.bfloat16
    tokens, length = logits[f"tokens/{name}"], logits[f"length/{name}"]
    want = torch_logits(model.float().eval(), tokens, length)
    ours, params = make_model(config), load_params(out, config)
    positions = jnp.broadcast_to(jnp.arange(40), tokens.shape)
    hidden, _ = ours.forward(params, tokens, positions, ())
    got = np.asarray(hidden @ ours.logit_weight(params).T)
    real = np.arange(40) < length[:, None]
    np.testing.assert_allclose(got[real], want[real], atol=1e-4)


ROPES = [
    dict(rope_theta=500.0),
    dict(rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
    dict(rope_theta=10.0, rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
    dict(rope_parameters={"rope_theta": 9.0}, rope_scaling={"rope_theta": 500.0}),
    dict(
        rope_theta=500.0,
        rope_scaling=dict(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
    ),
]


@pytest.mark.parametrize("fields", ROPES)
def test_rope_fields_mean_what_transformers_reads(fields, tmp_path):
    """The rotary frequencies of one config.json, by transformers and by us."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    from iapo_jax.model.decoder import rope_frequencies

    hf = read_json(GOLDEN / "models" / "llama_tied" / "config.json")
    hf = {k: v for k, v in hf.items() if not k.startswith("rope")} | fields
    (tmp_path / "config.json").write_text(json.dumps(hf))
    theirs = LlamaRotaryEmbedding(transformers.AutoConfig.from_pretrained(tmp_path)).inv_freq
    np.testing.assert_allclose(rope_frequencies(decoder_config(hf)), theirs.numpy(), rtol=1e-5)
