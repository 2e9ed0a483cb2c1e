"""Make the oracle fixtures with torch, transformers, TRL and verl, for the JAX tests to compare to.

    python tests/golden/make_golden.py            # rewrites the fixtures beside this file
    python tests/golden/make_golden.py --out DIR  # writes them elsewhere

Needs torch, transformers, trl, datasets, accelerate, and verl, whose own dependencies nothing here
uses (`pip install --no-deps verl==0.5.0`). `versions.json` says which versions made the committed
files. CPU only, float32, offline. Every random number comes from numpy with a fixed seed, so the
weights and the batches do not depend on torch's version.

models/NAME/      six tiny random models written by `save_pretrained` (`qwen2_untied` is sharded)
logits.npz        logits of each model on three rows of mixed length, one row at a time
grpo_loss.npz     TRL's GRPO losses and their gradients on one frozen batch
advantages.npz    TRL's and verl's advantages of frozen rewards; verl's means of token losses
versions.json     what made them

`tests/oracle/test_live_oracle.py` makes everything again and compares, so nothing here goes stale.
The README beside this file lists the keys.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace

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
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

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
AGGREGATIONS = (
    "token-mean",
    "seq-mean-token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-sum-norm",
)


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


def make_tokenizer():
    """A tokenizer whose words are `t0` to `t96`, each the token of its number."""
    words = {f"t{i}": i for i in range(VOCAB)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="t2"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="t0", eos_token="t1", unk_token="t2"
    )


def make_trainer(model_directory, output_dir):
    """A real GRPOTrainer around the model; the dataset and the reward are never used."""
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
        processing_class=make_tokenizer(),
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
            if loss_type == "dapo":  # on one process its gradient is bnpo's, bit for bit
                for name, value in gradient.items():
                    np.testing.assert_array_equal(value, arrays[f"grad/bnpo/{which}/{name}"])
            else:
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


# ---------------------------------------------------------------------------------- advantages


def make_rewards():
    """Rewards `[P, G]` of 6 prompts with 5 completions each; each row is another kind."""
    rng = np.random.default_rng([SEED, 300])
    mixed, negative, outlier, large = rng.standard_normal((4, 5))
    outlier[3] = 50.0
    # The float32 mean of five of these is exact, so each advantage is zero. The mean of six is not:
    # TRL's advantages would be 3e-4 and verl's 0.03, rounding that is no oracle for anything.
    equal = np.full(5, 0.1 + 0.2)
    binary = [1.0, 0.0, 0.0, 1.0, 0.0]
    rows = [mixed, equal, binary, -1 - np.abs(negative), outlier, 1000 * large]
    return np.array(rows, np.float32)


def trl_advantages(model_directory, reward, trainer_class, config_class, **options):
    """TRL's own advantages `[P, G]`: one real step of generation, each completion then rewarded.

    TRL samples the completions, but its advantages depend on nothing but the rewards.
    """
    P, G = reward.shape
    prompts = [f"t{3 + p} t2" for p in range(P)]

    def frozen(rewards_of_prompt, **_):
        return [rewards[i % G] for i, rewards in enumerate(rewards_of_prompt)]

    with tempfile.TemporaryDirectory() as scratch:
        trainer = trainer_class(
            model=load_model(model_directory),
            reward_funcs=frozen,
            args=config_class(
                output_dir=scratch,
                num_generations=G,
                per_device_train_batch_size=P * G,
                gradient_accumulation_steps=1,
                steps_per_generation=1,
                max_completion_length=2,
                shuffle_dataset=False,
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=True,
                report_to="none",
                beta=0.0,
                **options,
            ),
            train_dataset=Dataset.from_dict(
                {"prompt": prompts, "rewards_of_prompt": reward.tolist()}
            ),
            processing_class=make_tokenizer(),
        )
    trainer.model.train()
    rows = next(iter(trainer.get_train_dataloader()))  # TRL repeats each prompt, not we
    advantages = trainer._generate_and_score_completions(rows)["advantages"]
    # TRL's own log says that the rewards arrived in this order, G consecutive ones a prompt.
    assert list(trainer._logs["prompt"]) == [prompt for prompt in prompts for _ in range(G)]
    assert list(trainer._logs["rewards"]["frozen"]) == reward.ravel().tolist()
    assert list(trainer._logs["advantages"]) == advantages.tolist()
    return advantages.numpy().reshape(P, G)


def import_verl():
    """verl's `core_algos` and `DAPORewardManager`; an ImportError where verl is not installed.

    verl imports ray and tensordict at once, for its worker groups and for annotations. Nothing that
    runs here uses either, so two empty modules stand in for them while verl is imported, and only
    then: transformers and accelerate ask for ray, too, and must not find these.
    """
    ray, tensordict = ModuleType("ray"), ModuleType("tensordict")
    ray.ObjectRef, tensordict.TensorDict = object, dict  # the names that verl mentions on import
    stand_ins = {"ray": ray, "tensordict": tensordict}
    before = {name: sys.modules[name] for name in stand_ins if name in sys.modules}
    sys.modules.update(stand_ins)
    try:
        from verl.trainer.ppo import core_algos
        from verl.workers.reward_manager.dapo import DAPORewardManager
    finally:
        for name in stand_ins:
            del sys.modules[name]
        sys.modules.update(before)
    return core_algos, DAPORewardManager


def make_token_losses(P, G):
    """Frozen losses and mask, `[P, G, T]` each: every length from 1 to T, nonzero on padding."""
    rng = np.random.default_rng([SEED, 301])
    T = 7
    per_token_loss = rng.standard_normal((P, G, T)).astype(np.float32)
    length = rng.permutation(np.arange(P * G) % T + 1).reshape(P, G)
    return per_token_loss, np.arange(T) < length[..., None]


def verl_advantages(function, reward, mask, **options):
    """The advantages `[P, G]` of one of verl's functions, which gives them to unmasked tokens."""
    (P, G), T = reward.shape, mask.shape[-1]
    mask = torch.from_numpy(mask.reshape(P * G, T)).long()
    rewards = torch.zeros(P * G, T)
    rewards[torch.arange(P * G), mask.sum(1) - 1] = torch.from_numpy(reward.ravel())
    advantages, _ = function(rewards, mask, index=np.repeat(np.arange(P), G), **options)
    assert torch.equal(advantages, advantages[:, :1] * mask)  # no row is empty
    return advantages[:, 0].numpy().reshape(P, G)


