"""What a user may write in a config file: frozen dataclasses, a documented default for each field.

`load_config(TrainConfig, path, ["optimizer.learning_rate=1e-5"])` merges defaults, file and
command line through omegaconf. Where TRL has a name for something, the name here is TRL's.
"""

import dataclasses
from typing import Any


def option(default: Any, help: str) -> Any:
    """A config field with its default and its meaning."""
    if callable(default):
        return dataclasses.field(default_factory=default, metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class ModelSection:
    """Which model, and how its layers are computed."""

    path: str = option("", "Hugging Face directory or hub name (safetensors)")
    revision: str | None = option(None, "branch, tag or commit on the hub")
    config: str | None = option(
        None, "a config.json: start a NEW random model of this architecture; then without path"
    )
    tokenizer: str | None = option(None, "directory or hub name; default: the one of path")
    dtype: str = option("float32", "arithmetic of the layers: float32 or bfloat16")
    attention: str = option(
        "auto", "auto: the backend's own kernel, if it proves right there; or xla: never"
    )
    remat: bool = option(False, "recompute each layer in the backward pass to save memory")


@dataclasses.dataclass(frozen=True)
class DataSection:
    """Where the rows come from: each has `prompt` or `question`, and `answer`."""

    dataset: str = option(
        "",
        "a short name (gsm8k, math-500, dapo-math-17k, aime-2024, aime-2025, amc-2023, "
        "commonsense-qa, arithmetic), NAME=PATH for a local copy of one, a JSONL, JSON or parquet "
        "file, a directory of datasets.save_to_disk, or a hub name; :SPLIT, :first N and :last M "
        "(of those) may follow",
    )
    subset: str | None = option(None, "configuration name on the hub, such as 'main' of gsm8k")
    split: str = option("train", "split of a named or saved data set, or on the hub")
    max_rows: int = option(0, "use only the first rows; 0 = all")
    max_prompt_length: int = option(512, "tokens; longer prompts are left out, counted and said")
    strict: bool = option(
        False, "rows that repeat a question or are too long are an error, instead of being said"
    )


@dataclasses.dataclass(frozen=True)
class PromptSection:
    """How a question becomes a prompt, through the tokenizer's chat template."""

    system: str | None = option(
        None,
        "system text; 'r1' = the built-in R1-style text; empty = no system turn; unset, here and "
        "below: the own text of a data set that is named by its short name, else nothing",
    )
    instruction: str | None = option(
        None, "appended to every question, such as how to write the answer; empty = nothing"
    )
    example_question: str | None = option(None, "a worked turn before the question; empty = none")
    example_answer: str | None = option(None, "the assistant's text of the worked turn")


@dataclasses.dataclass(frozen=True)
class BatchSection:
    """How much goes into one step; the derived numbers are printed at the start."""

    prompts_per_step: int = option(16, "P: prompts sampled in a step")
    num_generations: int = option(8, "G: completions of each prompt")
    micro_batch_size: int = option(
        0, "prompts, with all their completions, in one forward and backward pass; 0 = all"
    )
    mini_batches: int = option(1, "optimizer updates in one pass over a rollout")
    num_iterations: int = option(1, "passes over a rollout")


@dataclasses.dataclass(frozen=True)
class GenerationSection:
    """How tokens are drawn, in training and in evaluation."""

    temperature: float = option(
        1.0, "divisor of the logits (in training also in scoring and in the loss)"
    )
    top_p: float = option(1.0, "sample from the most likely tokens of this total probability")
    top_k: int = option(0, "sample from this many most likely tokens; 0 = all, 1 = greedy")
    gather_weights: bool = option(
        True, "copy all weights to each device of the fsdp axis while sampling; faster, larger"
    )


@dataclasses.dataclass(frozen=True)
class SamplingSection(GenerationSection):
    """How completions are drawn in training."""

    max_completion_length: int = option(2048, "T: tokens, the stop token included")
    length_bucket: int = option(
        0, "cut a rollout's padding to a multiple of this many tokens; 0 = never"
    )
    allow_truncated_distribution: bool = option(
        False, "train although top_p < 1 or top_k > 0 draws from another policy than is scored"
    )


@dataclasses.dataclass(frozen=True)
class RewardSection:
    """What a completion is paid for."""

    functions: list[str] = option(
        lambda: ["accuracy", "format"], "'accuracy', 'format', FILE.py:NAME or package.module.NAME"
    )
    weights: list[float] = option(list, "one for each function; empty = all 1")


@dataclasses.dataclass(frozen=True)
class AlgorithmSection:
    """Which rule gives credit to tokens."""

    name: str = option(
        "iapo", "an entry of iapo_jax.ALGORITHMS, or a rule of your own: FILE.py:NAME"
    )
    options: dict[str, Any] = option(
        dict, "hyper-parameters of its pieces (and of adapt), by name; docs/methods.md lists them"
    )
    adapt: str | None = option(
        None, "let one follow the run: price_for_length, price_for_accuracy, keep_for_difficulty"
    )
    dynamic_sampling: bool | None = option(
        None, "replace groups all right or all wrong by fresh ones; default: the algorithm's own"
    )
    max_rounds: int = option(10, "of sampling in a step, at most, with dynamic_sampling")
    loss_type: str | None = option(
        None, "grpo, bnpo, dr_grpo or dapo; default: the algorithm's own, here and below"
    )
    epsilon: float | None = option(None, "the ratio is clipped below at 1 - epsilon")
    epsilon_high: float | None = option(None, "and above at 1 + epsilon_high")
    beta: float | None = option(None, "weight of the k3 KL to the initial model; 0 = no reference")


@dataclasses.dataclass(frozen=True)
class InformationSection:
    """The early exit that asks for the answer after every prefix, or some of them."""

    estimator: str = option(
        "auto",
        "of the uncertainty: answer_entropy, answer_log_prob, answer_set_entropy; auto: the "
        "algorithm's own, and answer_entropy where there is none",
    )
    reference: str = option(
        "gold", "whose answer answer_log_prob teacher-forces: gold, or each completion's own"
    )
    postfix: str = option("</think>\n<answer>", "text that ends thinking and opens the answer")
    answer_end: str = option(
        "</answer>", "text that closes an answer; teacher-forced with it: 1 is no part of 12 then"
    )
    max_answer_length: int = option(
        32, "tokens of an answer with its end; longer ones are told by their first"
    )
    stride: int = option(1, "probe after every so many tokens; the sum over a segment is kept")
    boundaries: list[str] = option(
        list, "probe only after tokens that hold one of these texts, such as ['.', \"\\n\"]"
    )
    always: bool = option(
        False, "ask although the algorithm does not look: for the metrics, at the price of probes"
    )
    redundant_below: float = option(
        0.1, "nats; thinking after uncertainty fell below for good counts as redundant"
    )
    end_of_thinking: list[str] = option(
        lambda: ["</think>", "<answer>"], "tokens from the first of these texts on are not thinking"
    )


@dataclasses.dataclass(frozen=True)
class OptimizerSection:
    """AdamW with a schedule and clipping."""

    learning_rate: float = option(1e-6, "peak")
    lr_scheduler_type: str = option("linear", "constant, linear or cosine decay to 0 at max_steps")
    warmup_steps: int = option(0, "linear rise from 0")
    adam_beta1: float = option(0.9, "decay of the first moment")
    adam_beta2: float = option(0.99, "decay of the second moment")
    adam_epsilon: float = option(1e-8, "added to the root of the second moment")
    weight_decay: float = option(0.0, "decoupled; matrices only, never norms or biases")
    max_grad_norm: float = option(1.0, "clip the global gradient norm; 0 = never")


@dataclasses.dataclass(frozen=True)
class MeshSection:
    """Devices along each axis; -1 (on one axis at most) takes all that are left."""

    data: int = option(-1, "replicas of the parameters")
    fsdp: int = option(1, "parameters sharded, batches too")
    tensor: int = option(1, "heads, hidden units and vocabulary sharded")
    distributed: bool = option(
        False, "several processes, on one host or many: the same command on each"
    )
    coordinator: str | None = option(
        None, "HOST:PORT of process 0; unset, here and below: as the cluster says (TPU, Slurm, MPI)"
    )
    num_processes: int | None = option(None, "how many there are")
    process_id: int | None = option(None, "which one this is, from 0")
    join_timeout: int = option(300, "seconds within which all of them must have come")
    heartbeat_timeout: int = option(
        60, "seconds of silence after which a process counts as gone and the others end"
    )


@dataclasses.dataclass(frozen=True)
class EvalSection(GenerationSection):
    """The table before and after; no table without a dataset."""

    dataset: str = option("", "as data.dataset; must hold other rows than the training data")
    subset: str | None = option(None, "as data.subset")
    split: str = option("test", "as data.split")
    max_rows: int = option(0, "use only the first rows; 0 = all")
    strict: bool = option(False, "as data.strict")
    shared: str = option(
        "refuse", "questions that the training data has, too: refuse, or leave_out of training"
    )
    num_samples: int = option(1, "completions of each prompt")
    prompts_per_batch: int = option(64, "prompts sampled at once; does not change the result")
    inspect: int = option(
        0, "probe the first sample of so many problems, before and after, for the report"
    )


@dataclasses.dataclass(frozen=True)
class SelectionSection:
    """Which checkpoint is kept: the best on training rows that are held out for that."""

    problems: int = option(0, "rows held out of the training data; 0 = none, and the last is kept")
    criterion: str = option("ratio", "accuracy, or ratio: accuracy per token")
    tolerance: float = option(
        0.02, "with ratio: what a checkpoint's accuracy may lie below the start model's"
    )
    num_samples: int = option(1, "completions of each problem, drawn as in training")
    prompts_per_batch: int = option(64, "prompts sampled at once; does not change the result")


@dataclasses.dataclass(frozen=True)
class LogSection:
    """What is written down while training."""

    logging_steps: int = option(1, "a row of metrics.jsonl every so many steps")
    save_total_limit: int = option(2, "newest checkpoints that are kept; 0 = all")
    completion_steps: int = option(1, "completions/step_N.jsonl every so many steps; 0 = never")
    tensorboard: bool = option(True, "write TensorBoard event files to OUTPUT_DIR/tensorboard")
    progress: bool = option(True, "a bar with reward, length and kl")
    compilation_cache: str = option(
        "~/.cache/iapo_jax/xla", "directory of compiled programs, kept between runs; empty = none"
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """`python -m iapo_jax.train`: reinforcement learning of one model on one data set."""

    seed: int = option(0, "decides data order and every random draw")
    output_dir: str = option("runs/train", "everything of this run goes here")
    max_steps: int = option(100, "rollouts")
    max_sampled_tokens: int = option(
        0,
        "end with the step in which so many completion tokens have been sampled, those of groups "
        "that dynamic sampling replaced among them: equal budgets for all methods; 0 = no limit",
    )
    save_steps: int = option(50, "a checkpoint every so many steps, and at the end; 0 = end only")
    resume: str = option(
        "auto", "auto = newest whole checkpoint if any; never = refuse; or a step number"
    )
    max_skipped: int = option(
        5, "the run stops after so many steps in a row whose numbers were not finite (each skipped)"
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


@dataclasses.dataclass(frozen=True)
class SftBatchSection:
    """How much goes into one step."""

    rows_per_step: int = option(64, "rows of one optimizer update")
    micro_batch_size: int = option(0, "rows in one forward and backward pass; 0 = all")
    max_length: int = option(1024, "tokens of a completion; longer rows are left out and counted")


@dataclasses.dataclass(frozen=True)
class SftConfig:
    """`python -m iapo_jax.sft`: supervised fine-tuning on prompts and completions."""

    seed: int = option(0, "decides data order and the initialization of a new model")
    output_dir: str = option("runs/sft", "everything of this run goes here")
    max_steps: int = option(1000, "optimizer updates")
    save_steps: int = option(0, "a checkpoint every so many steps, and at the end; 0 = end only")
    resume: str = option(
        "auto", "auto = newest whole checkpoint if any; never = refuse; or a step number"
    )
    max_skipped: int = option(5, "as in training")
    model: ModelSection = option(ModelSection, "")
    data: DataSection = option(DataSection, "")
    prompt: PromptSection = option(PromptSection, "")
    batch: SftBatchSection = option(SftBatchSection, "")
    optimizer: OptimizerSection = option(OptimizerSection, "")
    mesh: MeshSection = option(MeshSection, "")
    log: LogSection = option(LogSection, "")


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(GenerationSection):
    """`python -m iapo_jax.evaluate`: models on data sets, with intervals, compared in pairs."""

    models: list[str] = option(
        list,
        "[LABEL=]DIR: Hugging Face directory, run directory, RUN/checkpoints/N or hub name; "
        "LABEL=DIR,DIR,... are training seeds of one method",
    )
    datasets: list[str] = option(
        list, "NAME[=PATH][:SPLIT][:first N][:last M], a file or a hub name"
    )
    training_data: list[str] = option(
        list, "as datasets: must share no question with them; a run's own is looked at anyway"
    )
    output_dir: str = option("eval", "everything goes here; what is there is not sampled again")
    seed: int = option(0, "decides every draw")
    num_samples: int = option(32, "completions of each problem")
    k: list[int] = option(list, "of pass@k and so on; empty = 1, 2, 4, ... num_samples")
    budgets: list[int] = option(
        list,
        "tokens within which a completion must be right, up to max_completion_length; "
        "empty = 1/8, 1/4, 1/2 of it",
    )
    max_completion_length: int = option(2048, "tokens, the stop token included")
    max_prompt_length: int = option(1024, "tokens; longer prompts are left out, counted and said")
    strict: bool = option(False, "as data.strict of training")
    prompts_per_batch: int = option(16, "prompts sampled at once; no part of the result")
    samples_per_batch: int = option(0, "completions of each at once; 0 = all; as above")
    inspect: int = option(0, "probe the first sample of so many problems, for the report")
    progress: bool = option(True, "a bar with accuracy and length")
    compilation_cache: str = option("~/.cache/iapo_jax/xla", "as log.compilation_cache of training")
    model: ModelSection = option(ModelSection, "dtype and attention; path stays empty")
    prompt: PromptSection = option(PromptSection, "")
    information: InformationSection = option(InformationSection, "")
    mesh: MeshSection = option(MeshSection, "")
