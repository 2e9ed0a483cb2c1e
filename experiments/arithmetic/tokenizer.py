"""A tokenizer for the arithmetic task, opened by ``AutoTokenizer.from_pretrained``.

Digits, operators, words (with their trailing space) and tags are one token each; decoding restores
the encoded text exactly. Needs ``tokenizers`` and ``transformers``, but not torch.

In a directory whose config.json says ``qwen2``, transformers opens the tokenizer as Qwen2's own
class, byte-level BPE with Qwen2's splitting rule, whatever tokenizer.json says. This tokenizer is
therefore of that kind: BPE without merges for digits and operators; every other token is an added
token, which is matched before the text is split.

    python experiments/arithmetic/tokenizer.py DIR
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from problems import WORDS
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, EOS, UNK, USER, ASSISTANT = "<pad>", "<eos>", "<unk>", "<user>", "<assistant>"
SPECIAL = (PAD, EOS, UNK, USER, ASSISTANT)
SYMBOLS = "+-=?"
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
"""Part of the text: kept by ``decode(..., skip_special_tokens=True)``."""

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{- '<user>' + message['content'] -}}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{- '<assistant>' + message['content'] + '<eos>' -}}"
    "{%- else -%}{{- message['content'] -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<assistant><think>' -}}{%- endif -%}"
)


def vocabulary(words: Sequence[str] = WORDS, symbols: str = SYMBOLS) -> list[str]:
    """Every token, in the order of its id (``<pad>`` is 0)."""
    spaced = [word + space for word in words for space in (" ", "")]
    return [*SPECIAL, *TAGS, *"0123456789", *symbols, ". ", ".", " ", "\n", *spaced]


def build_tokenizer(
    words: Sequence[str] = WORDS, symbols: str = SYMBOLS
) -> PreTrainedTokenizerFast:
    """The tokenizer with its special tokens and chat template."""
    tokens = vocabulary(words, symbols)
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    words = [t for t in tokens if t not in SPECIAL and (len(t) > 1 or t.isspace() or t == ".")]
    core.add_tokens([AddedToken(t, special=False, normalized=False) for t in words])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=[USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_tokenizer(
    directory: str | Path, words: Sequence[str] = WORDS, symbols: str = SYMBOLS
) -> Path:
    """Writes the tokenizer's directory and returns its path."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    build_tokenizer(words, symbols).save_pretrained(directory)
    return directory


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory")
    print(save_tokenizer(parser.parse_args().directory))
