"""The sections that several commands share.

Each field names its counterpart in TRL and transformers in `trl`; docs/configuration.md lists them.

"""

import dataclasses

from iapo_jax.config.fields import option


@dataclasses.dataclass(frozen=True)
class ModelSection:
    """The model, and how its layers are computed."""

    path: str = option(
        "", "Hugging Face directory or hub name (safetensors)", trl="model_name_or_path"
    )
    revision: str | None = option(None, "branch, tag or commit on the hub", trl="model_revision")
    config: str | None = option(
        None, "config.json of a new, randomly initialized model, in place of model.path"
    )
    tokenizer: str | None = option(None, "directory or hub name; default: that of model.path")
    dtype: str = option(
        "float32",
        "dtype in which layers are computed: float32 or bfloat16",
        trl={"dtype": "", "bf16": "bfloat16 instead of true", "fp16": "bfloat16 or float32"},
    )
    attention: str = option(
        "auto",
        "auto = the GPU or TPU kernel if it passes an accuracy check on this device, else XLA; "
        "xla = always XLA",
        advanced=True,
        trl={"attn_implementation": "auto or xla"},
    )
    remat: bool = option(
        False,
        "recompute each layer in the backward pass to save memory",
        trl="gradient_checkpointing",
    )


@dataclasses.dataclass(frozen=True)
class DataSection:
    """The dataset. Each row has `prompt` or `question`, and `answer`."""

    dataset: str = option(
        "",
        "a short name (gsm8k, math-500, dapo-math-17k, aime-2024, aime-2025, amc-2023, "
        "commonsense-qa, arithmetic), NAME=PATH for a local copy of one, a JSONL, JSON or parquet "
        "file, a directory written by Dataset.save_to_disk, or a hub name; optionally followed by "
        ":SPLIT, :first N and :last M (:last M is applied after :first N)",
        trl="dataset_name",
    )
    subset: str | None = option(
        None, "configuration name on the hub, such as 'main' of gsm8k", trl="dataset_config"
    )
    split: str = option(
        "train",
        "split of a named or saved dataset, or of a dataset on the hub",
        trl="dataset_train_split",
    )
    max_rows: int = option(0, "number of rows to use, from the first; 0 = all", at_least=0)
    max_prompt_length: int = option(
        512,
        "maximum prompt length in tokens; rows with longer prompts are skipped, and their number "
        "is printed",
        at_least=1,
        trl={"max_prompt_length": "longer prompts are skipped, not truncated"},
    )
    strict: bool = option(
        False,
        "stop with an error, instead of printing a note, if rows repeat a question (in sft, a "
        "question with its completion) or are too long",
    )


@dataclasses.dataclass(frozen=True)
class PromptSection:
    """How a question becomes a prompt, through the tokenizer's chat template.

    The default of each field is the prompt of the named dataset, if it has one.
    """

    system: str | None = option(
        None, "system prompt; 'r1' = the built-in R1-style prompt; empty = no system turn"
    )
    instruction: str | None = option(
        None, "text appended to every question, such as how to write the answer; empty = none"
    )
    example_question: str | None = option(
        None,
        "question of a worked example that precedes every question; empty = none",
        advanced=True,
    )
    example_answer: str | None = option(
        None, "the assistant's reply in the worked example", advanced=True
    )


@dataclasses.dataclass(frozen=True)
class GenerationSection:
    """How tokens are drawn, in training and in evaluation."""

    temperature: float = option(
        1.0,
        "sampling temperature",
        above=0,
        hint="for greedy decoding use top_k=1",
        trl="temperature",
    )
    top_p: float = option(
        1.0,
        "sample from the most likely tokens of this total probability",
        above=0,
        at_most=1,
        trl="top_p",
    )
    top_k: int = option(
        0,
        "sample from this many most likely tokens; 0 = all, 1 = greedy",
        at_least=0,
        trl="top_k",
    )
    gather_weights: bool = option(
        True,
        "copy all weights to each device of the fsdp axis while sampling; faster, but needs more "
        "memory",
        advanced=True,
        trl="ds3_gather_for_generation",
    )


