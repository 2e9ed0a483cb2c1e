"""Hugging Face directories in and out, and everything that can be wrong with one."""

import importlib
import json
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from before_jax import DEVICES, MESHES
from conftest import GOLDEN, ROOT, golden_model
from safetensors.numpy import load_file, save_file

import iapo_jax
from iapo_jax import export
from iapo_jax.config.loading import to_yaml
from iapo_jax.config.sections import ModelSection, OptimizerSection, PromptSection
from iapo_jax.config.train import TrainConfig
from iapo_jax.data.prompts import render_prompt
from iapo_jax.errors import UserError
from iapo_jax.pretrained import model_directory as pretrained
from iapo_jax.pretrained import weights
from iapo_jax.pretrained.architecture import decoder_config
from iapo_jax.pretrained.model_directory import (
    open_pretrained,
    resolve_directory,
    save_pretrained,
)
from iapo_jax.pretrained.tokenization import (
    allowed_ids,
    decode_completions,
    encode,
    load_tokenizer,
    stop_ids,
    tokens_before,
)
from iapo_jax.pretrained.weights import load_params
from iapo_jax.runtime.files import read_json
from iapo_jax.sharding import make_mesh
from iapo_jax.training.checkpoint import Checkpoints
from iapo_jax.training.optimizer import make_optimizer, new_state

MODELS = sorted(path.name for path in (GOLDEN / "models").iterdir())


def tensors(directory):
    """All tensors of a directory, whichever shards they lie in."""
    found = {}
    for file in sorted(directory.glob("*.safetensors")):
        found |= load_file(file)
    return found


def assert_bits(got, want):
    assert sorted(got) == sorted(want)
    for name, value in want.items():
        assert got[name].dtype == value.dtype, name
        np.testing.assert_array_equal(got[name], value, err_msg=name)


@pytest.fixture
def copy(tmp_path):
    """A writable copy of a golden model, with functions to spoil it."""

    class Copy:
        directory = tmp_path / "model"

        def config(self, remove=(), **fields):
            path = self.directory / "config.json"
            hf = json.loads(path.read_text()) | fields
            path.write_text(json.dumps({k: v for k, v in hf.items() if k not in remove}))
            return self

        def tensors(self, change):
            path = self.directory / "model.safetensors"
            found = load_file(path)
            change(found)
            save_file({k: np.ascontiguousarray(v) for k, v in found.items()}, path)
            return self

        def load(self):
            return load_params(self.directory, golden_model("qwen2_tied").config)

    shutil.copytree(GOLDEN / "models" / "qwen2_tied", Copy.directory)
    return Copy()


@pytest.fixture(scope="module")
def small_tokenizer():
    """The arithmetic experiment's tokenizer: fewer than 97 tokens, </think> is one of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "experiments" / "arithmetic"))
        for name in ("problems", "tokenizer"):
            patch.delitem(sys.modules, name, raising=False)
        yield importlib.import_module("tokenizer").build_tokenizer()
        for name in ("problems", "tokenizer"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def qwen(shared_data):
    """The real tokenizer of Qwen2.5: `</think>` is three tokens, and merges with what follows."""
    directory = shared_data / "tokenizers" / "qwen2.5-instruct"
    if not (directory / "vocab.json").is_file():
        pytest.skip(f"{directory} is absent")
    return load_tokenizer(directory)


# ------------------------------------------------------------------ round trip


@pytest.mark.parametrize("name", MODELS)
def test_a_directory_comes_back_bit_by_bit(tmp_path, name):
    """transformers' directory -> parameters -> ours: the same tensors and the same config."""
    source = GOLDEN / "models" / name
    hf = read_json(source / "config.json")
    generation = pretrained.read_generation_config(source)
    out = tmp_path / "out"
    save_pretrained(golden_model(name).params, hf, None, out, generation_config=generation)
    assert_bits(tensors(out), tensors(source))
    assert read_json(out / "config.json") == hf
    assert read_json(out / "generation_config.json") == generation
    assert not (tmp_path / "out.partial").exists()
    assert (source / "model.safetensors.index.json").exists() == (name == "qwen2_untied")


