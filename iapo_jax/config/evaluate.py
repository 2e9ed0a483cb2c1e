"""The config of `python -m iapo_jax.evaluate`."""

import dataclasses

from iapo_jax.config.fields import LARGEST, option
from iapo_jax.config.sections import (
    GenerationSection,
    InformationSection,
    MeshSection,
    ModelSection,
    PromptSection,
)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(GenerationSection):
    """`python -m iapo_jax.evaluate`: evaluates models on datasets, and compares them in pairs."""

    models: list[str] = option(
        list,
        "[LABEL=]DIR: Hugging Face directory, run directory, RUN/checkpoints/N or hub name; "
        "LABEL=DIR,DIR,... = training seeds of one method",
        trl={"model_name_or_path": "a list"},
    )
    datasets: list[str] = option(
        list,
        "NAME[=PATH][:SPLIT][:first N][:last M]; instead of NAME, a file or a hub name",
        trl={"dataset_name": "a list"},
    )
    training_data: list[str] = option(
        list,
        "as datasets; must share no question with them (the training data of a run directory is "
        "always checked)",
    )
    output_dir: str = option(
        "eval",
        "directory for all results; completions that it contains are not sampled again",
        nonempty="a directory",
    )
    seed: int = option(0, "seed of every draw", at_least=0, at_most=LARGEST)
    num_samples: int = option(32, "completions of each problem", at_least=1)
    k: list[int] = option(
        list,
        "values of k for pass@k, majority@k, length@k and ratio@k; empty = 1, 2, 4, ... up to "
        "num_samples",
    )
    budgets: list[int] = option(
        list,
        "numbers of tokens B of accuracy_within@B, up to max_completion_length; "
        "empty = 1/8, 1/4 and 1/2 of it",
    )
    max_completion_length: int = option(
        2048, "maximum completion length in tokens, including the stop token", at_least=1
    )
    max_prompt_length: int = option(
        1024,
        "maximum prompt length in tokens; rows with longer prompts are skipped with a note",
        at_least=1,
    )
    strict: bool = option(False, "as data.strict of training")
    prompts_per_batch: int = option(
        16,
        "prompts sampled at once; does not change the result",
        at_least=1,
        trl={"per_device_eval_batch_size": "prompts on all devices"},
    )
    samples_per_batch: int = option(
        0,
        "completions of each prompt sampled at once; 0 = all; does not change the result",
        at_least=0,
    )
    inspect: int = option(
        0, "probe the first sample of this many problems, for the report", at_least=0
    )
    progress: bool = option(True, "show a progress bar with accuracy and length", advanced=True)
    compilation_cache: str = option(
        "~/.cache/iapo_jax/xla", "as log.compilation_cache of training", advanced=True
    )
    model: ModelSection = option(ModelSection, "")
    prompt: PromptSection = option(PromptSection, "")
    information: InformationSection = option(InformationSection, "")
    mesh: MeshSection = option(MeshSection, "")
