"""Write the nine configs of the paper's table: three models on three data sets, and how each set is
evaluated.

    python experiments/paper/make_configs.py

The hyper-parameters are the paper's (arXiv:2602.19049); what differs from it is said in README.md.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent


class Model(NamedTuple):
    """A model and how it is spread over eight devices."""

    hub: str
    hardware: str  # what holds it
    tpu: dict[str, str]  # of v5e-8, 16 GB a chip: what the file has
    gpu: dict[str, str]  # of 8 GPUs of 80 GB: what the second command overrides


class DataSet(NamedTuple):
    """A data set and its split, as the paper has it."""

    train: str
    test: str
    questions: int
    epochs: int
    held_out: int  # for choosing among checkpoints, of the training questions
    instruction: str
    shared: str = ""  # a line of the section eval


_INTEGER = "The answer must be a single integer."

_BOTH = "8 TPU chips (v5e-8), or 8 GPUs of 80 GB"

MODELS = {
    "qwen2.5-0.5b": Model(
        "Qwen/Qwen2.5-0.5B-Instruct",
        _BOTH,
        tpu={"mesh.data": "1", "mesh.fsdp": "8", "batch.micro_batch_size": "8"},
        gpu={"mesh.data": "8", "mesh.fsdp": "1", "batch.micro_batch_size": "16"},
    ),
    "qwen2.5-1.5b": Model(
        "Qwen/Qwen2.5-1.5B-Instruct",
        _BOTH,
        tpu={"mesh.data": "1", "mesh.fsdp": "8", "batch.micro_batch_size": "8"},
        gpu={"mesh.data": "1", "mesh.fsdp": "8", "batch.micro_batch_size": "16"},
    ),
    "qwen2.5-7b": Model(
        "Qwen/Qwen2.5-7B-Instruct",
        "8 GPUs of 80 GB; too large for eight v5e chips",
        tpu={
            "mesh.data": "1",
            "mesh.fsdp": "2",
            "mesh.tensor": "4",
            "batch.micro_batch_size": "2",
        },
        gpu={
            "mesh.data": "1",
            "mesh.fsdp": "8",
            "mesh.tensor": "1",
            "batch.micro_batch_size": "8",
        },
    ),
}
DATA_SETS = {
    "gsm8k": DataSet("gsm8k:train", "gsm8k:test", 7473, 2, 256, _INTEGER),
    "math500": DataSet("math-500:test:first 400", "math-500:test:last 100", 400, 152, 48, ""),
    "dapo": DataSet(
        "dapo-math-17k:train:first 5600",
        "dapo-math-17k:train:first 7000:last 1400",
        5599,
        2,
        256,
        _INTEGER,
        "\n  shared: leave_out      # one question of these 1,400 is also among the 5,600",
    ),
}
PROMPTS, GENERATIONS = 16, 8


def _prompt(data: DataSet) -> str:
    worked = "<think>\\n2+2 means two and two more, which makes 4.\\n</think>\\n<answer>4</answer>"
    return f"""\
prompt:
  system: r1
  instruction: "{data.instruction}"
  example_question: What is 2+2?
  example_answer: "{worked}"
"""


def render_evaluation(set_name: str) -> str:
    """The text of the config by which models of a data set are evaluated: asked as in training."""
    data, name = DATA_SETS[set_name], f"experiments/paper/evaluate/{set_name}.yaml"
    return f"""\
# Claim:    pass@k, length and ratio@k on {set_name}, asked as in training, with the paper's k.
# Command:  python -m iapo_jax.evaluate --config {name} --model LABEL=DIR --out DIR
# Hardware: as of the models.
# Result:   not run yet.
datasets: ["{data.test}"]
num_samples: 32
k: [1, 2, 4, 8, 16, 32]
max_completion_length: 2048
max_prompt_length: 512
{_prompt(data)}"""


def render(model_name: str, set_name: str) -> str:
    """The text of one config."""
    model, data = MODELS[model_name], DATA_SETS[set_name]
    name = f"{model_name}_{set_name}"
    steps = data.epochs * (data.questions - data.held_out) // PROMPTS
    mesh = {key.removeprefix("mesh."): value for key, value in model.tpu.items() if "mesh" in key}
    axes = "\n".join(f"  {axis}: {size}" for axis, size in mesh.items())
    gpu = " ".join(f"{key}={value}" for key, value in model.gpu.items())
    return f"""\
# Claim:    a cell of the paper's table: {model.hub.partition("/")[2]} on {set_name}, by IAPO.
# Command:  python -m iapo_jax.train --config experiments/paper/{name}.yaml
# 8 GPUs:   python -m iapo_jax.train --config experiments/paper/{name}.yaml {gpu}
# Hardware: {model.hardware}; the memory of each: README.md beside this file.
# Result:   not run yet.
seed: 0
output_dir: runs/paper/{name}
max_steps: {steps}            # {data.epochs} epochs of {data.questions - data.held_out} questions
save_steps: 50
model:
  path: {model.hub}
  dtype: bfloat16
  remat: true
data:
  dataset: "{data.train}"
  max_prompt_length: 512
{_prompt(data)}batch:
  prompts_per_step: {PROMPTS}
  num_generations: {GENERATIONS}
  micro_batch_size: {model.tpu["batch.micro_batch_size"]}
sampling:
  temperature: 1.0
  max_completion_length: 2048
  length_bucket: 256
algorithm:
  name: iapo
  options:
    information_weight: 0.01  # the paper searches both weights in 1e-6, 1e-4, 1e-2, 1: README.md
    exploration_weight: 0.01
information:
  postfix: "</think>\\n<answer>"
optimizer:
  learning_rate: 1e-6
  lr_scheduler_type: linear
  adam_beta1: 0.9
  adam_beta2: 0.99
  max_grad_norm: 1.0
mesh:
{axes}
selection:               # the checkpoint is chosen on questions held out of the training data
  problems: {data.held_out}
  criterion: ratio
eval:
  dataset: "{data.test}"{data.shared}
  prompts_per_batch: 64
"""


def main() -> None:
    """Command line."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    for model in MODELS:
        for data in DATA_SETS:
            path = HERE / f"{model}_{data}.yaml"
            path.write_text(render(model, data))
            print(path)
    for data in DATA_SETS:
        path = HERE / "evaluate" / f"{data}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(render_evaluation(data))
        print(path)


if __name__ == "__main__":
    main()