def test_shards_are_written_with_an_index_and_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SHARD_SIZE", "30KB")
    golden, out = golden_model("qwen3_untied"), tmp_path / "out"
    hf = read_json(GOLDEN / "models" / "qwen3_untied" / "config.json")
    save_pretrained(golden.params, hf, None, out)
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(files) > 2
    index = read_json(out / "model.safetensors.index.json")
    where = {name: file for file in files for name in load_file(out / file)}
    assert index["weight_map"] == where
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in tensors(out).values())
    loaded = load_params(out, golden.config)
    jax.tree.map(np.testing.assert_array_equal, loaded, golden.params)
    # A shard that the index names but that is not there.
    (out / files[1]).unlink()
    with pytest.raises(UserError, match=f"index names {files[1]}, which is missing"):
        load_params(out, golden.config)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_directories(tmp_path, dtype):
    """Written rounded once, read back into float32 without further loss."""
    golden, out = golden_model("llama_untied"), tmp_path / "out"
    hf = read_json(GOLDEN / "models" / "llama_untied" / "config.json")
    save_pretrained(golden.params, hf, None, out, dtype=dtype)
    assert read_json(out / "config.json")["dtype"] == dtype
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    loaded = load_params(out, golden.config)
    for got, want in zip(jax.tree.leaves(loaded), jax.tree.leaves(golden.params), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, np.asarray(want).astype(kind).astype(np.float32))


def test_an_existing_directory_is_replaced_as_a_whole(tmp_path):
    golden, out = golden_model("qwen2_tied"), tmp_path / "out"
    hf = read_json(GOLDEN / "models" / "qwen2_tied" / "config.json")
    out.mkdir()
    (out / "model-00001-of-00002.safetensors").write_text("stale")
    (out / "config.json").write_text("{}")  # an older model
    save_pretrained(golden.params, hf, None, out)
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("place", ["out", "out.partial"])
def test_a_directory_with_other_files_is_not_replaced(place, tmp_path):
    golden, out = golden_model("qwen2_tied"), tmp_path / "out"
    hf = read_json(GOLDEN / "models" / "qwen2_tied" / "config.json")
    (tmp_path / place).mkdir()
    (tmp_path / place / "config.json").write_text("{}")
    (tmp_path / place / "precious.py").write_text("mine")
    with pytest.raises(UserError, match=r"precious\.py, which is not part of an exported model"):
        save_pretrained(golden.params, hf, None, out)
    assert (tmp_path / place / "precious.py").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        save_pretrained(golden.params, hf, None, tmp_path / "file")


def test_a_stray_head_of_a_tied_model_and_old_rotary_buffers_are_passed_over(copy):
    def add(found):
        found["lm_head.weight"] = found["model.embed_tokens.weight"]
        found["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)

    loaded = copy.tensors(add).load()
    jax.tree.map(np.testing.assert_array_equal, loaded, golden_model("qwen2_tied").params)


# ------------------------------------------------------------------ spoiled weights


def test_a_missing_tensor_is_named_with_its_shape(copy):
    copy.tensors(lambda found: found.pop("model.layers.1.mlp.down_proj.weight"))
    with pytest.raises(
        UserError, match=r"model\.layers\.1\.mlp\.down_proj\.weight of shape \(32, 64\)"
    ):
        copy.load()


def test_a_missing_head_of_an_untied_model_is_named(copy):
    untied = golden_model("qwen2_untied").config
    with pytest.raises(UserError, match=r"tensor lm_head\.weight of shape \(97, 32\) is missing"):
        load_params(copy.directory, untied)


@pytest.mark.parametrize(
    "name, found, expected",
    [
        ("model.layers.0.self_attn.k_proj.weight", (8, 32), (16, 32)),
        ("model.layers.1.self_attn.o_proj.weight", (32, 16), (32, 32)),
        ("model.layers.0.self_attn.q_proj.bias", (16,), (32,)),
        ("model.embed_tokens.weight", (96, 32), (97, 32)),
        ("model.norm.weight", (31,), (32,)),
    ],
)
def test_a_wrong_shape_is_named_with_both(copy, name, found, expected):
    copy.tensors(lambda all: all.update({name: np.zeros(found, np.float32)}))
    with pytest.raises(UserError) as error:
        copy.load()
    assert f"tensor {name} has shape {found}; expected {expected}" in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_norm.weight",  # of another architecture
        "model.layers.2.mlp.up_proj.weight",  # of a deeper model
        "score.weight",  # of a classifier
    ],
)
def test_a_superfluous_tensor_is_named(copy, name):
    copy.tensors(lambda found: found.update({name: np.zeros(8, np.float32)}))
    with pytest.raises(UserError, match=f"tensor {name} does not belong to this architecture"):
        copy.load()


@pytest.mark.parametrize("keep", [0, 100, -1], ids=["empty", "header cut", "last byte lost"])
def test_a_damaged_file_is_named(copy, keep):
    path = copy.directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged or incomplete"):
        copy.load()


