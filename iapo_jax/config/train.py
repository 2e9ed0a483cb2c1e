"""The config of `python -m iapo_jax.train`.

A step is a rollout with all the updates that are made from it.

"""

import dataclasses
from typing import Any

from iapo_jax.config.fields import LARGEST, option
from iapo_jax.config.sections import (
    DataSection,
    GenerationSection,
    InformationSection,
    LogSection,
    MeshSection,
    ModelSection,
    OptimizerSection,
    PromptSection,
)


@dataclasses.dataclass(frozen=True)
class BatchSection:
    """Batch sizes. Derived sizes are printed when a run starts."""

    prompts_per_step: int = option(
        16,
        "P: prompts sampled in a step",
        at_least=1,
        trl={"generation_batch_size": "prompts, not completions"},
    )
    num_generations: int = option(
        8, "G: completions of each prompt", at_least=1, trl="num_generations"
    )
    micro_batch_size: int = option(
        0,
        "prompts, with all their completions, in one forward and backward pass; 0 = all",
        at_least=0,
        trl={
            "per_device_train_batch_size": "prompts on all devices, not completions on one",
            "gradient_accumulation_steps": "determines the accumulation steps",
        },
    )
    mini_batches: int = option(
        1,
        "optimizer updates in one pass over a rollout",
        at_least=1,
        trl={"steps_per_generation": "number of updates, not of micro-batches"},
    )
    num_iterations: int = option(1, "passes over a rollout", at_least=1, trl="num_iterations")


@dataclasses.dataclass(frozen=True)
class SamplingSection(GenerationSection):
    """How completions are drawn in training."""

    max_completion_length: int = option(
        2048,
        "T: maximum completion length in tokens, including the stop token",
        at_least=1,
        trl="max_completion_length",
    )
    length_bucket: int = option(
        0,
        "pad rollouts to a multiple of this many tokens; 0 = always to max_completion_length",
        at_least=0,
    )
    allow_truncated_distribution: bool = option(
        False,
        "allow top_p < 1 or top_k > 0 in training, although the loss scores the untruncated "
        "distribution",
        advanced=True,
    )
    temperature: float = option(
        1.0,
        "sampling temperature; the loss scores tokens at the same temperature",
        above=0,
        hint="for greedy decoding use top_k=1",
        trl="temperature",
    )


@dataclasses.dataclass(frozen=True)
class RewardSection:
    """The reward functions and their weights."""

    functions: list[str] = option(
        lambda: ["accuracy", "format"],
        "reward functions: 'accuracy', 'format', FILE.py:NAME or package.module.NAME",
        trl="reward_funcs",
    )
    weights: list[float] = option(
        list, "weight of each function; empty = all 1", trl="reward_weights"
    )


@dataclasses.dataclass(frozen=True)
class AlgorithmSection:
    """The credit-assignment rule and its loss.

    Fields that are null use the default of the chosen algorithm.
    """

    name: str = option(
        "iapo",
        "name of a built-in algorithm (see docs/methods.md), or your own rule: FILE.py:NAME or "
        "package.module.NAME",
    )
    options: dict[str, Any] = option(
        dict, "hyper-parameters of the algorithm (and of adapt), by name; see docs/methods.md"
    )
    adapt: str | None = option(
        None,
        "adapt one hyper-parameter during the run: price_for_length, price_for_accuracy or "
        "keep_for_difficulty",
    )
    dynamic_sampling: bool | None = option(
        None, "replace groups whose completions are all correct or all incorrect"
    )
    max_rounds: int = option(
        10,
        "maximum number of sampling rounds in a step with dynamic_sampling",
        at_least=1,
        advanced=True,
    )
    loss_type: str | None = option(None, "grpo, bnpo, dr_grpo or dapo", trl="loss_type")
    epsilon: float | None = option(
        None,
        "lower clipping bound of the probability ratio is 1 - epsilon",
        at_least=0,
        trl="epsilon",
    )
    epsilon_high: float | None = option(
        None,
        "upper clipping bound of the probability ratio is 1 + epsilon_high",
        at_least=0,
        trl="epsilon_high",
    )
    beta: float | None = option(
        None, "weight of the KL (k3) to the initial model; 0 = no KL term", at_least=0, trl="beta"
    )


