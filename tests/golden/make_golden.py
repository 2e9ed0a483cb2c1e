"""Make the oracle fixtures with torch, transformers and TRL, for the JAX tests to compare against.

    python tests/golden/make_golden.py            # rewrites the fixtures beside this file
    python tests/golden/make_golden.py --out DIR  # writes them elsewhere

Needs torch, transformers, trl, datasets, accelerate (`versions.json` says which versions made the
committed files). CPU only, float32, offline. Every random number comes from numpy with a fixed
seed, so the weights and the batches do not depend on torch's version.

models/NAME/      six tiny random models written by `save_pretrained` (`qwen2_untied` is sharded)
logits.npz        logits of each model on three rows of mixed length, one row at a time
grpo_loss.npz     TRL's GRPO losses and their gradients on one frozen batch
versions.json     what made them

`tests/oracle/test_live_oracle.py` makes everything again and compares, so nothing here goes stale.
The README beside this file lists the keys.
"""

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import numpy as np
import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from trl import GRPOConfig, GRPOTrainer

GOLDEN = Path(__file__).resolve().parent
SEED = 20260
VOCAB = 97
PAD, EOS = 0, 1  # drawn tokens start at 2, so neither appears by chance

SHAPE = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    bos_token_id=None,
    eos_token_id=EOS,
    pad_token_id=None,  # a pad id would make torch drop the gradient of that embedding row
)


def rope(theta, **scaling):
    return {"rope_type": "default", "rope_theta": theta, **scaling}


# With head_dim 8 and theta 500 the wavelengths are 6.3, 29.7, 140 and 664 positions: one above
# the high-frequency bound (8), one inside the smooth band (8 to 32), two that are fully scaled.
LLAMA3_ROPE = rope(
    500.0,
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)

# name -> (config class, tied, what differs)
MODELS = {
    "qwen2_tied": (Qwen2Config, True, dict(rms_norm_eps=1e-3, rope_parameters=rope(1234.0))),
    "qwen2_untied": (Qwen2Config, False, dict(rms_norm_eps=3e-3, rope_parameters=rope(4321.0))),
    "qwen3_tied": (
        Qwen3Config,
        True,
        dict(rms_norm_eps=2e-3, rope_parameters=rope(2345.0), head_dim=16),
    ),
    "qwen3_untied": (
        Qwen3Config,
        False,
        dict(rms_norm_eps=1e-3, rope_parameters=rope(777.0), head_dim=16),
    ),
    "llama_tied": (LlamaConfig, True, dict(rms_norm_eps=4e-3, rope_parameters=LLAMA3_ROPE)),
    "llama_untied": (LlamaConfig, False, dict(rms_norm_eps=1e-3, rope_parameters=rope(555.0))),
}
SHARDED = {"qwen2_untied": "40KB"}

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo")
HYPER = dict(beta=0.04, epsilon=0.2, epsilon_high=0.28, temperature=0.9)
MAX_COMPLETION_LENGTH = 16  # longer than T, so that dr_grpo's constant is told apart from T