@pytest.mark.parametrize("other", ["pytorch_model.bin", "model.gguf", None])
def test_other_formats_are_refused_by_name(copy, other):
    (copy.directory / "model.safetensors").unlink()
    if other:
        (copy.directory / other).write_text("")
    with pytest.raises(
        UserError, match=rf"{other or 'no weights'}; expected \*\.safetensors files"
    ):
        copy.load()


# ------------------------------------------------------------------ spoiled configs


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(model_type="mistral"), r"model_type is 'mistral'; expected qwen2, qwen3 or llama"),
        (dict(model_type=None), r"model_type is None"),
        (dict(hidden_act="gelu"), r"hidden_act is 'gelu'; expected silu"),
        (dict(use_sliding_window=True), r"sliding window"),
        (dict(layer_types=["full_attention", "sliding_attention"]), r"sliding window"),
        (dict(quantization_config={"bits": 4}), r"quantized"),
        (dict(rope_scaling={"type": "linear", "factor": 2.0}), r"rope scaling is 'linear'"),
        (dict(rope_parameters={"rope_type": "yarn", "factor": 4.0}), r"rope scaling is 'yarn'"),
        (dict(rope_parameters={"rope_type": "llama3", "factor": 8.0}), r"has no low_freq_factor"),
        (dict(vocab_size="a"), r"vocab_size is 'a'; expected a positive integer"),
        (dict(num_hidden_layers=0), r"num_hidden_layers is 0; expected a positive integer"),
        (dict(head_dim=1.5), r"head_dim is 1\.5; expected a positive integer"),
        (dict(num_key_value_heads=3), r"num_key_value_heads is 3; expected a divisor of"),
        (dict(rms_norm_eps=None), r"rms_norm_eps is None; expected a non-negative number"),
        (dict(rope_theta="x"), r"rope_theta is 'x'; expected a non-negative number"),
        (dict(rope_scaling="linear"), r"rope_scaling is 'linear'; expected an object"),
    ],
)
def test_an_unsupported_config_is_refused_by_field(copy, fields, message):
    hf = read_json(copy.config(**fields).directory / "config.json")
    with pytest.raises(UserError, match=r"^here/config\.json: .*" + message):
        decoder_config(hf, source="here/config.json")


def test_a_missing_field_and_a_wrong_dtype_are_named(copy):
    hf = read_json(copy.config(remove=["intermediate_size"]).directory / "config.json")
    with pytest.raises(UserError, match="intermediate_size is missing"):
        decoder_config(hf)
    with pytest.raises(UserError, match="model.dtype is 'float16'; expected float32 or bfloat16"):
        decoder_config({**hf, "intermediate_size": 64}, dtype="float16")


@pytest.mark.parametrize(
    "content, message",
    [(None, "missing"), (b"{broken", "not JSON"), (b"\xff\xfe", "not UTF-8")]
    + [(b"[1]", r"\[1\]; expected an object")],
)
def test_a_config_file_that_is_none(copy, content, message):
    path = copy.directory / "config.json"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=f"config.json (is )?{message}"):
        open_pretrained(ModelSection(path=str(copy.directory)))


def test_directories_that_do_not_exist(tmp_path):
    for name in ("runs/none/hf", "./none", str(tmp_path / "none"), "none"):
        with pytest.raises(UserError, match=f"'{name}' does not exist"):
            resolve_directory(name)
    with pytest.raises(UserError, match="model.path is empty"):
        open_pretrained(ModelSection())


def test_a_directory_without_a_tokenizer_is_refused(copy, tmp_path):
    """Beside a qwen2 config, transformers opens missing files as a tokenizer of one token."""
    for directory in (copy.directory, GOLDEN / "models" / "llama_tied", tmp_path):
        with pytest.raises(UserError, match="tokenizer"):
            load_tokenizer(directory)
    (copy.directory / "tokenizer.json").write_text("{broken")
    with pytest.raises(UserError, match="transformers cannot open the tokenizer"):
        load_tokenizer(copy.directory)


# ------------------------------------------------------------------ tokens


class Words:
    """As much of a tokenizer as stop_ids and allowed_ids look at."""

    def __init__(self, vocabulary, eos=None):
        self.vocabulary, self.eos_token_id = vocabulary, eos

    def get_vocab(self):
        return self.vocabulary


