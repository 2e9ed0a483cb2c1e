"""The published algorithm for answer entropies, written anew in PyTorch from its description.

After every prefix the key-value cache of the whole text is cloned, cut and padded, a chunk of
positions at a time, and the postfix is run as a batch over the clones (arXiv:2602.19049). Positions
and masks are corrected, so that it computes what it is meant to: each probe sits right behind its
own prefix and reads nothing of the chunk's longer ones.

Plain, as a reader of the description would write it: a layer's keys and values cloned position by
position, the clones stacked and then put in the order of the batch, the model's head on every
postfix token. Tuned: keys and values one after the other, so that memory which the one gave back
serves the other; one copy less; the head on the last token alone.
"""

import time
from pathlib import Path

import torch
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

CHUNK = 36  # positions cloned at once, as published


def entropy_of(logits: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of softmax(logits) over the last axis."""
    log_p = logits.float().log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


@torch.no_grad()
def probe_by_cloning(model, ids, prompt_length: int, postfix, *, tuned: bool, chunk: int = CHUNK):
    """Entropies [B, T+1] after `postfix` [K] behind each prefix of ids [B, prompt_length + T]."""
    batch, total = ids.shape
    full = model(input_ids=ids, use_cache=True, logits_to_keep=int(tuned)).past_key_values
    found = []
    for first in range(prompt_length, total + 1, chunk):
        cuts = torch.arange(first, min(first + chunk, total + 1), device=ids.device)
        cache = _cloned(full, cuts, tuned)
        found.append(_probe(model, cache, cuts, postfix, batch, tuned))
    return torch.cat(found, dim=1)


def _cloned(full: DynamicCache, cuts: torch.Tensor, tuned: bool) -> DynamicCache:
    """A copy of the cache for each cut: [B * len(cuts), heads, longest, width] in every layer."""
    cache, longest = DynamicCache(), int(cuts[-1])

    def clones(states):
        return [
            torch.nn.functional.pad(states[:, :, :cut], (0, 0, 0, longest - cut))
            for cut in cuts.tolist()
        ]

    for index, layer in enumerate(full.layers):
        if tuned:
            pair = [torch.stack(clones(x), dim=1).flatten(0, 1) for x in (layer.keys, layer.values)]
        else:
            keys, values = clones(layer.keys), clones(layer.values)
            pair = [torch.stack(x).transpose(0, 1).flatten(0, 1) for x in (keys, values)]
        cache.update(*pair, index)
    return cache


def _probe(
    model, cache: DynamicCache, cuts: torch.Tensor, postfix, batch: int, tuned: bool
) -> torch.Tensor:
    size, longest = len(postfix), int(cuts[-1])
    readable = torch.arange(longest, device=cuts.device) < cuts[:, None]
    own = torch.ones(len(cuts), size, dtype=torch.bool, device=cuts.device)
    mask = torch.cat([readable, own], dim=1).long().repeat(batch, 1)
    positions = (cuts[:, None] + torch.arange(size, device=cuts.device)).repeat(batch, 1)
    logits = model(
        input_ids=postfix.expand(batch * len(cuts), -1),
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=int(tuned),
    ).logits[:, -1]
    return entropy_of(logits).view(batch, len(cuts))


@torch.no_grad()
def probe_by_full_forwards(model, ids, prompt_length: int, postfix, cuts):
    """The same at some cuts (completion tokens read), by a full forward of each prefix."""
    found = []
    for cut in cuts:
        prefix = ids[:, : prompt_length + cut]
        text = torch.cat([prefix, postfix.expand(ids.shape[0], -1)], dim=1)
        found.append(entropy_of(model(input_ids=text, logits_to_keep=1).logits[:, -1]))
    return torch.stack(found, dim=1)


@torch.no_grad()
def plain_forward(model, ids) -> torch.Tensor:
    """Logits of all tokens."""
    return model(input_ids=ids, use_cache=False).logits


def fastest_attention(model, ids, prompt_length: int, postfix) -> str:
    """Sets the attention of transformers with which the cloning runs faster on these inputs.

    Each runs twice, by turns, and its faster time counts.
    """
    seconds: dict[str, float] = {}
    for name in ("sdpa", "eager", "sdpa", "eager"):
        model.set_attn_implementation(name)
        start = time.perf_counter()
        probe_by_cloning(model, ids, prompt_length, postfix, tuned=True).cpu()
        seconds[name] = min(seconds.get(name, float("inf")), time.perf_counter() - start)
    best = min(seconds, key=seconds.get)
    model.set_attn_implementation(best)
    return best


def random_model(directory: Path) -> Qwen2ForCausalLM:
    """A small random Qwen2 model in float32, saved for ours to read."""
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=4096,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        initializer_range=0.06,  # so that entropies vary
    )
    model = Qwen2ForCausalLM(config).eval().float()
    model.save_pretrained(directory)
    return model


def model_of(config) -> Qwen2ForCausalLM:
    """A random Qwen2 model of the shapes of a `DecoderConfig`."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            vocab_size=config.vocab_size,
            max_position_embeddings=32_768,
            tie_word_embeddings=config.tie_word_embeddings,
        )
    ).eval()
