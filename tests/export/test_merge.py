"""An adapter's updates, one weight at a time, are what PEFT merges in the whole model."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedModel

from lamina.depth.loading import load_model
from lamina.depth.plan import make_plan
from lamina.depth.reduction import reduction
from lamina.depth.tensor_names import layer_of
from lamina.depth.variants import Layers, Original
from lamina.errors import ModelError
from lamina.export.merge import WEIGHTS_FILE, adapter_updates
from lamina.export.reduced import write_cut
from lamina.weights.reading import tensor_slices
from lamina.weights.source import resolve
from tests.architectures import ARCHITECTURES, save
from tests.conftest import no_scores

KEPT = (0, 2, 5)
EVERY = (0, 1, 2, 3, 4, 5)


def trained(
    folder: Path, adapter: Path, kept: tuple[int, ...] = KEPT, **settings: object
) -> PreTrainedModel:
    """Save an adapter with random weights; return the reduced model that it belongs to."""
    torch.manual_seed(1)
    reduced = load_model(resolve(str(folder)), kept, dtype=torch.float32)
    given = {"target_modules": "all-linear", "init_lora_weights": False, "r": 3, **settings}
    model = get_peft_model(reduced, LoraConfig(task_type="CAUSAL_LM", **given))
    model.save_pretrained(adapter)
    return model


STATE_SPACES = {
    "mamba2": {"target_modules": ["in_proj"]},
    "falcon_h1": {"target_modules": ["in_proj", "q_proj", "up_proj"]},
}
"""What PEFT adapts in models whose output projection it refuses."""


@pytest.mark.parametrize("kept", [KEPT, EVERY], ids=["reduced", "whole"])
@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        *((model_type, STATE_SPACES.get(model_type, {})) for model_type in ARCHITECTURES),
        ("llama", {"use_dora": True}),
        ("llama", {"use_rslora": True, "alpha_pattern": {"q_proj": 5}}),
        ("qwen2", {"bias": "all"}),
        ("gpt2", {"bias": "lora_only"}),
        ("llama", {"alpha_pattern": {"layers.1.self_attn.q_proj": 64, "layers.0.mlp.up_proj": 9}}),
        ("llama", {"rank_pattern": {"layers.0.self_attn.q_proj": 5}, "use_dora": True}),
        ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [1, 2]}),
        ("llama", {"exclude_modules": ["layers.1.self_attn.q_proj"]}),
        ("llama", {"target_modules": r".*layers\.[12]\..*_proj"}),
        ("llama", {"target_modules": ["layers.2.mlp.up_proj", "v_proj", "lm_head"]}),
        ("llama", {"modules_to_save": ["lm_head", "input_layernorm"]}),
        ("llama", {"trainable_token_indices": [5, 9]}),
    ],
)
@pytest.mark.filterwarnings("ignore:.*pattern keys did not match:RuntimeWarning")
def test_each_weight_is_merged_as_peft_merges_it(
    model_type: str, settings: dict[str, object], kept: tuple[int, ...], tmp_path: Path
) -> None:
    folder = save(model_type, tmp_path / "model")
    drop_lists(folder)
    model = trained(folder, tmp_path / "adapter", kept, **settings)
    smaller = reduction(resolve(str(folder)), kept)
    variant = Layers(keep=list(kept), drop=None) if kept == KEPT else Original()
    write_cut(make_plan(variant, str(folder), no_scores), tmp_path / "cut")
    before = load_file(tmp_path / "cut" / "model.safetensors")
    updates = adapter_updates(tmp_path / "adapter", smaller)
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    expected = load_file(tmp_path / "merged" / "model.safetensors")
    merged = dict(before)
    for layer in updates.updates:
        group = {name: t.clone() for name, t in before.items() if layer_of(name) == layer}
        merged.update(updates.merged(layer, group))
    assert merged.keys() == expected.keys()
    changed = {name for name in merged if not torch.equal(merged[name], before[name])}
    assert changed == {name for name in merged if not torch.equal(expected[name], before[name])}
    assert len({layer_of(name) for name in changed}) > 1
    for name, weight in merged.items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)


def drop_lists(folder: Path) -> None:
    """Leave it to the config's class what it derives by itself, as published configs do."""
    path = folder / "config.json"
    content = json.loads(path.read_text())
    if "layer_types" not in content:
        return
    path.write_text(json.dumps({**content, "layer_types": None}))
    if getattr(AutoConfig.from_pretrained(folder), "layer_types", None) != content.get(
        "layer_types"
    ):
        path.write_text(json.dumps(content))


def test_an_adapter_for_another_base_is_named(tmp_path: Path) -> None:
    folder = save("llama", tmp_path / "model")
    trained(folder, tmp_path / "adapter")
    shallower = reduction(resolve(str(folder)), (0, 1))
    with pytest.raises(
        ModelError, match=r"trained on a model other .* changes layer 2, but the model has 2 layers"
    ):
        adapter_updates(tmp_path / "adapter", shallower)
    for model_type in ("phi3", "gpt2"):
        other = resolve(str(save(model_type, tmp_path / model_type)))
        updates = adapter_updates(tmp_path / "adapter", reduction(other, KEPT))
        names = {name: name for name in other.weight_map if layer_of(name) == 0}
        with (
            tensor_slices(other, names) as slices,
            pytest.raises(ModelError, match="trained on a model other than its base"),
        ):
            updates.merged(0, slices)


def test_a_damaged_adapter_is_named(tmp_path: Path) -> None:
    folder = save("llama", tmp_path / "model")
    trained(folder, tmp_path / "adapter")
    smaller = reduction(resolve(str(folder)), KEPT)
    path = tmp_path / "adapter" / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="the adapter cannot be read"):
        adapter_updates(tmp_path / "adapter", smaller)