def test_stop_ids_are_the_union_of_all_sources():
    words = Words({"a": 0, "<|im_end|>": 4, "<|eot_id|>": 6, "</s>": 2}, eos=2)
    assert stop_ids(words, {}) == [2, 4, 6]
    assert stop_ids(words, {"eos_token_id": 9}) == [2, 4, 6, 9]
    assert stop_ids(words, {"eos_token_id": [9, 4, 0]}) == [0, 2, 4, 6, 9]
    assert stop_ids(words, {"eos_token_id": 0}) == [0, 2, 4, 6]
    assert stop_ids(Words({"a": 0}), {"eos_token_id": None}) == []


def test_allowed_ids_are_those_with_a_token():
    allowed = allowed_ids(Words({"a": 0, "b": 1, "c": 4}), 6)
    np.testing.assert_array_equal(allowed, [True, True, False, False, True, False])
    with pytest.raises(UserError, match="ids up to 4, but the vocabulary size of the model is 4"):
        allowed_ids(Words({"a": 0, "c": 4}), 4)


def test_stops_and_allowed_ids_of_qwen(qwen, shared_data):
    generation = read_json(shared_data / "tokenizers/qwen2.5-instruct/generation_config.json")
    assert stop_ids(qwen, {}) == stop_ids(qwen, generation) == [151643, 151645]
    assert [qwen.decode([i]) for i in stop_ids(qwen, {})] == ["<|endoftext|>", "<|im_end|>"]
    np.testing.assert_array_equal(allowed_ids(qwen, 151936), np.arange(151936) < 151665)


def test_golden_encodings_of_qwen(qwen, shared_data):
    """Token ids as llama.cpp gives them."""
    for line in (shared_data / "tokenizers/qwen2_llamacpp_vectors.jsonl").open():
        row = json.loads(line)
        assert encode(qwen, row["text"]) == row["ids"], row["text"]


def test_golden_chats_of_qwen(qwen, shared_data):
    """Renders and ids of the chat template, and our prompts where they ask for a generation."""
    rendered = 0
    for line in (shared_data / "tokenizers/qwen2.5_chat_golden.jsonl").open():
        row = json.loads(line)
        assert encode(qwen, row["text"]) == row["ids"]
        if row["add_generation_prompt"]:
            section = PromptSection(system="", instruction="", example_question="")
            assert render_prompt(qwen, row["messages"], section) == row["text"]
            rendered += 1
    assert rendered >= 3