def settle():
    """One thread and deterministic kernels: the same bits on every run of one machine."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()


# ---------------------------------------------------------------------------------- models


def make_model(name):
    """A tiny random model: no tensor is constant, no two tensors are equal."""
    config_class, tied, differing = MODELS[name]
    config = config_class(**SHAPE, tie_word_embeddings=tied, dtype="float32", **differing)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    rng = np.random.default_rng([SEED, list(MODELS).index(name)])
    with torch.no_grad():
        for key, parameter in sorted(model.named_parameters()):
            noise = rng.standard_normal(tuple(parameter.shape)).astype(np.float32)
            if "norm" in key:
                value = 1.0 + 0.2 * noise
            elif "embed_tokens" in key or "lm_head" in key:
                value = 0.5 * noise
            else:  # projections and their biases
                value = 0.3 * noise
            parameter.copy_(torch.from_numpy(value))
    return model.eval()


def make_models(out):
    """Write every model below `out`."""
    for name in MODELS:
        make_model(name).save_pretrained(out / name, max_shard_size=SHARDED.get(name, "1GB"))


def load_model(directory):
    return AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()


# ---------------------------------------------------------------------------------- logits


def make_logits(models):
    """Logits of the models below the directory `models`, each row alone and without padding."""
    length = np.array([40, 23, 31], np.int32)
    arrays = {}
    for i, name in enumerate(MODELS):
        rng = np.random.default_rng([SEED, 100 + i])
        tokens = rng.integers(2, VOCAB, (3, 40)).astype(np.int32)
        tokens[np.arange(40) >= length[:, None]] = PAD
        logits = np.zeros((3, 40, VOCAB), np.float32)
        model = load_model(models / name)
        with torch.no_grad():
            for row, n in enumerate(length):
                inputs = torch.from_numpy(tokens[row : row + 1, :n].astype(np.int64))
                logits[row, :n] = model(inputs).logits[0].numpy()
        arrays |= {f"tokens/{name}": tokens, f"length/{name}": length, f"logits/{name}": logits}
    return arrays


# ---------------------------------------------------------------------------------- GRPO


def make_trainer(model_directory, output_dir):
    """A real GRPOTrainer around the model; the data set and the reward are never used."""
    words = {f"t{i}": i for i in range(VOCAB)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="t2"))
    tokenizer.pre_tokenizer = Whitespace()
    args = GRPOConfig(
        output_dir=str(output_dir),
        num_generations=3,
        per_device_train_batch_size=6,
        gradient_accumulation_steps=1,
        steps_per_generation=1,
        max_completion_length=MAX_COMPLETION_LENGTH,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        **HYPER,
    )
    trainer = GRPOTrainer(
        model=load_model(model_directory),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=args,
        train_dataset=Dataset.from_list([{"prompt": "t3 t4"}] * 6),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="t0", eos_token="t1", unk_token="t2"
        ),
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # Trainer.train() sets it; we call the loss
    return trainer


def make_batch():
    """Tokens, lengths and advantages of 2 prompts with 3 completions each; a numpy dict."""
    rng = np.random.default_rng([SEED, 200])
    P, G, L, T = 2, 3, 9, 12
    prompt_length = np.array([9, 5], np.int32)
    # The first is cut off without an EOS, the third is an EOS alone, the fifth ends at T.
    completion_length = np.array([[12, 7, 1], [4, 12, 9]], np.int32)
    prompt_tokens = rng.integers(2, VOCAB, (P, L)).astype(np.int32)
    prompt_tokens[np.arange(L) >= prompt_length[:, None]] = PAD
    tokens = rng.integers(2, VOCAB, (P, G, T)).astype(np.int32)
    last = np.arange(T) == completion_length[..., None] - 1
    last[0, 0] = False
    tokens[last] = EOS
    tokens[np.arange(T) >= completion_length[..., None]] = PAD
    # Advantages of tokens are nonzero on padding too: the mask must drop them. Some are zero.
    advantages_BT = rng.standard_normal((P, G, T)).astype(np.float32)
    advantages_BT[rng.random((P, G, T)) < 0.1] = 0.0
    return {
        "prompt_tokens": prompt_tokens,
        "prompt_length": prompt_length,
        "completion_tokens": tokens,
        "completion_length": completion_length,
        "advantages_B": np.array([[1.1, -0.3, -0.8], [-1.2, 0.5, 0.7]], np.float32),
        "advantages_BT": advantages_BT,
    }


def trl_inputs(batch):
    """What `_compute_loss` reads, without advantages: prompts left-padded, one row a completion."""
    P, G, T = batch["completion_tokens"].shape
    L = batch["prompt_tokens"].shape[1]
    prompt_ids = np.full((P, L), PAD, np.int64)
    prompt_mask = np.zeros((P, L), np.int64)
    for p, n in enumerate(batch["prompt_length"]):
        prompt_ids[p, L - n :] = batch["prompt_tokens"][p, :n]
        prompt_mask[p, L - n :] = 1
    mask = np.arange(T) < batch["completion_length"][..., None]
    arrays = {
        "prompt_ids": np.repeat(prompt_ids, G, axis=0),
        "prompt_mask": np.repeat(prompt_mask, G, axis=0),
        "completion_ids": batch["completion_tokens"].reshape(P * G, T).astype(np.int64),
        "completion_mask": mask.reshape(P * G, T).astype(np.int64),
    }
    inputs = {key: torch.from_numpy(value) for key, value in arrays.items()}
    inputs["num_items_in_batch"] = inputs["completion_mask"].sum()  # as TRL counts them
    return inputs


def trl_log_probs(trainer, inputs):
    """TRL's own log-probabilities and entropies `[B, T]` at its temperature; zero on padding."""
    with torch.no_grad():
        log_prob, entropy, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].size(1),
            compute_entropy=True,
        )
    return log_prob.numpy(), entropy.numpy()


