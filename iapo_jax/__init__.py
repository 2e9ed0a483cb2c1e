"""iapo_jax: shorter reasoning at the same accuracy, token by token.

The functional library, by name. Nothing here imports transformers, datasets, orbax or omegaconf;
the trainer and its command lines are `iapo_jax.train`, `iapo_jax.sft` and `iapo_jax.export`.
"""

from iapo_jax.advantages import group_advantage, grpo, iapo, iapo_priced, standardise
from iapo_jax.algorithms import ALGORITHMS, Algorithm, make_algorithm
from iapo_jax.attention import Segment, attend, blockwise_attention, dense_attention
from iapo_jax.information import (
    ESTIMATORS,
    Probe,
    answer_entropy,
    answer_log_prob,
    answer_log_probs,
    answer_set_entropy,
    answer_uncertainty,
    choose_cuts,
    every_prefix,
    informativeness,
    spread,
)
from iapo_jax.losses import LossOptions, aggregate, clipped_surrogate, k3, loss_scale, policy_loss
from iapo_jax.model import DecoderConfig, Llama3Rope, init_params, make_model
from iapo_jax.sampling import prompt_keys, sample
from iapo_jax.scoring import (
    TokenScores,
    read_completions,
    read_prompts,
    score_completions,
    token_scores,
)
from iapo_jax.sharding import by_prompt, make_mesh, param_shardings, replicated
from iapo_jax.signals import compute_signals, make_groups
from iapo_jax.types import (
    Answers,
    Cache,
    Context,
    Credit,
    Cuts,
    Group,
    Mean,
    Model,
    Prompts,
    Rollout,
    Signals,
)

__version__ = "0.1.0"

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "Answers",
    "Cache",
    "Context",
    "Credit",
    "Cuts",
    "DecoderConfig",
    "ESTIMATORS",
    "Group",
    "Llama3Rope",
    "LossOptions",
    "Mean",
    "Model",
    "Probe",
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
    "choose_cuts",
    "clipped_surrogate",
    "compute_signals",
    "dense_attention",
    "every_prefix",
    "group_advantage",
    "grpo",
    "iapo",
    "iapo_priced",
    "informativeness",
    "init_params",
    "k3",
    "loss_scale",
    "make_algorithm",
    "make_groups",
    "make_mesh",
    "make_model",
    "param_shardings",
    "policy_loss",
    "prompt_keys",
    "read_completions",
    "read_prompts",
    "replicated",
    "sample",
    "score_completions",
    "spread",
    "standardise",
    "token_scores",
]
