"""Which tensors stay, and under which names."""

import pytest

from lamina.depth.tensor_names import kept_tensors, layer_of
from lamina.errors import ModelError


def config(num_layers: int, **fields: int) -> dict[str, int]:
    return {"num_hidden_layers": num_layers, **fields}


def test_kept_tensors_are_renumbered() -> None:
    names = ["model.embed.weight", *(f"model.layers.{i}.mlp.weight" for i in range(12)), "norm"]
    assert kept_tensors(names, (0, 10, 11), config(12)) == {
        "model.embed.weight": "model.embed.weight",
        "model.layers.0.mlp.weight": "model.layers.0.mlp.weight",
        "model.layers.10.mlp.weight": "model.layers.1.mlp.weight",
        "model.layers.11.mlp.weight": "model.layers.2.mlp.weight",
        "norm": "norm",
    }


def test_an_expert_index_is_not_a_layer_index() -> None:
    names = [f"model.layers.{i}.mlp.experts.{e}.up.weight" for i in range(2) for e in range(3)]
    kept = kept_tensors(names, (1,), config(2))
    assert kept == {n: n.replace("layers.1", "layers.0") for n in names if "layers.1" in n}
    assert layer_of("model.layers.1.mlp.experts.2.up.weight") == 1
    assert layer_of("transformer.h.3.ln_1.bias") == 3
    assert layer_of("lm_head.weight") is None


def test_heads_for_multi_token_prediction_are_left_out_of_a_reduced_model() -> None:
    layers = [f"model.layers.{i}.w" for i in range(3)]
    separate = [*layers, "mtp.layers.0.w", "mtp.norm.weight"]
    assert kept_tensors(separate, (0, 2), config(3)).keys() == {layers[0], layers[2]}
    appended = [*layers, "model.layers.3.w"]
    fields = config(3, num_nextn_predict_layers=1)
    assert kept_tensors(appended, (0, 2), fields).keys() == {layers[0], layers[2]}
    assert kept_tensors(appended, range(3), fields) == {name: name for name in appended}
    assert layer_of("mtp.layers.0.w") is None


def test_a_checkpoint_that_is_shallower_than_its_config_is_refused() -> None:
    with pytest.raises(ModelError) as raised:
        kept_tensors(["model.layers.0.w", "model.layers.1.w"], (0, 1), config(3))
    assert str(raised.value) == (
        "the checkpoint has no tensors for layer 2, but its config.json declares 3 layers: "
        "it would get random weights; fix config.json first"
    )


def test_a_checkpoint_that_is_deeper_than_its_config_is_refused() -> None:
    names = [f"model.layers.{i}.w" for i in range(4)]
    with pytest.raises(ModelError) as raised:
        kept_tensors(names, (0, 1), config(3))
    assert str(raised.value) == (
        "the checkpoint has tensors for layer 3, but its config.json declares only 3 layers: "
        "fix config.json first"
    )


def test_two_stacks_of_layers_are_refused() -> None:
    with pytest.raises(ModelError) as raised:
        kept_tensors(["encoder.layers.0.w", "decoder.layers.0.w"], (0,), config(1))
    assert str(raised.value) == (
        "the checkpoint has several stacks of layers (decoder.layers, encoder.layers): "
        "only decoder language models with a single stack can be reduced"
    )
