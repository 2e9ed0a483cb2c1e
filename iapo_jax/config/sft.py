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
class SftDataSection(DataSection):
    """The dataset. Each row has `prompt` or `question`, and `completion`."""

    dataset: str = option(
        "",
        "a JSONL, JSON or parquet file, a directory written by Dataset.save_to_disk, or a hub "
        "name; optionally followed by :SPLIT, :first N and :last M (:last M is applied after "
        ":first N)",
        trl="dataset_name",
    )


@dataclasses.dataclass(frozen=True)
class SftBatchSection:
    """Batch sizes."""

    rows_per_step: int = option(64, "rows of one optimizer update", at_least=1)
    micro_batch_size: int = option(
        0,
        "rows in one forward and backward pass; 0 = all",
        at_least=0,
        trl={
            "per_device_train_batch_size": "rows on all devices",
            "gradient_accumulation_steps": "determines the accumulation steps",
        },
    )
    max_length: int = option(
        1024,
        "maximum completion length in tokens; rows with longer completions are skipped, and their "
        "number is printed",
        at_least=1,
        trl={"max_length": "of the completion, without the prompt"},
    )


@dataclasses.dataclass(frozen=True)
class SftConfig:
    """`python -m iapo_jax.sft`: fine-tunes a model on prompts and completions."""

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
        "number of optimizer updates",
        at_least=0,
        trl={"max_steps": "", "num_train_epochs": "number of updates, not of epochs"},
    )
    save_steps: int = option(
        0, "updates between two checkpoints; 0 = only at the end", at_least=0, trl="save_steps"
    )
    resume: str = option(
        "auto", "as in training", trl={"resume_from_checkpoint": "auto, never or a step"}
    )
    max_skipped: int = option(5, "as in training", at_least=1, advanced=True)
    model: ModelSection = option(ModelSection, "")
    data: SftDataSection = option(SftDataSection, "")
    prompt: PromptSection = option(PromptSection, "")
    batch: SftBatchSection = option(SftBatchSection, "")
    optimizer: OptimizerSection = option(OptimizerSection, "")
    mesh: MeshSection = option(MeshSection, "")
    log: LogSection = option(LogSection, "")
