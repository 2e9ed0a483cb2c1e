"""Hugging Face directories in and out: weights, architecture, tokenizer, control tokens."""
