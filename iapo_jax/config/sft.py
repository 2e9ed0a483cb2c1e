"""The config of `python -m iapo_jax.sft`.

A step is one optimizer update.

"""

import dataclasses

from iapo_jax.config.fields import LARGEST, option
from iapo_jax.config.sections import (
    DataSection,
    LogSection,
    MeshSection,
    ModelSection,
    OptimizerSection,
    PromptSection,
)


@dataclasses.dataclass(frozen=True)
class SftBatchSection:
    """How much goes into one step."""

    rows_per_step: int = option(64, "rows of one optimizer update", at_least=1)
    micro_batch_size: int = option(
        0,
        "rows in one forward and backward pass; 0 = all",
        at_least=0,
        trl={
            "per_device_train_batch_size": "rows of all devices",
            "gradient_accumulation_steps": "follows from this",
        },
    )
    max_length: int = option(
        1024,
        "tokens of a completion; longer rows are left out, and a note counts them",
        at_least=1,
        trl={"max_length": "of the completion, without the prompt"},
    )


@dataclasses.dataclass(frozen=True)
class SftConfig:
    """`python -m iapo_jax.sft`: supervised fine-tuning on prompts and completions."""

    seed: int = option(
        0,
        "seed of the data order and of the initial weights of a new model",
        at_least=0,
        at_most=LARGEST,
        trl="seed",
    )
    output_dir: str = option(
        "runs/sft",
        "directory for everything that the run writes",
        nonempty="a directory",
        trl="output_dir",
    )
    max_steps: int = option(
        1000,
        "optimizer updates",
        at_least=0,
        trl={"max_steps": "", "num_train_epochs": "updates in place of epochs"},
    )
    save_steps: int = option(
        0, "updates between two checkpoints; 0 = only at the end", at_least=0, trl="save_steps"
    )
    resume: str = option(
        "auto", "as in training", trl={"resume_from_checkpoint": "auto, never or a step"}
    )
    max_skipped: int = option(5, "as in training", at_least=1, advanced=True)
    model: ModelSection = option(ModelSection, "")
    data: DataSection = option(DataSection, "")
    prompt: PromptSection = option(PromptSection, "")
    batch: SftBatchSection = option(SftBatchSection, "")
    optimizer: OptimizerSection = option(OptimizerSection, "")
    mesh: MeshSection = option(MeshSection, "")
    log: LogSection = option(LogSection, "")
