"""What we export scores the same through lm-evaluation-harness' own transformers backend.

pip install -e ".[harness]"
python -m pytest --confcutdir=tests/oracle tests/oracle/test_live_harness.py
"""

import importlib
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import lm_eval
import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from iapo_jax.config.evaluate import EvaluateConfig
from iapo_jax.config.sections import MeshSection
from iapo_jax.data.problems import pad_rows
from iapo_jax.evaluate import evaluate
from iapo_jax.evaluation.completions_file import read_completions
from iapo_jax.model.decoder import init_params, make_model
from iapo_jax.model.scoring import score_completions
from iapo_jax.pretrained import architecture, tokenization, weights
from iapo_jax.pretrained import model_directory as pretrained
from iapo_jax.runtime import files
from iapo_jax.sharding import fetch
from iapo_jax.types import Prompts

ROOT = Path(__file__).resolve().parents[2]
QUICK = ROOT / "experiments" / "arithmetic" / "model"
COUNT = 12


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    """A small random Qwen2 with the arithmetic tokenizer, as we write it."""
    sys.path.insert(0, str(ROOT / "experiments" / "arithmetic"))
    tokenizer = importlib.import_module("tokenizer").build_tokenizer()
    hf = {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "initializer_range": 0.3,
        "eos_token_id": tokenizer.eos_token_id,
    }
    params = fetch(init_params(architecture.decoder_config(hf), jax.random.key(3)))
    out = tmp_path_factory.mktemp("random") / "model"
    generation = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    pretrained.save_pretrained(params, hf, tokenizer, out, generation_config=generation)
    return out


@pytest.fixture(scope="module", params=["random", "trained"])
def directory(request, random_model):
    """Model directories: one of random weights, and the quick start's."""
    return random_model if request.param == "random" else QUICK


@pytest.fixture(scope="module")
def harness(directory):
    """The harness' own transformers backend."""
    return HFLM(pretrained=str(directory), dtype="float32", device="cpu", batch_size=4)


def test_greedy_scores_are_the_same(directory, harness, tmp_path, monkeypatch):
    """The shipped task file in the harness, and our command: texts and accuracy."""
    monkeypatch.chdir(tmp_path)  # from where the task names its data
    make_data = ROOT / "experiments" / "arithmetic" / "make_data.py"
    arguments = ["--out", "runs/arithmetic_data", "--sft_rows", "0"]
    subprocess.run(
        [sys.executable, make_data, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
    )
    theirs = lm_eval.simple_evaluate(
        model=harness,
        tasks=["iapo_arithmetic"],
        task_manager=TaskManager(include_path=str(ROOT / "experiments" / "harness")),
        apply_chat_template=True,
        limit=COUNT,
        bootstrap_iters=0,
    )
    ours = evaluate(
        EvaluateConfig(
            models=[f"model={directory}"],
            datasets=[f"arithmetic:test:first {COUNT}"],
            output_dir=str(tmp_path),
            num_samples=1,
            k=[1],
            budgets=[96],
            top_k=1,
            max_completion_length=96,
            prompts_per_batch=4,
            mesh=MeshSection(data=1),
            progress=False,
            compilation_cache="",
        )
    )
    texts = {}
    for sample in theirs["samples"]["iapo_arithmetic"]:
        texts[sample["doc"]["question"]] = sample["resps"][0][0]
    special_tokens = tokenization.load_tokenizer(directory).all_special_tokens
    lines = read_completions(next(tmp_path.glob("*.completions.jsonl")))
    assert len(lines) == len(texts) == COUNT
    for one in lines:
        (question,) = (text for text in texts if f"<user>{text}<assistant>" in one.prompt)
        text = one.completion
        for special in special_tokens:  # the harness leaves them out of a text
            text = text.replace(special, "")
        assert text == texts[question]
    (accuracy,) = (row["value"] for row in ours["figures"] if row["name"] == "accuracy")
    assert accuracy == theirs["results"]["iapo_arithmetic"]["exact_match,answer"]
    assert (accuracy > 0.8) == (directory == QUICK)


def test_log_likelihoods_are_the_same(directory, harness):
    """`loglikelihood` of the harness, which its multiple-choice tasks rest on, and our scorer."""
    opened = tokenization.load_tokenizer(directory)
    pairs = [
        ("<user>12+30<assistant><think>", "12+30=42. </think><answer>42</answer>"),
        ("<user>50-11+20<assistant><think>", "ok 50-11=39. </think><answer>59</answer>"),
        ("<user>12+30<assistant>", "<think>"),
    ]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    theirs = [value for value, _ in harness.loglikelihood(requests, disable_tqdm=True)]
    config = architecture.decoder_config(files.read_json(directory / "config.json"))
    params = weights.load_params(directory, config)
    prompts = [tokenization.encode(opened, prompt) for prompt, _ in pairs]
    rows = [tokenization.encode(opened, text) for _, text in pairs]
    tokens, length = pad_rows(rows, max(map(len, rows)))
    read = Prompts(*pad_rows(prompts, max(map(len, prompts))))
    scores = score_completions(make_model(config), params, read, tokens[:, None], jnp.float32(1.0))
    real = np.arange(tokens.shape[1]) < length[:, None]
    ours = np.where(real, scores.log_prob[:, 0], 0.0).sum(1)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
