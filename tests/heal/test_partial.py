"""adapter=partial: which weights are trained, tied and untied."""

import logging

import pytest
import torch
from transformers import PreTrainedModel

from lamina.depth.loading import load_model
from lamina.depth.reduction import reduction
from lamina.errors import ConfigError
from lamina.heal.adapters import Partial
from lamina.heal.memory import MemoryEstimate
from lamina.runtime.sizes import trained_weights
from lamina.weights.source import resolve
from tests.conftest import REFERENCE, SHORT, train
from tests.reload import loaded

KEPT = range(8)
LAYER = 2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 256 + 2 * 128 + 2 * 32
"""Weights of one layer of the reference model."""
HEAD = 321 * 128
ARGUMENTS = {
    "bf16": False,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "max_length": 512,
    "optim": "adamw_torch_fused",
    "gradient_checkpointing": False,
    "activation_offloading": False,
    "packing": False,
}


def partial(head: str, layers: int = 3) -> Partial:
    return Partial(learning_rate=2e-5, layers=layers, head=head)


def reduced() -> PreTrainedModel:
    return load_model(resolve(str(REFERENCE)), KEPT, dtype=torch.float32)


def trained(model: PreTrainedModel) -> set[str]:
    names = {name for name, weight in model.named_parameters() if weight.requires_grad}
    return {".".join(name.split(".")[1:3]) if "layers" in name else name for name in names}


def test_a_tied_head_stays_frozen_and_a_line_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = reduced()
    with caplog.at_level(logging.INFO):
        partial("auto").freeze(model)
    assert trained(model) == {"layers.5", "layers.6", "layers.7"}
    assert [record.message for record in caplog.records] == [
        "the output head is tied to the embedding and stays frozen; adapter.head=untied trains a "
        "copy of it"
    ]
    assert model.config.tie_word_embeddings


def test_an_untied_head_is_a_copy_and_trained(caplog: pytest.LogCaptureFixture) -> None:
    model, ids = reduced(), torch.arange(20)[None]
    before = model(input_ids=ids).logits
    with caplog.at_level(logging.INFO):
        partial("untied", layers=1).freeze(model)
    assert trained(model) == {"layers.7", "lm_head.weight"}
    assert caplog.records == []
    assert torch.equal(model(input_ids=ids).logits, before)
    assert not model.config.tie_word_embeddings
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert model.get_input_embeddings().weight.any()
    partial("auto", layers=8).freeze(model)  # all layers, and a head that is no longer tied
    assert len(trained(model)) == 9
    with pytest.raises(ConfigError) as refused:
        partial("auto", layers=9).freeze(model)
    assert str(refused.value) == "adapter.layers=9, but only 8 layers stay: use 8 or less"


@pytest.mark.parametrize(("head", "more"), [("auto", 0), ("untied", HEAD)])
def test_the_memory_is_that_of_what_is_trained(head: str, more: int) -> None:
    source, options = resolve(str(REFERENCE)), {"liger": False, "sharded": False}
    whole = reduction(source, KEPT).blueprint.num_parameters()
    estimate = MemoryEstimate.of(
        reduction(source, KEPT).blueprint,
        ARGUMENTS,
        partial(head),
        dtype=torch.float32,
        **options,
    )
    assert (estimate.trained, estimate.differentiated) == (3 * LAYER + more, 3)
    assert estimate.weights == 4 * (whole + more)
    assert estimate.gradients == 4 * estimate.trained
    model = reduced()
    partial(head).freeze(model)
    assert sum(weight.numel() for weight in trained_weights(model)) == estimate.trained
    real = MemoryEstimate.of(model, ARGUMENTS, partial(head), dtype=torch.float32, **options)
    assert real == estimate


def test_a_run_trains_the_head_and_the_last_layers(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("partial")
    done = train(folder / "run", *SHORT, "adapter=partial", "adapter.head=untied")
    assert done.code == 0, done.errors
    result = done.result
    assert result["adapter"] == "partial"
    assert result["trainable_parameters"] == 3 * LAYER + HEAD
    assert done.metrics["eval_loss"] < done.metrics["reduced_eval_loss"]
    found = loaded(done, done.final)
    assert found["loss"] == pytest.approx(done.metrics["eval_sample_loss"], abs=1e-5)
    from safetensors.torch import load_file

    weights, before = load_file(done.final / "model.safetensors"), reduced().state_dict()
    changed = {name for name in before if not torch.equal(weights[name], before[name])}
    assert {name.split(".")[2] for name in changed if "layers" in name} == {"5", "6", "7"}
    assert {name for name in changed if "layers" not in name} == {"lm_head.weight"}
    assert sum(weight.numel() for weight in weights.values()) == result["num_parameters"]
