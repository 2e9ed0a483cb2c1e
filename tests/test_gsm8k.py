"""`experiments/gsm8k.yaml`, as a user runs it: Qwen2.5's tokenizer and vocabulary, real GSM8K.

Only the layers are small and random. The weights are written by name with safetensors, because
transformers needs torch to make a model; `tests/oracle` does the same with a transformers model.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
import transformers
from safetensors import safe_open
from safetensors.numpy import save_file

from iapo_jax.runtime import files

pytestmark = pytest.mark.nightly

VOCABULARY, WIDTH, HIDDEN = 151_936, 32, 64


def small_config():
    """Qwen2 with the real vocabulary and two small layers."""
    return transformers.Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        eos_token_id=151645,
    )


def write_tokenizer(directory, tokenizer_directory):
    """The real tokenizer and generation config."""
    transformers.AutoTokenizer.from_pretrained(tokenizer_directory).save_pretrained(directory)
    generation = json.loads((tokenizer_directory / "generation_config.json").read_text())
    (directory / "generation_config.json").write_text(json.dumps(generation))


def write_model(directory, tokenizer_directory):
    """A Qwen2 directory: real tokenizer and vocabulary, two small random layers."""
    rng = np.random.default_rng(0)
    small_config().save_pretrained(directory)
    write_tokenizer(directory, tokenizer_directory)

    def normal(*shape):
        return rng.normal(0, 0.2, shape).astype(np.float32)

    tensors = {"model.embed_tokens.weight": normal(VOCABULARY, WIDTH)}
    tensors["model.norm.weight"] = np.ones(WIDTH, np.float32)
    kv = WIDTH // 2
    for i in range(2):
        at = f"model.layers.{i}."
        for name, rows in (("q", WIDTH), ("k", kv), ("v", kv)):
            tensors[f"{at}self_attn.{name}_proj.weight"] = normal(rows, WIDTH)
            tensors[f"{at}self_attn.{name}_proj.bias"] = normal(rows)
        tensors[f"{at}self_attn.o_proj.weight"] = normal(WIDTH, WIDTH)
        tensors[f"{at}mlp.gate_proj.weight"] = normal(HIDDEN, WIDTH)
        tensors[f"{at}mlp.up_proj.weight"] = normal(HIDDEN, WIDTH)
        tensors[f"{at}mlp.down_proj.weight"] = normal(WIDTH, HIDDEN)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}{norm}.weight"] = np.ones(WIDTH, np.float32)
    save_file(tensors, directory / "model.safetensors")


def run_two_steps(root, shared_data, model, output_dir):
    """The experiment's file with the smallest possible numbers, from the command line: stdout."""
    overrides = {
        "model.path": model,
        "data.dataset": shared_data / "gsm8k" / "train.jsonl",
        "data.max_rows": 400,
        "eval.dataset": shared_data / "gsm8k" / "test.jsonl",
        "eval.max_rows": 4,
        "eval.prompts_per_batch": 4,
        "output_dir": output_dir,
        "max_steps": 2,
        "batch.prompts_per_step": 2,
        "batch.num_generations": 4,
        "batch.micro_batch_size": 1,
        "sampling.max_completion_length": 12,
        "sampling.length_bucket": 4,
        "selection.problems": 8,
        "selection.prompts_per_batch": 8,
        "mesh.fsdp": 1,
        "log.compilation_cache": "",
    }
    command = [sys.executable, "-m", "iapo_jax.train", "--config", "experiments/gsm8k.yaml"]
    command += [f"{key}={value}" for key, value in overrides.items()]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def finished_run(root, shared_data, tmp_path_factory):
    place = tmp_path_factory.mktemp("gsm8k")
    (place / "model").mkdir()
    write_model(place / "model", shared_data / "tokenizers" / "qwen2.5-instruct")
    return place / "run", run_two_steps(root, shared_data, place / "model", place / "run")


def test_two_steps_on_gsm8k_from_the_command_line(finished_run):
    run, output = finished_run
    rows = files.read_jsonl(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(np.isfinite(value) for row in rows for value in row.values())
    # log 151,936 = 11.93 nats: the entropy of a uniform first answer token
    assert all(0 < row["iapo/uncertainty_start"] <= np.log(VOCABULARY) for row in rows)
    assert "<|im_end|>" in output and "<|endoftext|>" in output, "the stop set is said"
    assert "271 of the 151,936 ids have no token" in output
    measured = files.read_jsonl(run / "selection.jsonl")
    assert [row["step"] for row in measured] == [0, 2] and measured[1]["chosen"]


def test_completions_show_the_prompt_as_the_template_renders_it(finished_run):
    run, _ = finished_run
    rows = files.read_jsonl(run / "completions" / "step_1.jsonl")
    assert len(rows) == 8
    prompt = rows[0]["prompt"]
    assert prompt.count("<|im_start|>user") == 2, "the worked turn, then the question"
    assert prompt.endswith("<|im_start|>assistant\n")
    assert "The answer must be a single integer." in prompt and "<think>" in prompt
    assert all(row["answer"].lstrip("-").isdigit() for row in rows)


def test_the_export_has_every_tensor_under_its_name(finished_run):
    run, _ = finished_run
    with safe_open(run / "hf" / "model.safetensors", framework="numpy") as tensors:
        assert "lm_head.weight" not in tensors.keys()  # noqa: SIM118 - tied
        embedding = tensors.get_tensor("model.embed_tokens.weight")
    assert embedding.shape == (VOCABULARY, WIDTH)
    config = transformers.AutoConfig.from_pretrained(run / "hf")
    assert config.vocab_size == VOCABULARY
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "hf")
    assert tokenizer.chat_template and len(tokenizer) == 151_665
    assert (run / "hf" / "generation_config.json").is_file()