@dataclasses.dataclass(frozen=True)
class EvalSection(GenerationSection):
    """Evaluation before and after training; skipped if no dataset is given."""

    dataset: str = option("", "as data.dataset; must share no question with the training data")
    subset: str | None = option(None, "as data.subset")
    split: str = option("test", "as data.split", trl="dataset_test_split")
    max_rows: int = option(0, "number of rows to use, from the first; 0 = all", at_least=0)
    strict: bool = option(False, "as data.strict")
    shared: str = option(
        "refuse",
        "what to do if training and evaluation data share a question: refuse = stop with an error; "
        "leave_out = remove it from the training data",
        one_of=("refuse", "leave_out"),
    )
    num_samples: int = option(
        1, "completions of each problem", at_least=1, trl="num_generations_eval"
    )
    prompts_per_batch: int = option(
        64,
        "prompts sampled at once; does not change the result",
        at_least=1,
        advanced=True,
        trl={"per_device_eval_batch_size": "prompts on all devices"},
    )
    inspect: int = option(
        0,
        "probe the first sample of this many problems, before and after training, for the report",
        at_least=0,
    )


@dataclasses.dataclass(frozen=True)
class SelectionSection:
    """How the run chooses the checkpoint that it keeps, on rows held out of the training data."""

    problems: int = option(
        0,
        "rows held out of the training data; 0 = none, and the last checkpoint is kept",
        at_least=0,
        trl={"load_best_model_at_end": "number of problems, not a bool"},
    )
    criterion: str = option(
        "ratio",
        "accuracy, or ratio = accuracy per token",
        one_of=("accuracy", "ratio"),
        trl={"metric_for_best_model": "accuracy or ratio"},
    )
    tolerance: float = option(
        0.02,
        "for criterion=ratio: how far a checkpoint's accuracy may fall below the initial model's",
        at_least=0,
    )
    num_samples: int = option(
        1, "completions of each problem, drawn as in training", at_least=1, advanced=True
    )
    prompts_per_batch: int = option(
        64, "prompts sampled at once; does not change the result", at_least=1, advanced=True
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """`python -m iapo_jax.train`: trains a model on a dataset by reinforcement learning."""

    seed: int = option(
        0, "seed of the data order and of every draw", at_least=0, at_most=LARGEST, trl="seed"
    )
    output_dir: str = option(
        "runs/train",
        "directory for everything that the run writes",
        nonempty="a directory",
        trl="output_dir",
    )
    max_steps: int = option(
        100,
        "number of training steps; one step is one rollout and all optimizer updates made from it",
        at_least=0,
        trl={
            "max_steps": "number of rollouts, not of updates",
            "num_train_epochs": "number of steps, not of epochs",
        },
    )
    max_sampled_tokens: int = option(
        0,
        "stop after the step in which the run's total of sampled completion tokens reaches this; "
        "groups that dynamic sampling discards count, too, so that methods can be compared at an "
        "equal budget; 0 = no limit",
        at_least=0,
    )
    save_steps: int = option(
        50,
        "steps between two checkpoints; 0 = only at the end",
        at_least=0,
        trl={"save_steps": "number of rollouts, not of updates"},
    )
    resume: str = option(
        "auto",
        "auto = resume from the newest complete checkpoint, if any; never = start from scratch, "
        "and stop with an error if output_dir has checkpoints; N = resume from step N",
        trl={"resume_from_checkpoint": "auto, never or a step"},
    )
    max_skipped: int = option(
        5,
        "stop after this many consecutive skipped steps; a step counts as skipped if its rollout, "
        "its credit or any of its updates is not finite",
        at_least=1,
        advanced=True,
    )
    model: ModelSection = option(ModelSection, "")
    data: DataSection = option(DataSection, "")
    prompt: PromptSection = option(PromptSection, "")
    batch: BatchSection = option(BatchSection, "")
    sampling: SamplingSection = option(SamplingSection, "")
    reward: RewardSection = option(RewardSection, "")
    algorithm: AlgorithmSection = option(AlgorithmSection, "")
    information: InformationSection = option(InformationSection, "")
    optimizer: OptimizerSection = option(OptimizerSection, "")
    mesh: MeshSection = option(MeshSection, "")
    selection: SelectionSection = option(SelectionSection, "")
    eval: EvalSection = option(EvalSection, "")
    log: LogSection = option(LogSection, "")
