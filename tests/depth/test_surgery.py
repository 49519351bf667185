"""The smaller model's config and tensor names."""

from typing import Any

import pytest

from lamina.depth.surgery import (
    layer_count,
    reduced_config,
    reduced_generation_config,
)
from lamina.errors import ModelError

CONFIG: dict[str, Any] = {
    "model_type": "qwen3",
    "num_hidden_layers": 5,
    "hidden_size": 8,
    "layer_types": ["a", "b", "c", "d", "e"],
    "max_window_layers": 3,
    "mlp_only_layers": [1, 4],
    "eos_token_id": [1, 2],
}

UNKNOWN = " may describe layers, but its meaning is unknown: removing layers would be a guess"
INEXACT = " (removal is not exact)"


def test_every_field_about_layers_follows_the_kept_ones() -> None:
    assert reduced_config(CONFIG, (0, 2, 4)) == {
        **CONFIG,
        "num_hidden_layers": 3,
        "layer_types": ["a", "c", "e"],
        "max_window_layers": 2,
        "mlp_only_layers": [2],
    }


def test_the_larger_config_is_left_alone() -> None:
    before = repr(CONFIG)
    reduced_config(CONFIG, (0,))
    assert repr(CONFIG) == before


def test_with_every_layer_kept_nothing_changes() -> None:
    unknown = {**CONFIG, "pattern": [1, 2, 3, 4, 5]}
    assert reduced_config(unknown, range(5)) == unknown


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pattern", [1, 2, 3, 4, 5], UNKNOWN),
        ("special_layer_indices", [0, 3], UNKNOWN),
        ("dense_layer_period", 2, f"=2{UNKNOWN}"),
        ("window_pattern", 3, f"=3{UNKNOWN}"),
        (
            "num_kv_shared_layers",
            2,
            f"=2: late layers use the keys and values of earlier ones{INEXACT}",
        ),
        (
            "hidden_size_per_layer_input",
            256,
            f"=256: each layer reads its own slice of a shared embedding{INEXACT}",
        ),
        (
            "scale_attn_by_inverse_layer_idx",
            True,
            f"=True: attention is scaled by the layer's position{INEXACT}",
        ),
        ("is_encoder_decoder", True, f"=True: only decoders can be reduced{INEXACT}"),
        (
            "quantization_config",
            {"quant_method": "mxfp4"},
            f": quantized weights cannot be reduced; start from the unquantized model{INEXACT}",
        ),
        ("sliding_window_pattern", "LLLG", "=LLLG is not a whole number"),
    ],
)
def test_a_field_that_cannot_be_carried_over_is_refused_by_name(
    field: str, value: object, message: str
) -> None:
    config = {key: value for key, value in CONFIG.items() if key != "layer_types"}
    with pytest.raises(ModelError) as raised:
        reduced_config({**config, field: value}, (0, 1))
    assert str(raised.value) == f"config.json's {field}{message}"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layer_norm_eps", 1e-6),
        ("num_kv_shared_layers", 0),
        ("some_interval", 1),
        ("scale_attn_by_inverse_layer_idx", False),
        ("suppressed_token_ids", [1, 2, 3, 4, 5]),
        ("time_step_limit", [0.0, 1.0]),
    ],
)
def test_a_field_unrelated_to_layers_stays(field: str, value: object) -> None:
    assert reduced_config({**CONFIG, field: value}, (0, 1))[field] == value


def test_multimodal_models_are_refused_with_the_reason() -> None:
    parts = {"vision_config": {"num_hidden_layers": 3}, "text_config": {"num_hidden_layers": 5}}
    with pytest.raises(ModelError) as raised:
        layer_count({"model_type": "llava", **parts})
    assert str(raised.value) == (
        "config.json nests a language model under 'text_config': of multimodal models, only "
        "qwen3_5, qwen3_5_moe, qwen3_vl, qwen3_vl_moe, gemma3, mistral3, llama4 can be reduced; "
        "save the language model on its own first"
    )
    shared = {"num_hidden_layers": 35, "num_kv_shared_layers": 15}
    with pytest.raises(ModelError, match="num_kv_shared_layers=15: late layers use the keys"):
        layer_count({"model_type": "gemma3n", "text_config": shared})


@pytest.mark.parametrize(
    ("kept", "interval", "types"),
    [
        ((0, 1, 2, 3), 2, "lflf"),
        ((0, 2, 3, 5), None, "llff"),
        ((1, 3, 5), 1, "fff"),
        ((0, 2), 3, "ll"),
    ],
)
def test_a_cadence_becomes_a_list_and_follows_it(
    kept: tuple[int, ...], interval: int | None, types: str
) -> None:
    config = {"num_hidden_layers": 6, "full_attention_interval": 2}
    reduced = reduced_config(config, kept)
    names = {"l": "linear_attention", "f": "full_attention"}
    assert reduced["layer_types"] == [names[letter] for letter in types]
    assert reduced.get("full_attention_interval") == interval


def test_sparse_layers_chosen_by_a_step_are_listed_one_by_one() -> None:
    config = {"num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [1]}
    reduced = reduced_config(config, (1, 2, 3, 5))
    assert (reduced["decoder_sparse_step"], reduced["mlp_only_layers"]) == (1, [0, 1])


@pytest.mark.parametrize(
    ("kept", "step", "experts"),
    [
        ((0, 1, 2, 3), 2, [1, 3]),
        ((1, 2, 3, 5), 1, [0, 2, 3]),
        ((0, 2, 4), 4, []),
        ((1, 3, 5), 1, [0, 1, 2]),
    ],
)
def test_layers_with_experts_are_listed_and_keep_their_cadence_where_they_have_one(
    kept: tuple[int, ...], step: int, experts: list[int]
) -> None:
    stated = {"num_hidden_layers": 6, "interleave_moe_layer_step": 2}
    listed = {**stated, "moe_layers": [1, 3, 5]}
    for config in (stated, listed):
        reduced = reduced_config(config, kept)
        assert (reduced["interleave_moe_layer_step"], reduced["moe_layers"]) == (step, experts)


def test_a_string_with_one_letter_per_layer_is_sliced() -> None:
    config = {"num_hidden_layers": 4, "hybrid_override_pattern": "M-*M"}
    assert reduced_config(config, (0, 2, 3))["hybrid_override_pattern"] == "M*M"


def test_a_list_of_another_length_is_refused() -> None:
    with pytest.raises(ModelError) as raised:
        reduced_config({**CONFIG, "num_hidden_layers": 6}, (0, 1))
    assert str(raised.value) == (
        "config.json's layer_types has 5 entries for 6 layers: they disagree, fix config.json first"
    )


def test_heads_for_multi_token_prediction_are_left_out() -> None:
    config = {"num_hidden_layers": 4, "num_nextn_predict_layers": 1}
    assert reduced_config(config, (0, 1))["num_nextn_predict_layers"] == 0
    assert reduced_config(config, range(4)) == config


def test_generation_settings_about_layers_are_dropped() -> None:
    content = {"eos_token_id": 2, "assistant_early_exit": 4, "dola_layers": [1, 2]}
    assert reduced_generation_config(content) == {"eos_token_id": 2}


def test_a_config_without_a_depth_is_refused() -> None:
    with pytest.raises(ModelError, match="declares no number of decoder layers"):
        layer_count({"model_type": "t5"})
