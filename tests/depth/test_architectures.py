"""Removal is exact in every architecture: against the larger model without the dropped blocks."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lamina.depth.loading import load_model
from lamina.depth.plan import make_plan
from lamina.depth.reduction import decoder_stack
from lamina.depth.selection import First
from lamina.depth.variants import Layers, Original, Pruned
from lamina.errors import ModelError
from lamina.export.reduced import write_cut
from lamina.weights.source import Source, resolve
from tests.architectures import ARCHITECTURES, NUM_LAYERS, build, save
from tests.conftest import no_scores

KEPT = {
    "start dropped": (1, 2, 3, 4, 5),
    "middle dropped": (0, 1, 2, 4, 5),
    "end dropped": (0, 1, 2, 3, 4),
    "not contiguous": (0, 2, 5),
}

IDS = torch.tensor([[3, 14, 15, 9, 26, 5, 35, 8, 9, 7], [31, 41, 59, 2, 6, 53, 58, 9, 7, 9]])


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(request.param, tmp_path_factory.mktemp(request.param))


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def logits_with_blocks_skipped(folder: Path, kept: Sequence[int]) -> torch.Tensor:
    """The full model, except that skipped blocks return their input."""

    def skip(_: Any, arguments: tuple[Any, ...], options: dict[str, Any], output: Any) -> Any:
        given = arguments[0] if arguments else options["hidden_states"]
        return given if isinstance(output, torch.Tensor) else (given, *output[1:])

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for index, block in enumerate(decoder_stack(model, NUM_LAYERS)[1]):
        if index not in kept:
            block.register_forward_hook(skip, with_kwargs=True)
    return logits(model)


def generated(model: PreTrainedModel, *, cached: bool) -> list[list[int]]:
    options = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8, "pad_token_id": 0}
    return model.generate(IDS, use_cache=cached, **options).tolist()


@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT)
def test_the_smaller_model_is_the_larger_one_without_the_dropped_blocks(
    folder: Path, kept: tuple[int, ...], tmp_path: Path
) -> None:
    smaller = load_model(resolve(str(folder)), kept, dtype=torch.float32).eval()
    expected = logits_with_blocks_skipped(folder, kept)
    assert torch.equal(logits(smaller), expected)
    assert generated(smaller, cached=True) == generated(smaller, cached=False)

    smaller.save_pretrained(tmp_path)
    reloaded, info = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(logits(reloaded.eval()), expected)
    assert generated(reloaded, cached=True) == generated(smaller, cached=True)


def test_tied_weights_stay_tied(folder: Path) -> None:
    larger = AutoModelForCausalLM.from_pretrained(folder)
    smaller = load_model(resolve(str(folder)), (0, 3, 4), dtype=torch.float32)
    tied = larger.get_output_embeddings().weight is larger.get_input_embeddings().weight
    assert tied == larger.config.tie_word_embeddings
    assert tied == (smaller.get_output_embeddings().weight is smaller.get_input_embeddings().weight)


def test_the_original_is_bit_identical_to_the_stock_model(folder: Path) -> None:
    ours = load_model(resolve(str(folder)), range(NUM_LAYERS), dtype=torch.float32).state_dict()
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    assert ours.keys() == stock.keys()
    assert all(torch.equal(ours[name], stock[name]) for name in stock)


def test_the_streamed_checkpoint_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    kept = KEPT["not contiguous"]
    plan = make_plan(Layers(keep=list(kept), drop=None), str(folder), no_scores)
    write_cut(plan, tmp_path / "cut", max_shard_bytes=20_000)
    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "cut", dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(logits(model.eval()), logits_with_blocks_skipped(folder, kept))
    assert len(list((tmp_path / "cut").glob("model-*.safetensors"))) > 1
    stored = resolve(str(tmp_path / "cut"))
    stored.stored(stored.weight_map)


HUB_FORMS: dict[str, tuple[set[str], dict[str, Any]]] = {
    "qwen3": ({"layer_types"}, {}),
    "qwen2": ({"layer_types"}, {}),
    "qwen3_next": ({"layer_types"}, {"full_attention_interval": 3}),
    "gemma3_text": ({"layer_types", "_sliding_window_pattern"}, {"sliding_window_pattern": 3}),
    "gpt_oss": ({"layer_types"}, {}),
    "smollm3": ({"layer_types", "no_rope_layers"}, {"no_rope_layer_interval": 3}),
    "olmo3": ({"layer_types"}, {}),
}
"""Fields that published config.json files leave out, and what they state instead."""


@pytest.mark.parametrize("model_type", HUB_FORMS)
def test_a_config_with_cadences_or_defaults_gives_the_same_model(
    model_type: str, tmp_path: Path
) -> None:
    folder = save(model_type, tmp_path / "model")
    kept = KEPT["not contiguous"]
    expected = logits_with_blocks_skipped(folder, kept)
    absent, instead = HUB_FORMS[model_type]
    path = folder / "config.json"
    content = {k: v for k, v in json.loads(path.read_text()).items() if k not in absent}
    path.write_text(json.dumps({**content, **instead}))
    smaller = load_model(resolve(str(folder)), kept, dtype=torch.float32).eval()
    assert torch.equal(logits(smaller), expected)
    plan = make_plan(Layers(keep=list(kept), drop=None), str(folder), no_scores)
    write_cut(plan, tmp_path / "cut")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "cut", dtype=torch.float32)
    assert torch.equal(logits(reloaded.eval()), expected)


def test_heads_for_multi_token_prediction_are_left_out(tmp_path: Path) -> None:
    folder = save("qwen3_next", tmp_path / "model")
    path = folder / "model.safetensors"
    heads = {"mtp.layers.0.mlp.up_proj.weight": torch.ones(2), "mtp.norm.weight": torch.ones(2)}
    save_file({**load_file(path), **heads}, path, {"format": "pt"})
    expected = logits_with_blocks_skipped(folder, (1, 2))
    write_cut(make_plan(Layers(keep=[1, 2], drop=None), str(folder), no_scores), tmp_path / "cut")
    written = load_file(tmp_path / "cut" / "model.safetensors")
    assert not [name for name in written if name.startswith("mtp")]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "cut", dtype=torch.float32)
    assert torch.equal(logits(model.eval()), expected)
    plan = make_plan(Original(), str(folder), no_scores)
    write_cut(plan, tmp_path / "whole")
    assert heads.keys() < load_file(tmp_path / "whole" / "model.safetensors").keys()


@pytest.mark.parametrize("is_on_the_hub", [True, False])
@pytest.mark.parametrize("max_shard_size", ["20KB", "5GB"])
def test_heads_that_only_the_weights_show_are_named(
    max_shard_size: str, is_on_the_hub: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    model = build("qwen3_next")
    weights = {**model.state_dict(), "mtp.norm.weight": torch.ones(2)}
    model.save_pretrained(folder, state_dict=weights, max_shard_size=max_shard_size)
    plan = make_plan(Original(), str(folder), no_scores)
    if is_on_the_hub:
        source = Source(name="a/b", revision="c0ffee", folder=folder)
        plan = replace(plan, source=source)
    layout = "layout: 2 linear_attention, 1 full_attention, repeated over 6 layers"
    heads = "left out: the multi-token prediction heads"
    assert plan.notes() == [layout]
    assert plan.notes(saved=True) == [heads, layout]
    assert replace(plan, kept_layers=(0, 1, 2)).notes()[0] == heads


@pytest.mark.parametrize("nested", [True, False])
def test_gemma_3n_is_refused_with_the_reason(nested: bool, tmp_path: Path) -> None:
    text = AutoConfig.for_model("gemma3n_text").to_dict()
    whole = {"model_type": "gemma3n", "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(whole if nested else text))
    with pytest.raises(ModelError, match="num_kv_shared_layers=15: late layers use the keys and"):
        make_plan(Pruned(keep_layers=20, selector=First()), str(tmp_path), no_scores)


GGUF: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("QWEN3", {}),
    "qwen2": ("QWEN2", {}),
    "qwen3_moe": ("QWEN3MOE", {"decoder_sparse_step": 1, "mlp_only_layers": []}),
    "qwen3_next": ("QWEN3NEXT", {"mlp_only_layers": []}),
    "llama": ("LLAMA", {}),
    "mistral": ("LLAMA", {}),
    "gemma3_text": ("GEMMA3", {}),
    "gpt_oss": ("GPT_OSS", {}),
    "smollm3": ("SMOLLM3", {}),
    "olmo3": ("OLMO2", {}),
    "phi3": ("PHI3", {}),
    "gpt_neox": ("GPTNEOX", {}),
    "gpt2": ("GPT2", {}),
}
"""llama.cpp's name of each family; it supports mixtures of experts only without dense layers."""

