"""iapo_jax: shorter reasoning at the same accuracy, token by token.

The functional library, by name. Nothing here imports transformers, datasets, orbax or omegaconf;
the trainer and its command lines are `iapo_jax.train`, `iapo_jax.sft`, `iapo_jax.evaluate`,
`iapo_jax.report`, `iapo_jax.inspect` and `iapo_jax.export`.
"""

from iapo_jax.algorithms.adaptation import (
    ADAPTATIONS,
    Adaptation,
    keep_for_difficulty,
    price_for_accuracy,
    price_for_length,
)
from iapo_jax.algorithms.advantages import (
    grpo,
    gtpo,
    iapo,
    iapo_priced,
    iapo_reference,
    rloo,
)
from iapo_jax.algorithms.filters import keep_best, select, stochastic_tokens
from iapo_jax.algorithms.losses import (
    LossOptions,
    aggregate,
    clipped_surrogate,
    k3,
    loss_scale,
    policy_loss,
)
from iapo_jax.algorithms.methods import ALGORITHMS, Algorithm, make_algorithm
from iapo_jax.algorithms.reward_shaping import (
    l1_max,
    length_cap,
    length_penalty,
    overlong,
)
from iapo_jax.algorithms.statistics import (
    completion_keys,
    group_advantage,
    leave_one_out,
    normalize,
)
from iapo_jax.evaluation.metrics import majority_at_k, pass_at_k
from iapo_jax.information.estimators import (
    ESTIMATORS,
    Probe,
    answer_entropy,
    answer_log_prob,
    answer_log_probs,
    answer_set_entropy,
    answer_uncertainty,
    choose_positions,
    every_prefix,
    interpolate,
)
from iapo_jax.information.signals import compute_signals, make_groups
from iapo_jax.model.attention import (
    Segment,
    attend,
    blockwise_attention,
    dense_attention,
)
from iapo_jax.model.decoder import DecoderConfig, Llama3Rope, init_params, make_model
from iapo_jax.model.sampling import prompt_keys, sample
from iapo_jax.model.scoring import (
    TokenScores,
    forward_completions,
    prefill,
    score_completions,
    token_scores,
)
from iapo_jax.sharding import by_prompt, make_mesh, param_shardings, replicated
from iapo_jax.types import (
    Answers,
    Cache,
    Context,
    Credit,
    Group,
    Mean,
    Model,
    ProbePositions,
    Prompts,
    Rollout,
    Signals,
    informativeness,
)

__version__ = "0.1.0"

__all__ = [
    "ADAPTATIONS",
    "ALGORITHMS",
    "Adaptation",
    "Algorithm",
    "Answers",
    "Cache",
    "Context",
    "Credit",
    "DecoderConfig",
    "ESTIMATORS",
    "Group",
    "Llama3Rope",
    "LossOptions",
    "Mean",
    "Model",
    "Probe",
    "ProbePositions",
    "Prompts",
    "Rollout",
    "Segment",
    "Signals",
    "TokenScores",
    "aggregate",
    "answer_entropy",
    "answer_log_prob",
    "answer_log_probs",
    "answer_set_entropy",
    "answer_uncertainty",
    "attend",
    "blockwise_attention",
    "by_prompt",
    "choose_positions",
    "clipped_surrogate",
    "completion_keys",
    "compute_signals",
    "dense_attention",
    "every_prefix",
    "forward_completions",
    "group_advantage",
    "grpo",
    "gtpo",
    "iapo",
    "iapo_priced",
    "iapo_reference",
    "informativeness",
    "init_params",
    "interpolate",
    "k3",
    "keep_best",
    "keep_for_difficulty",
    "l1_max",
    "leave_one_out",
    "length_cap",
    "length_penalty",
    "loss_scale",
    "majority_at_k",
    "make_algorithm",
    "make_groups",
    "make_mesh",
    "make_model",
    "normalize",
    "overlong",
    "param_shardings",
    "pass_at_k",
    "policy_loss",
    "prefill",
    "price_for_accuracy",
    "price_for_length",
    "prompt_keys",
    "replicated",
    "rloo",
    "sample",
    "score_completions",
    "select",
    "stochastic_tokens",
    "token_scores",
]
