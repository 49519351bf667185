"""The text part of a multimodal model: reduced exactly, and a model of its own."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Llama4ForConditionalGeneration,
    PreTrainedModel,
)

from lamina.depth.loading import load_model
from lamina.depth.plan import make_plan
from lamina.depth.reduction import decoder_stack
from lamina.depth.variants import Layers, Original
from lamina.errors import ModelError
from lamina.export.reduced import write_cut
from lamina.weights.source import resolve
from lamina.weights.text_part import TEXT_MODELS, text_config
from tests.architectures import MULTIMODAL, NUM_LAYERS, save
from tests.conftest import no_scores
from tests.depth.test_architectures import KEPT, generated, logits


@pytest.fixture(scope="module", params=MULTIMODAL)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(request.param, tmp_path_factory.mktemp(request.param))


def whole_model(folder: Path, kept: Sequence[int] = range(NUM_LAYERS)) -> PreTrainedModel:
    """The multimodal model, in which blocks that are not kept return their input."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    blocks = decoder_stack(model, NUM_LAYERS)[1]

    def skip(_: Any, arguments: tuple[Any, ...], options: dict[str, Any], output: Any) -> Any:
        given = arguments[0] if arguments else options["hidden_states"]
        return given if isinstance(output, torch.Tensor) else (given, *output[1:])

    for index, block in enumerate(blocks):
        if index not in kept:
            block.register_forward_hook(skip, with_kwargs=True)
    if isinstance(model, Llama4ForConditionalGeneration):
        # transformers 5.24 reads a field that its own language model does not return.
        model.language_model.register_forward_hook(
            lambda _, arguments, output: setattr(output, "image_outputs", None)
        )
    return model


@pytest.mark.parametrize("kept", [*KEPT.values(), tuple(range(NUM_LAYERS))])
def test_the_text_part_is_the_whole_model_without_the_dropped_blocks(
    folder: Path, kept: tuple[int, ...], tmp_path: Path
) -> None:
    whole = whole_model(folder, kept)
    expected = logits(whole)
    ours = load_model(resolve(str(folder)), kept, dtype=torch.float32).eval()
    assert torch.equal(logits(ours), expected)

    variant = Layers(keep=list(kept), drop=None) if len(kept) < NUM_LAYERS else Original()
    plan = make_plan(variant, str(folder), no_scores)
    write_cut(plan, tmp_path / "cut")
    cut, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "cut", dtype=torch.float32, output_loading_info=True
    )
    cut.eval()
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert cut.config.num_hidden_layers == len(kept)
    assert cut.config.architectures == [type(cut).__name__]
    assert torch.equal(logits(cut), expected)
    ids = generated(whole, cached=False)
    for model in (ours, cut):
        assert generated(model, cached=False) == generated(model, cached=True) == ids


@pytest.mark.parametrize("is_typed", [True, False], ids=["typed", "untyped"])
@pytest.mark.parametrize("model_type", MULTIMODAL)
def test_a_published_config_leaves_most_fields_to_their_defaults(
    model_type: str, is_typed: bool, tmp_path: Path
) -> None:
    folder = save(model_type, tmp_path / "model")
    path = folder / "config.json"
    content = json.loads(path.read_text())
    text = dict(MULTIMODAL[model_type][0])
    if is_typed:
        text["model_type"] = content["text_config"]["model_type"]
    if model_type == "llama4":
        text["no_rope_layers"] = []  # as published; it means the default cadence
    kept_fields = ("architectures", "model_type", "vision_config", "tie_word_embeddings")
    published = {field: content[field] for field in kept_fields if field in content}
    path.write_text(json.dumps({**published, "text_config": text}))
    kept = KEPT["not contiguous"]
    expected = logits(whole_model(folder, kept))
    plan = make_plan(Layers(keep=list(kept), drop=None), str(folder), no_scores)
    write_cut(plan, tmp_path / "cut")
    cut = AutoModelForCausalLM.from_pretrained(tmp_path / "cut", dtype=torch.float32).eval()
    assert torch.equal(logits(cut), expected)


FORMS = {
    "older": ("language_model.model.", "language_model.lm_head."),
    "newer": ("model.language_model.", "lm_head."),
}
"""Prefixes of the text part's tensors and of its head in published checkpoints."""


