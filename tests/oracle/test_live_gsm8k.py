"""A Qwen2 directory that transformers made goes through the GSM8K experiment and opens again."""

import numpy as np
import torch
import transformers
from test_gsm8k import VOCABULARY, run_two_steps, small_config, write_tokenizer

from iapo_jax.runtime.files import read_jsonl


def test_made_by_transformers_trained_here_opened_by_transformers(root, shared_data, tmp_path):
    model, run = tmp_path / "model", tmp_path / "run"
    torch.manual_seed(0)
    made = transformers.Qwen2ForCausalLM(small_config())
    made.save_pretrained(model)
    write_tokenizer(model, shared_data / "tokenizers" / "qwen2.5-instruct")
    run_two_steps(root, shared_data, model, run)
    assert len(read_jsonl(run / "metrics.jsonl")) == 2

    opened = transformers.AutoModelForCausalLM.from_pretrained(run / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "hf")
    assert opened.generation_config.eos_token_id == [151645, 151643]
    before = dict(made.named_parameters())
    moved = {
        name: np.abs(value.detach().numpy() - before[name].detach().numpy()).max()
        for name, value in opened.named_parameters()
    }
    # Two AdamW steps at a learning rate of at most 1e-6 move a weight by about 2e-6.
    assert all(change < 1e-5 for change in moved.values()), moved
    assert any(change > 0 for change in moved.values())
    chat = [{"role": "user", "content": "What is 2+2?"}]
    inputs = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = opened.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert written.shape[1] > inputs["input_ids"].shape[1]
    assert written.max() < VOCABULARY
