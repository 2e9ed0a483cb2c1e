"""iapo_jax: shorter reasoning at the same accuracy, token by token.

This namespace has the functions that a training loop needs. The rest of the library is in
`iapo_jax.algorithms`, `iapo_jax.losses`, `iapo_jax.model`, `iapo_jax.information` and
`iapo_jax.answers`. The commands are `iapo_jax.train`, `iapo_jax.sft`, `iapo_jax.evaluate`,
`iapo_jax.report`, `iapo_jax.inspect` and `iapo_jax.export`.

Importing the package does not import transformers, datasets, orbax or omegaconf: names that need
one of them are imported on first use.
"""

import importlib
from typing import Any

from iapo_jax import algorithms, answers, information, losses, model
from iapo_jax.algorithms.methods import ALGORITHMS, Algorithm, make_algorithm
from iapo_jax.answers.checker import is_correct
from iapo_jax.information.estimators import (
    Probe,
    answer_entropy,
    answer_log_prob,
    answer_set_entropy,
)
from iapo_jax.information.signals import compute_signals, make_groups
from iapo_jax.losses import policy_loss
from iapo_jax.model.sampling import sample
from iapo_jax.model.scoring import score_completions
from iapo_jax.sharding import make_mesh
from iapo_jax.types import (
    Answers,
    Credit,
    Group,
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
    "Credit",
    "Group",
    "Model",
    "Probe",
    "Prompts",
    "Rollout",
    "Signals",
    "algorithms",
    "answer_entropy",
    "answer_log_prob",
    "answer_set_entropy",
    "answers",
    "compute_signals",
    "decode_rollout",
    "encode_answers",
    "encode_prompts",
    "information",
    "is_correct",
    "load",
    "losses",
    "make_algorithm",
    "make_groups",
    "make_mesh",
    "model",
    "policy_loss",
    "sample",
    "score_completions",
    "stop_ids",
]

_ON_FIRST_USE = {
    "decode_rollout": "iapo_jax.pretrained.tokenization",
    "encode_answers": "iapo_jax.information.answer_tokens",
    "encode_prompts": "iapo_jax.data.prompts",
    "load": "iapo_jax.pretrained.loaded_model",
    "stop_ids": "iapo_jax.pretrained.tokenization",
}


def __getattr__(name: str) -> Any:
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module 'iapo_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_ON_FIRST_USE[name]), name)