def cut_of(folder: Path, output: Path) -> dict[str, torch.Tensor]:
    plan = make_plan(Layers(keep=None, drop=[0, 3]), str(folder), no_scores)
    write_cut(plan, output)
    return load_file(output / "model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(first[n].equal(second[n]) for n in first)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("model_type", MULTIMODAL)
def test_either_form_of_names_gives_the_same_model(
    model_type: str, form: tuple[str, str], tmp_path: Path
) -> None:
    folder = save(model_type, tmp_path / "model")
    expected = cut_of(folder, tmp_path / "one")
    path = folder / "model.safetensors"
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(path).items():
        rest = re.sub(r"^(model\.)?language_model\.(model\.)?", "", name)
        is_head, is_text = rest.startswith("lm_head."), rest != name
        text = form[1] + rest.removeprefix("lm_head.") if is_head else form[0] + rest
        renamed[text if is_head or is_text else name] = tensor
    save_file(renamed, path, {"format": "pt"})
    assert same(cut_of(folder, tmp_path / "other"), expected)


def test_experts_of_qwen3_vl_moe_are_split_whichever_way_they_are_stored(tmp_path: Path) -> None:
    folder = save("qwen3_vl_moe", tmp_path / "model")
    expected = cut_of(folder, tmp_path / "one")
    assert [name for name in expected if name.endswith("experts.3.up_proj.weight")]
    path = folder / "model.safetensors"
    stored = load_file(path)
    experts = [name for name in stored if name.endswith(("gate_up_proj", "experts.down_proj"))]
    assert len(experts) == 2 * 5  # layer 1 is dense
    turned = {name: stored[name].transpose(1, 2).contiguous() for name in experts}
    save_file({**stored, **turned}, path, {"format": "pt"})
    assert same(cut_of(folder, tmp_path / "other"), expected)


def test_experts_of_qwen3_5_moe_may_lie_in_one_tensor_as_published(tmp_path: Path) -> None:
    folder = save("qwen3_5_moe", tmp_path / "model")
    path = folder / "model.safetensors"
    stored = load_file(path)
    for layer in range(NUM_LAYERS):
        prefix = f"model.language_model.layers.{layer}.mlp.experts."
        gate, up, down = (
            torch.stack([stored.pop(f"{prefix}{i}.{kind}_proj.weight") for i in range(4)])
            for kind in ("gate", "up", "down")
        )
        stored[f"{prefix}gate_up_proj"] = torch.cat((gate, up), dim=1)
        stored[f"{prefix}down_proj"] = down
    save_file(stored, path, {"format": "pt"})
    expected = logits(whole_model(folder, (0, 2, 5)))
    ours = load_model(resolve(str(folder)), (0, 2, 5), dtype=torch.float32).eval()
    assert torch.equal(logits(ours), expected)
    plan = make_plan(Layers(keep=[0, 2, 5], drop=None), str(folder), no_scores)
    write_cut(plan, tmp_path / "cut")
    cut = AutoModelForCausalLM.from_pretrained(tmp_path / "cut", dtype=torch.float32).eval()
    assert torch.equal(logits(cut), expected)


def test_heads_for_multi_token_prediction_are_left_out_and_named(tmp_path: Path) -> None:
    folder = save("qwen3_5", tmp_path / "model")
    vision = "left out: the vision part"
    layout = "layout: 1 linear_attention, 1 full_attention, repeated over 6 layers"
    assert make_plan(Original(), str(folder), no_scores).notes() == [vision, layout]
    path = folder / "model.safetensors"
    heads = {"mtp.layers.0.mlp.up_proj.weight": torch.ones(2), "mtp.norm.weight": torch.ones(2)}
    save_file({**load_file(path), **heads}, path, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["mtp_num_hidden_layers"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    plan = make_plan(Original(), str(folder), no_scores)
    assert plan.notes() == [f"{vision} and the multi-token prediction heads", layout]
    write_cut(plan, tmp_path / "cut")
    assert not [name for name in load_file(tmp_path / "cut" / "model.safetensors") if "mtp" in name]
    written = json.loads((tmp_path / "cut" / "config.json").read_text())
    assert written["mtp_num_hidden_layers"] == 0


@pytest.mark.parametrize("family", TEXT_MODELS)
def test_the_text_config_means_what_it_meant_beside_the_vision_part(family: str) -> None:
    whole = json.loads(CONFIG_MAPPING[family]().to_json_string(use_diff=False))
    text = text_config(whole)
    assert text is not None
    found = json.loads(
        CONFIG_MAPPING[text["model_type"]].from_dict(text).to_json_string(use_diff=False)
    )
    expected = {**whole["text_config"], "tie_word_embeddings": whole["tie_word_embeddings"]}
    for name in ("model_type", "architectures", "transformers_version", "_name_or_path"):
        expected.pop(name, None)
    assert {name: found.get(name) for name in expected} == expected


def test_a_quantized_text_part_is_refused(tmp_path: Path) -> None:
    folder = save("qwen3_5", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"its weights are quantized \(fp8\)"):
        make_plan(Original(), str(folder), no_scores)


def test_a_stored_head_is_not_tied(tmp_path: Path) -> None:
    folder = save("mistral3", tmp_path / "model")
    assert json.loads((folder / "config.json").read_text()).get("tie_word_embeddings", True)
    assert resolve(str(folder)).config["tie_word_embeddings"]
    path = folder / "model.safetensors"
    tensors = load_file(path)
    (name,) = (name for name in tensors if name.endswith("embed_tokens.weight"))
    head = torch.randn_like(tensors[name])
    save_file({**tensors, "language_model.lm_head.weight": head}, path, {"format": "pt"})
    assert not resolve(str(folder)).config["tie_word_embeddings"]
    ours = load_model(resolve(str(folder)), (0, 2), dtype=torch.float32).eval()
    assert torch.equal(logits(ours), logits(whole_model(folder, (0, 2))))