CONVERTER_RENAMES = (
    (r"experts\.\d+\.", "experts."),
    (r"\.dt_bias$", ".dt_proj.bias"),
    (r"experts\.(down|gate_up)_proj_bias$", r"experts.\1_proj.bias"),
    (r"experts\.gate_up_proj", "experts.gate_proj"),
)
"""What llama.cpp's converter does to a name before the lookup: it stacks experts, splits fused
projections and respells two names."""


@pytest.mark.parametrize("model_type", GGUF)
def test_every_name_has_its_place_in_a_gguf_file(model_type: str, tmp_path: Path) -> None:
    family, changes = GGUF[model_type]
    build(model_type, **changes).save_pretrained(tmp_path / "model")
    plan = make_plan(Layers(keep=None, drop=[0, 3]), str(tmp_path / "model"), no_scores)
    write_cut(plan, tmp_path / "cut")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family], len(plan.kept_layers))
    written = load_file(tmp_path / "cut" / "model.safetensors")
    unmapped = []
    for name in written:
        asked = name
        for pattern, replacement in CONVERTER_RENAMES:
            asked = re.sub(pattern, replacement, asked)
        if names.get_name(asked, try_suffixes=(".weight", ".bias")) is None:
            unmapped.append(name)
    assert written
    assert unmapped == []
