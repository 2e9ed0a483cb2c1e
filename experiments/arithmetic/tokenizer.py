"""A word-level tokenizer for the arithmetic task, opened by ``AutoTokenizer.from_pretrained``.

Digits, operators, words (with their trailing space) and tags are one token each; decoding gives
back the encoded text exactly. Needs ``tokenizers`` and ``transformers``, not torch.

    python experiments/arithmetic/tokenizer.py DIR
"""

import argparse
from pathlib import Path

from problems import PATTERN, WORDS
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, EOS, UNK, USER, ASSISTANT = "<pad>", "<eos>", "<unk>", "<user>", "<assistant>"
SPECIAL = (PAD, EOS, UNK, USER, ASSISTANT)
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


def vocabulary() -> list[str]:
    """Every token, in the order of its id (``<pad>`` is 0)."""
    words = [word + space for word in WORDS for space in (" ", "")]
    return [*SPECIAL, *TAGS, *"0123456789", *"+-=?", ". ", ".", " ", "\n", *words]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer with its special tokens and chat template."""
    vocab = {token: i for i, token in enumerate(vocabulary())}
    core = Tokenizer(models.WordLevel(vocab, unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    core.add_tokens([AddedToken(t, special=False, normalized=False) for t in TAGS])
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


def save_tokenizer(directory: str | Path) -> Path:
    """Write the tokenizer's directory and return its path."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    build_tokenizer().save_pretrained(directory)
    return directory


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory")
    print(save_tokenizer(parser.parse_args().directory))