@dataclasses.dataclass(frozen=True)
class InformationSection:
    """The probe that estimates how certain the model is of its answer.

    The model is made to answer at once after each prefix of a completion, or after selected ones.
    """

    estimator: str = option(
        "auto",
        "how the uncertainty is estimated: answer_entropy, answer_log_prob or answer_set_entropy; "
        "auto = the algorithm's default (answer_entropy in evaluate and inspect)",
    )
    reference: str = option(
        "gold",
        "the answer that answer_log_prob teacher-forces: gold = the reference answer, own = each "
        "completion's own",
    )
    postfix: str = option("</think>\n<answer>", "text that ends thinking and opens the answer")
    answer_end: str = option(
        "</answer>",
        "closing text of an answer; it is scored together with the answer, so that the answer 1 is "
        "distinct from the start of 12",
        advanced=True,
    )
    max_answer_length: int = option(
        32,
        "maximum answer length in tokens, closing text included; longer answers are truncated",
        at_least=1,
    )
    stride: int = option(
        1,
        "probe once per this many tokens; the information gained is divided equally among them",
        at_least=1,
    )
    boundaries: list[str] = option(
        list, "probe only after tokens that contain one of these texts, such as ['.', \"\\n\"]"
    )
    always: bool = option(
        False,
        "probe for the metrics even if the algorithm does not use the information",
        advanced=True,
    )
    redundant_below: float = option(
        0.1,
        "threshold in nats: thinking tokens are reported as redundant once the uncertainty stays "
        "below it",
        above=0,
        advanced=True,
    )
    end_of_thinking: list[str] = option(
        lambda: ["</think>", "<answer>"],
        "thinking ends at the first of these texts",
        advanced=True,
    )


@dataclasses.dataclass(frozen=True)
class OptimizerSection:
    """AdamW with a learning-rate schedule and gradient clipping."""

    learning_rate: float = option(1e-6, "peak learning rate", at_least=0, trl="learning_rate")
    lr_scheduler_type: str = option(
        "linear",
        "constant, or linear or cosine decay to 0 at max_steps",
        trl="lr_scheduler_type",
    )
    warmup_steps: int = option(
        0,
        "number of optimizer updates over which the learning rate rises linearly from 0",
        at_least=0,
        trl={"warmup_steps": "", "warmup_ratio": "number of updates, not a ratio"},
    )
    adam_beta1: float = option(
        0.9, "decay of the first moment", at_least=0, below=1, advanced=True, trl="adam_beta1"
    )
    adam_beta2: float = option(
        0.99, "decay of the second moment", at_least=0, below=1, advanced=True, trl="adam_beta2"
    )
    adam_epsilon: float = option(
        1e-8, "added to the root of the second moment", above=0, advanced=True, trl="adam_epsilon"
    )
    weight_decay: float = option(
        0.0,
        "decoupled weight decay of matrices; norms and biases have none",
        at_least=0,
        trl="weight_decay",
    )
    max_grad_norm: float = option(
        1.0, "clip the global gradient norm; 0 = never", at_least=0, trl="max_grad_norm"
    )


@dataclasses.dataclass(frozen=True)
class MeshSection:
    """The number of devices along each axis; -1, on at most one axis, takes all that remain."""

    data: int = option(-1, "replicas of the parameters, each on its share of the batch")
    fsdp: int = option(1, "shards of parameters and batches", trl={"fsdp": "number of devices"})
    tensor: int = option(1, "shards of heads, hidden units and vocabulary")
    distributed: bool = option(
        False, "join several processes, on one host or many, each started by the same command"
    )
    coordinator: str | None = option(
        None,
        "HOST:PORT of process 0; if null, detected from the cluster (TPU, Slurm, MPI)",
        advanced=True,
    )
    num_processes: int | None = option(
        None,
        "number of processes; if null, detected from the cluster",
        at_least=1,
        advanced=True,
    )
    process_id: int | None = option(
        None,
        "index of this process, from 0; if null, detected from the cluster",
        at_least=0,
        advanced=True,
    )
    join_timeout: int = option(
        300, "seconds within which all processes must join", at_least=1, advanced=True
    )
    heartbeat_timeout: int = option(
        60,
        "seconds without a heartbeat after which a process is considered dead and the others stop",
        at_least=1,
        advanced=True,
    )


@dataclasses.dataclass(frozen=True)
class LogSection:
    """What a run writes."""

    logging_steps: int = option(
        1, "steps between two rows of metrics.jsonl", at_least=1, trl="logging_steps"
    )
    save_total_limit: int = option(
        2, "number of newest checkpoints to keep; 0 = all", at_least=0, trl="save_total_limit"
    )
    completion_steps: int = option(
        1,
        "steps between two files of completions (completions/step_N.jsonl); 0 = none",
        at_least=0,
        trl={"log_completions": "number of steps, not a bool"},
    )
    tensorboard: bool = option(
        True,
        "write TensorBoard event files to OUTPUT_DIR/tensorboard",
        trl={"report_to": "a bool, not a list of names"},
    )
    progress: bool = option(
        True,
        "show a progress bar with the main metrics",
        advanced=True,
        trl={"disable_tqdm": "inverted: progress=true means disable_tqdm=false"},
    )
    compilation_cache: str = option(
        "~/.cache/iapo_jax/xla",
        "directory in which compiled programs are kept between runs; empty = none",
        advanced=True,
    )