def trl_loss(trainer, loss_type, inputs, *, accumulation_steps=1, correct_kl=False):
    """TRL's loss, its gradient for every parameter, and the metrics that TRL logged.

    `correct_kl` is TRL's `use_bias_correction_kl`: each token's KL times its ratio to the old
    policy (gradients flow through it). Off here, as in the GRPO paper; TRL has it on since 1.10.
    """
    trainer.loss_type = loss_type
    trainer.args.use_bias_correction_kl = correct_kl
    trainer.current_gradient_accumulation_steps = accumulation_steps
    trainer.args.steps_per_generation = accumulation_steps
    trainer._metrics["train"].clear()
    trainer.model.zero_grad(set_to_none=True)
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    gradient = {name: p.grad.numpy().copy() for name, p in trainer.model.named_parameters()}
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return loss.item(), gradient, metrics


def make_grpo(models):
    """TRL's losses, gradients and metrics on the frozen batch with the model `qwen2_tied`."""
    with tempfile.TemporaryDirectory() as scratch:
        trainer = make_trainer(models / "qwen2_tied", scratch)
    batch = make_batch()
    P, G, T = batch["completion_tokens"].shape
    inputs = trl_inputs(batch)
    mask = inputs["completion_mask"].numpy()
    log_prob, entropy = trl_log_probs(trainer, inputs)
    # Old and reference log-probabilities are the policy's with noise, zero on padding as in TRL.
    rng = np.random.default_rng([SEED, 202])
    old, ref = (
        ((log_prob + scale * rng.standard_normal(log_prob.shape)) * mask).astype(np.float32)
        for scale in (0.35, 0.3)
    )
    # A ratio on a clipping bound would make the gradient depend on rounding.
    ratio = np.exp(log_prob - old)[mask == 1]
    assert min(np.abs(ratio - 0.8).min(), np.abs(ratio - 1.28).min()) > 1e-3
    inputs["old_per_token_logps"] = torch.from_numpy(old)
    inputs["ref_per_token_logps"] = torch.from_numpy(ref)

    arrays = batch | {
        "log_prob": log_prob.reshape(P, G, T),
        "entropy": entropy.reshape(P, G, T),
        "old_log_prob": old.reshape(P, G, T),
        "ref_log_prob": ref.reshape(P, G, T),
        "max_completion_length": np.int32(MAX_COMPLETION_LENGTH),
        "num_items_in_batch": np.int32(mask.sum()),
        **{key: np.float32(value) for key, value in HYPER.items()},
    }
    advantages = {
        "B": torch.from_numpy(batch["advantages_B"].reshape(P * G)),
        "BT": torch.from_numpy(batch["advantages_BT"].reshape(P * G, T)),
    }
    for which, advantage in advantages.items():
        whole = inputs | {"advantages": advantage}
        for loss_type in LOSS_TYPES:
            loss, gradient, metrics = trl_loss(trainer, loss_type, whole)
            arrays[f"loss/{loss_type}/{which}"] = np.float32(loss)
            for name, value in gradient.items():
                arrays[f"grad/{loss_type}/{which}/{name}"] = value
            loss, gradient, corrected = trl_loss(trainer, loss_type, whole, correct_kl=True)
            arrays[f"corrected_kl/loss/{loss_type}/{which}"] = np.float32(loss)
            if (loss_type, which) == ("grpo", "BT"):  # one gradient is enough, and keeps this small
                for name, value in gradient.items():
                    arrays[f"corrected_kl/grad/{loss_type}/{which}/{name}"] = value
            # The same batch as two accumulated micro-batches, one prompt each, scaled by TRL.
            # `num_items_in_batch` stays that of the whole batch.
            micro = []
            for p in range(P):
                rows = slice(p * G, (p + 1) * G)
                part = {k: v[rows] if v.dim() else v for k, v in whole.items()}
                micro.append(trl_loss(trainer, loss_type, part, accumulation_steps=P)[0])
            arrays[f"micro_loss/{loss_type}/{which}"] = np.array(micro, np.float32)
        for name, value in metrics.items():  # the same for each of these loss types
            arrays[f"metric/{which}/{name}"] = np.float32(value)
        arrays[f"corrected_kl/metric/{which}/kl"] = np.float32(corrected["kl"])
    return arrays


# ---------------------------------------------------------------------------------- all


def versions():
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def main(out=GOLDEN):
    settle()
    out.mkdir(parents=True, exist_ok=True)
    make_models(out / "models")
    np.savez_compressed(out / "logits.npz", **make_logits(out / "models"))
    np.savez_compressed(out / "grpo_loss.npz", **make_grpo(out / "models"))
    (out / "versions.json").write_text(json.dumps(versions(), indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=GOLDEN)
    main(parser.parse_args().out)
