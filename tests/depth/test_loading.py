"""Removal at load: exact, from one file or shards, and nothing but kept tensors read."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lamina.data.byte_tokenizer import build_tokenizer
from lamina.depth.loading import (
    load_model,
    load_tokenizer,
    new_model,
    refuse_long_sequences,
    refuse_unknown_tokens,
)
from lamina.depth.plan import make_plan
from lamina.depth.variants import Original
from lamina.errors import ConfigError, ModelError
from lamina.weights import reading
from lamina.weights.source import resolve
from tests.conftest import no_scores

SIZE = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
}


@pytest.fixture(params=["tied", "untied", "sharded", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    if request.param == "llama":
        model = LlamaForCausalLM(LlamaConfig(**SIZE))
    else:
        config = Qwen3Config(**SIZE, tie_word_embeddings=request.param == "tied")
        model = Qwen3ForCausalLM(config)
    model.save_pretrained(tmp_path, max_shard_size="10KB" if request.param == "sharded" else "1GB")
    return tmp_path


@pytest.mark.parametrize("kept", [(1, 2, 3, 4, 5), (0, 1, 2, 4, 5), (0, 1, 2), (0, 2, 5)])
def test_the_smaller_model_equals_the_larger_one_without_the_dropped_blocks(
    folder: Path, kept: tuple[int, ...], tmp_path: Path
) -> None:
    smaller = load_model(resolve(str(folder)), kept, dtype=torch.float32)
    larger = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    larger.model.layers = torch.nn.ModuleList([larger.model.layers[index] for index in kept])
    ids = torch.arange(18).reshape(2, 9)
    expected = larger(ids, use_cache=False).logits
    assert torch.equal(smaller(ids, use_cache=False).logits, expected)
    smaller.save_pretrained(tmp_path / "saved")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert torch.equal(reloaded(ids, use_cache=False).logits, expected)


def test_generation_with_a_cache_equals_generation_without(folder: Path) -> None:
    model = load_model(resolve(str(folder)), (0, 2, 5), dtype=torch.float32)
    ids = torch.arange(5)[None]
    options = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}
    with_cache = model.generate(ids, use_cache=True, **options)
    assert torch.equal(with_cache, model.generate(ids, use_cache=False, **options))


def test_the_original_is_bit_identical_to_from_pretrained(folder: Path) -> None:
    ours = load_model(resolve(str(folder)), range(6), dtype=torch.float32).state_dict()
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    assert ours.keys() == stock.keys()
    assert all(torch.equal(ours[name], stock[name]) for name in stock)


@pytest.mark.parametrize("kept", [range(6), (0, 1, 4)])
def test_a_model_that_says_how_to_sample_but_not_to_do_so_can_be_saved(
    kept: Sequence[int], folder: Path, tmp_path: Path
) -> None:
    (folder / "generation_config.json").write_text('{"temperature": 0.6, "top_p": 0.9}')
    load_model(resolve(str(folder)), kept, dtype=torch.float32).save_pretrained(tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert (written["temperature"], written["top_p"], written["do_sample"]) == (0.6, 0.9, True)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    Qwen3ForCausalLM(Qwen3Config(**SIZE, tie_word_embeddings=True)).save_pretrained(tmp_path)
    model = load_model(resolve(str(tmp_path)), (0, 1), dtype=torch.float32)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.skipif(not Path("/proc/self/io").is_file(), reason="counts reads as Linux does")
def test_no_byte_of_a_dropped_layer_is_read(tmp_path: Path) -> None:
    config = Qwen3Config(**{**SIZE, "hidden_size": 256, "intermediate_size": 512})
    Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    load_model(resolve(str(tmp_path)), (1, 4), dtype=torch.bfloat16)  # imports
    before = bytes_read()
    model = load_model(resolve(str(tmp_path)), (1, 4), dtype=torch.bfloat16)
    kept = sum(parameter.numel() * 4 for parameter in model.parameters())
    assert kept <= bytes_read() - before < kept + 50_000  # headers and config.json


def bytes_read() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


def test_a_streamed_tensor_is_read_in_blocks_of_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Qwen3ForCausalLM(Qwen3Config(**SIZE)).save_pretrained(tmp_path)
    expected = load_file(tmp_path / "model.safetensors")
    monkeypatch.setattr(reading, "BLOCK_BYTES", 200)
    with reading.tensor_slices(resolve(str(tmp_path)), {name: name for name in expected}) as slices:
        for name, piece in slices.items():
            blocks = list(reading.byte_blocks(piece, None))
            assert b"".join(blocks) == bytes(expected[name].numpy().tobytes())
            assert all(len(block) <= 200 for block in blocks)
            halves = b"".join(reading.byte_blocks(piece, torch.float16))
            assert halves == expected[name].half().numpy().tobytes()


def test_mapped_weights_can_be_trained_and_leave_the_file_alone(tmp_path: Path) -> None:
    Qwen3ForCausalLM(Qwen3Config(**SIZE)).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    before = path.read_bytes()
    model = load_model(resolve(str(tmp_path)), (1, 4), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert path.read_bytes() == before


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    Qwen3ForCausalLM(Qwen3Config(**SIZE)).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"model\.safetensors is truncated or corrupt"):
        load_model(resolve(str(tmp_path)), (0, 1), dtype=torch.float32)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    Qwen3ForCausalLM(Qwen3Config(**SIZE)).save_pretrained(tmp_path, max_shard_size="10KB")
    (tmp_path / "model-00001-of-00004.safetensors").unlink(missing_ok=True)
    next(tmp_path.glob("model-*.safetensors")).unlink(missing_ok=True)
    with pytest.raises(ModelError, match=r"model-\d+-of-\d+\.safetensors is missing"):
        load_model(resolve(str(tmp_path)), (0, 1), dtype=torch.float32)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    Qwen3ForCausalLM(Qwen3Config(**SIZE)).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(resolve(str(tmp_path)), (0, 1), dtype=torch.float32)


MISFITS = {
    "lm_head.weight": {"lm_head.weight": None},
    "model.norm.weight": {
        "model.norm.weight": None,
        "transformer.norm.weight": "model.norm.weight",
    },
    "model.extra.weight": {"model.extra.weight": "model.norm.weight"},
    "model.embed_tokens.weight": {"model.embed_tokens.weight": "model.norm.weight"},
}
"""By the first tensor that does not fit: new names and the tensors that get them, None for none."""


@pytest.mark.parametrize("kept", [range(6), (0, 1, 4)], ids=["original", "pruned"])
@pytest.mark.parametrize("first", MISFITS)
def test_weights_that_do_not_fit_are_refused_with_and_without_all_layers(
    first: str, kept: tuple[int, ...], tmp_path: Path
) -> None:
    Qwen3ForCausalLM(Qwen3Config(**SIZE, tie_word_embeddings=False)).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    before = load_file(path)
    after = {**before, **{new: old and before[old].clone() for new, old in MISFITS[first].items()}}
    save_file({k: v for k, v in after.items() if v is not None}, path, {"format": "pt"})
    count = 2 if "transformer.norm.weight" in after else 1
    with pytest.raises(ModelError) as refused:
        load_model(resolve(str(tmp_path)), kept, dtype=torch.float32)
    assert str(refused.value) == (
        f"model_name={tmp_path}: {count} tensors do not fit the model (first: {first}): the "
        "checkpoint and its config.json disagree"
    )


def test_heads_for_multi_token_prediction_are_no_misfits(tmp_path: Path) -> None:
    Qwen3ForCausalLM(Qwen3Config(**SIZE)).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["mtp.norm.weight"] = tensors["model.norm.weight"].clone()
    save_file(tensors, path, {"format": "pt"})
    load_model(resolve(str(tmp_path)), range(6), dtype=torch.float32)


def test_an_architecture_that_transformers_lacks_is_named(tmp_path: Path) -> None:
    Qwen3ForCausalLM(Qwen3Config(**SIZE)).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "qwen33"}))
    with pytest.raises(ModelError, match=r"cannot be loaded: .*model type `qwen33`"):
        load_model(resolve(str(tmp_path)), range(6), dtype=torch.float32)


@pytest.mark.parametrize("model_type", ["gpt2", "opt"])
def test_sequences_longer_than_learned_positions_are_refused(
    model_type: str, tmp_path: Path
) -> None:
    sizes = {**SIZE, "max_position_embeddings": 64, "ffn_dim": 24, "word_embed_proj_dim": 16}
    if model_type == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 6, "n_head": 4, "n_positions": 64, "vocab_size": 64}
    config = AutoConfig.for_model(model_type, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    source = resolve(str(tmp_path))
    refuse_long_sequences(source, 64)
    with pytest.raises(ConfigError) as refused:
        refuse_long_sequences(source, 65)
    assert str(refused.value) == (
        f"max_seq_length=65: this {model_type} has learned positions for 64 tokens: use 64 or less"
    )


def test_computed_positions_have_no_limit(tmp_path: Path) -> None:
    config = Qwen3Config(**SIZE, max_position_embeddings=64)
    Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    refuse_long_sequences(resolve(str(tmp_path)), 4096)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_position_embeddings": None}))
    with pytest.raises(ModelError) as refused:
        refuse_long_sequences(resolve(str(tmp_path)), 4096)
    assert str(refused.value) == (
        f"model_name={tmp_path}: config.json: Field 'max_position_embeddings' expected int, got "
        "NoneType (value: None)"
    )


def test_a_tokenizer_larger_than_the_embedding_is_refused_if_the_text_shows_it(
    tmp_path: Path,
) -> None:
    Qwen3ForCausalLM(Qwen3Config(**SIZE)).save_pretrained(tmp_path)
    source, tokenizer = resolve(str(tmp_path)), build_tokenizer()
    refuse_unknown_tokens(source, tokenizer, [])
    refuse_unknown_tokens(source, tokenizer, [[3, 63], []])
    with pytest.raises(ModelError) as refused:
        refuse_unknown_tokens(source, tokenizer, [[3, 64], [5]])
    assert str(refused.value) == (
        f"model_name={tmp_path}: its tokenizer has {len(tokenizer)} tokens, its embedding 64, and "
        f"token 64 ({tokenizer.decode([64])}) is used: take the tokenizer that the model was "
        "trained with, or enlarge the embedding with transformers' resize_token_embeddings first"
    )


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    content = {"model_type": "llama", "num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="no safetensors weights"):
        make_plan(Original(), str(tmp_path), no_scores)
    with pytest.raises(ModelError, match="no usable tokenizer"):
        load_tokenizer(resolve(str(tmp_path)))


def test_a_folder_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelError, match=r"\./nowhere: no such folder"):
        resolve("./nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "qwen33"},
            "model_type=qwen33: transformers knows no such architecture; did",
        ),
        ({"hiden_size": 64}, "hiden_size=64: no such key; did you mean hidden_size"),
    ],
)
def test_an_architecture_has_no_unknown_keys(change: dict[str, object], message: str) -> None:
    architecture = {"model_type": "qwen3", "num_hidden_layers": 2, **change}
    with pytest.raises(ModelError, match=rf"model\.architecture\.{message}"):
        new_model(architecture, build_tokenizer(), dtype=torch.float32)
