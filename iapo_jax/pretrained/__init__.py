"""Hugging Face directories in and out: weights, architecture, tokenizer, control tokens."""

import os

# Nothing here needs PyTorch; without this, transformers advises every user to install it.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
