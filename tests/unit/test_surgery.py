"""The smaller model's config and tensor names."""

from typing import Any

import pytest

from lamina.depth.surgery import kept_tensors, layer_count, reduced_config
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


def test_every_field_that_speaks_of_layers_follows_the_kept_ones() -> None:
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
    ("field", "value"),
    [
        ("pattern", [1, 2, 3, 4, 5]),
        ("num_kv_shared_layers", 2),
        ("num_nextn_predict_layers", 1),
        ("text_config", {"num_hidden_layers": 5}),
    ],
)
def test_a_field_that_cannot_be_carried_over_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ModelError, match=field):
        reduced_config({**CONFIG, field: value}, (0, 1))


def test_a_cadence_without_its_list_is_refused() -> None:
    config = {**CONFIG, "layer_types": None, "full_attention_interval": 4}
    with pytest.raises(ModelError, match="full_attention_interval=4"):
        reduced_config(config, (0, 1))


def test_a_config_without_a_depth_is_refused() -> None:
    with pytest.raises(ModelError, match="declares no number of decoder layers"):
        layer_count({"model_type": "t5"})


def test_kept_tensors_are_renumbered() -> None:
    names = ["model.embed.weight", *(f"model.layers.{i}.mlp.weight" for i in range(12)), "norm"]
    assert kept_tensors(names, (0, 10, 11)) == {
        "model.embed.weight": "model.embed.weight",
        "model.layers.0.mlp.weight": "model.layers.0.mlp.weight",
        "model.layers.10.mlp.weight": "model.layers.1.mlp.weight",
        "model.layers.11.mlp.weight": "model.layers.2.mlp.weight",
        "norm": "norm",
    }


def test_a_checkpoint_that_is_shallower_than_its_config_is_refused() -> None:
    with pytest.raises(ModelError, match="no tensors for layer 2"):
        kept_tensors(["model.layers.0.w", "model.layers.1.w"], (0, 2))


def test_two_stacks_of_layers_are_refused() -> None:
    with pytest.raises(ModelError, match=r"decoder\.layers, encoder\.layers"):
        kept_tensors(["encoder.layers.0.w", "decoder.layers.0.w"], (0,))
