"""What a user may write in a config file, how it is read, and what is checked."""

from iapo_jax.config.evaluate import EvaluateConfig
from iapo_jax.config.loading import load_config, load_run_config, to_yaml
from iapo_jax.config.sft import SftConfig
from iapo_jax.config.train import TrainConfig

__all__ = [
    "EvaluateConfig",
    "SftConfig",
    "TrainConfig",
    "load_config",
    "load_run_config",
    "to_yaml",
]
