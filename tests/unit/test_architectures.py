"""Removal is exact in every architecture: against the larger model with those blocks skipped."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from lamina.depth.blocks import decoder_stack
from lamina.depth.loading import load_model
from lamina.depth.source import resolve
from tests.architectures import ARCHITECTURES, NUM_LAYERS, save

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
    """The whole model as it was trained, but for blocks that hand on what they were given."""

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
def test_the_smaller_model_is_the_larger_one_with_those_blocks_skipped(
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
    assert decoder_stack(reloaded, len(kept))[1] is not None


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