class Rows(list):
    """What the reward manager reads of verl's DataProto: rows, and `batch`, their tensors."""


def verl_overlong_penalty(manager_class, length, max_length, buffer):
    """DAPO's soft overlong penalty `[N]`: what verl's reward manager gives for a score of zero."""
    N, L = len(length), 2
    responses = torch.full((N, max_length), 2)
    batch = {
        "prompts": responses[:, :L],
        "responses": responses,
        "attention_mask": (
            torch.arange(L + max_length) < L + torch.from_numpy(length)[:, None]
        ).long(),
    }
    others = {"reward_model": {"ground_truth": ""}, "data_source": ""}
    rows = Rows(
        SimpleNamespace(batch={k: v[i] for k, v in batch.items()}, non_tensor_batch=others)
        for i in range(N)
    )
    rows.batch = batch
    manager = manager_class(
        tokenizer=make_tokenizer(),
        num_examine=0,
        compute_score=lambda **_: 0.0,
        max_resp_len=max_length,
        overlong_buffer_cfg=SimpleNamespace(enable=True, len=buffer, penalty_factor=1.0, log=False),
    )
    rewards = manager(rows)
    penalty = rewards[torch.arange(N), torch.from_numpy(length) - 1]
    assert torch.equal(rewards.sum(1), penalty)  # it is on the last token alone
    return penalty.numpy()


def make_advantages(models):
    """The advantages by TRL and verl, and verl's means of token losses and overlong penalties."""
    core_algos, reward_manager = import_verl()
    reward = make_rewards()
    per_token_loss, mask = make_token_losses(*reward.shape)
    arrays = {"reward": reward, "per_token_loss": per_token_loss, "mask": mask}

    model = models / "qwen2_tied"
    for scale in ("group", "none"):
        arrays[f"trl/{scale}"] = trl_advantages(
            model, reward, GRPOTrainer, GRPOConfig, scale_rewards=scale
        )
    arrays["trl/rloo"] = trl_advantages(
        model, reward, RLOOTrainer, RLOOConfig, normalize_advantages=False
    )

    rloo, grpo = (
        core_algos.compute_rloo_outcome_advantage,
        core_algos.compute_grpo_outcome_advantage,
    )
    arrays["verl/rloo"] = verl_advantages(rloo, reward, mask)
    for key, scaled in {"grpo": True, "dr_grpo": False}.items():
        arrays[f"verl/{key}"] = verl_advantages(grpo, reward, mask, norm_adv_by_std_in_grpo=scaled)
    T = mask.shape[-1]
    rows = torch.from_numpy(per_token_loss).reshape(-1, T), torch.from_numpy(mask).reshape(-1, T)
    for mode in AGGREGATIONS:
        arrays[f"verl/agg/{mode}"] = core_algos.agg_loss(rows[0], rows[1].long(), mode).numpy()

    # Below, on and above the first length that is punished; then up to the longest there is.
    length = np.array([1, 13, 14, 15, 17, 19, 20], np.int32)
    max_length, buffer = 20, 6
    arrays |= {
        "overlong/length": length,
        "overlong/penalty": verl_overlong_penalty(reward_manager, length, max_length, buffer),
        "overlong/max_length": np.int32(max_length),
        "overlong/buffer": np.int32(buffer),
    }
    return arrays


# ---------------------------------------------------------------------------------- all


def versions():
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
        "verl": version("verl"),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def main(out=GOLDEN):
    settle()
    out.mkdir(parents=True, exist_ok=True)
    make_models(out / "models")
    np.savez_compressed(out / "logits.npz", **make_logits(out / "models"))
    np.savez_compressed(out / "grpo_loss.npz", **make_grpo(out / "models"))
    np.savez_compressed(out / "advantages.npz", **make_advantages(out / "models"))
    (out / "versions.json").write_text(json.dumps(versions(), indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=GOLDEN)
    main(parser.parse_args().out)
