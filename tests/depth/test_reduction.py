"""The proof that blocks stay unchanged, and which reduced models an adapter can rebuild."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from lamina.depth.layer_sets import half_open_ranges
from lamina.depth.loading import load_model
from lamina.depth.reduction import (
    adapter_form_is_exact,
    blueprint,
    decoder_stack,
    refuse_changed_blocks,
)
from lamina.errors import ModelError
from lamina.weights.source import resolve
from tests.architectures import ARCHITECTURES, save

KEPT = (0, 2, 3, 5)

EXACT_AS_ADAPTER = {"qwen2", "qwen3_moe", "llama", "mistral", "phi3", "falcon_h1"}


def model_of(model_type: str, **changes: Any) -> Any:
    config = AutoConfig.for_model(model_type, **{**ARCHITECTURES[model_type], **changes})
    return blueprint(config)


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        # The list truncated instead of sliced, as a published tool does.
        (
            "gemma3_text",
            {"sliding_window_pattern": 3},
            r"layer 2 .* layer 1 \(self_attn.is_sliding: False",
        ),
        ("smollm3", {"use_sliding_window": False}, "self_attn.use_rope: 0 would become 1"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "attn.scaling: .* would become"),
        ("qwen3_moe", {}, "mlp: .*MoeSparseMoeBlock would become .*MLP"),
        ("qwen3_next", {}, "would become"),
    ],
)
def test_a_block_changed_by_its_position_is_named(
    model_type: str, changes: dict[str, Any], message: str
) -> None:
    depth = "n_layer" if model_type == "gpt2" else "num_hidden_layers"
    smaller = model_of(model_type, **changes, **{depth: 4})
    with pytest.raises(ModelError, match=message):
        refuse_changed_blocks(model_of(model_type, **changes), smaller, (0, 2, 3, 4))


def test_blocks_that_only_move_are_accepted() -> None:
    smaller = model_of("llama", num_hidden_layers=4)
    refuse_changed_blocks(model_of("llama"), smaller, KEPT)


def test_a_model_without_such_a_list_of_layers_is_refused() -> None:
    with pytest.raises(ModelError, match="LlamaForCausalLM has no list of 5 decoder layers"):
        decoder_stack(model_of("llama"), 5)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_adapter_form_is_exact_where_claimed(model_type: str, tmp_path: Path) -> None:
    folder = save(model_type, tmp_path / "base")
    reduced = load_model(resolve(str(folder)), KEPT, dtype=torch.float32)
    exact = adapter_form_is_exact(reduced)
    assert exact == (model_type in EXACT_AS_ADAPTER)
    if not exact:
        return
    torch.manual_seed(1)
    # PEFT refuses LoRA on the output projection of state spaces.
    targets = ["q_proj", "up_proj"] if model_type == "falcon_h1" else "all-linear"
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=targets, init_lora_weights=False)
    model = get_peft_model(reduced, config).eval()
    model.peft_config["default"].layer_replication = half_open_ranges(KEPT)
    model.save_pretrained(tmp_path / "adapter")
    ids = torch.arange(10)[None]
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, reloaded.eval()(ids).logits)