def test_a_prompt_of_parts_is_the_template_of_its_messages(qwen):
    section = PromptSection(
        system="Be brief.", instruction="Box it.", example_question="1+1?", example_answer="2"
    )
    want = (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n1+1? Box it.<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
        "<|im_start|>user\n2+2? Box it.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render_prompt(qwen, "2+2?", section) == want


def test_decoding_keeps_tags_and_leaves_out_the_stop_token(qwen):
    text = "<think>\nhmm , 3 !\n</think><answer>5</answer>"  # no clean-up of spaces
    ids = encode(qwen, text)
    rows = [np.array(ids + [151645]), np.array(ids), np.array([151645]), np.array([], int)]
    assert decode_completions(qwen, rows, [151643, 151645]) == [text, text, "", ""]
    # Only the last token is a stop; a special token elsewhere stays visible.
    inside = np.array([151644, *ids[:1]])
    assert decode_completions(qwen, [inside], [151645])[0].startswith("<|im_start|><")


TEXTS = [
    "<think>\n2+2=4</think>\n<answer>4</answer>",
    "So it is done.</think>\n\n<answer>4</answer>",  # ".</" is one token
    "</think>4",  # no thinking at all
    "twice</think> and again</think>",
    "it never ends </thin",
    "",
    "ein Fuß, 中文, and 🦔🦔</think>🦔",  # characters of several tokens before it
    "\t \n</think>",
]


def brute_force_thinking(tokenizer, row, end):
    """Count tokens one by one while the text so far ends before `end` begins."""
    offset = tokenizer.decode(row).find(end)
    if offset < 0:
        return len(row)
    return max(n for n in range(len(row) + 1) if len(tokenizer.decode(row[:n])) <= offset)


def test_thinking_lengths_of_an_end_of_several_tokens(qwen):
    assert len(encode(qwen, "</think>")) == 3
    rows = [np.array(encode(qwen, text), int) for text in TEXTS]
    want = [brute_force_thinking(qwen, row, "</think>") for row in rows]
    assert tokens_before(qwen, rows, "</think>") == want
    # "So it is done.</think>": So| it| is| done|.</|think|>: the token ".</" is not thinking.
    assert want[1] == 4 and want[2] == 0 and want[4] == len(rows[4]) and want[5] == 0


def test_thinking_lengths_of_a_single_token(small_tokenizer):
    texts = ["<think>1+1=2</think><answer>2", "<think>1+1", "</think>1</think>", ""]
    rows = [np.array(encode(small_tokenizer, text), int) for text in texts]
    assert len(encode(small_tokenizer, "</think>")) == 1
    assert tokens_before(small_tokenizer, rows, "</think>") == [6, 4, 0, 0]


# ------------------------------------------------------------------ export


@pytest.fixture(scope="module")
def model_with_tokenizer(small_tokenizer, tmp_path_factory):
    """A golden model with a tokenizer beside it, as a user would have it."""
    directory = tmp_path_factory.mktemp("model")
    shutil.copytree(GOLDEN / "models" / "qwen2_tied", directory, dirs_exist_ok=True)
    small_tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def run_dir(model_with_tokenizer, tmp_path_factory):
    """A run with one checkpoint, whose parameters are the golden ones plus 1."""
    directory = tmp_path_factory.mktemp("run")
    config = TrainConfig(
        output_dir=str(directory), model=ModelSection(path=str(model_with_tokenizer))
    )
    (directory / "config.yaml").write_text(to_yaml(config))
    params = jax.tree.map(lambda x: x + 1, golden_model("qwen2_tied").params)
    checkpoints = Checkpoints(directory, 1, writes=True)
    checkpoints.save(7, new_state(make_optimizer(OptimizerSection(), 1), params))
    checkpoints.close()
    return directory


def test_open_pretrained(model_with_tokenizer, small_tokenizer):
    opened = open_pretrained(ModelSection(path=str(model_with_tokenizer), dtype="bfloat16"))
    assert opened.config.dtype == "bfloat16" and opened.directory == model_with_tokenizer
    assert opened.stop_ids == [1] and opened.tokenizer.decode([1]) == "<eos>"
    assert opened.allowed.sum() == len(small_tokenizer.get_vocab()) < 97


def test_a_model_is_loaded_on_one_device_or_over_a_mesh(model_with_tokenizer):
    """Without a mesh the parameters are plain arrays: those of an optimizer have the same type."""
    model, params, tokenizer = iapo_jax.load(model_with_tokenizer)
    assert tokenizer.decode([1]) == "<eos>" and model.devices == 1
    assert all(jax.typeof(x) == jax.typeof(jnp.zeros(x.shape)) for x in jax.tree.leaves(params))
    mesh = make_mesh(*MESHES[1])
    split_model, split, _ = iapo_jax.load(model_with_tokenizer, mesh=mesh)
    assert split_model.devices == DEVICES and all(
        x.sharding.mesh == mesh for x in jax.tree.leaves(split)
    )
    jax.tree.map(np.testing.assert_array_equal, split, params)


def test_export_writes_the_checkpoint(run_dir, model_with_tokenizer, tmp_path, capsys):
    out = tmp_path / "hf"
    assert export.main([str(run_dir), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    want = {name: x + 1 for name, x in tensors(model_with_tokenizer).items()}
    assert_bits(tensors(out), want)
    assert read_json(out / "config.json") == read_json(model_with_tokenizer / "config.json")
    text = "<think>12+3=15. </think><answer>15</answer>"
    assert load_tokenizer(out).get_vocab() == load_tokenizer(model_with_tokenizer).get_vocab()
    assert load_tokenizer(out).decode(encode(load_tokenizer(out), text)) == text
    assert load_tokenizer(out).chat_template == load_tokenizer(model_with_tokenizer).chat_template


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--step", "9"], r"--step is '9'; expected .* steps \[7\]"),
        (["--dtype", "int8"], r"--dtype is 'int8'; expected float32, bfloat16 or float16"),
    ],
)
def test_export_errors(run_dir, tmp_path, capsys, arguments, message):
    out = tmp_path / "hf"
    assert export.main([str(run_dir), "--out", str(out), *arguments]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(rf"error: {message}.*\n", error)  # one line
    assert not out.exists()


def test_export_of_no_run_and_of_a_run_without_checkpoints(model_with_tokenizer, tmp_path, capsys):
    assert export.main([str(tmp_path)]) == 2
    assert "is not a run directory: it has no config.yaml" in capsys.readouterr().err
    config = TrainConfig(model=ModelSection(path=str(model_with_tokenizer)))
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert export.main([str(tmp_path)]) == 2
    assert "has no checkpoints" in capsys.readouterr().err
