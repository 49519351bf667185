"""An adapter's updates, which PEFT itself merges into one layer of the model at a time."""

import re
import warnings
from collections import defaultdict
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.depth.loading import load_single_layer
from lamina.depth.reduction import Reduction, single_layers, untie_head
from lamina.depth.tensor_names import layer_of, with_layer
from lamina.errors import ModelError, reason_of
from lamina.weights.source import ADAPTER_FILE, read_json

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."

NON_LORA_TRAINABLES = ("modules_to_save", "trainable_token_indices")
"""Fields of LoraConfig that train whole weights beside the low-rank updates. transformers 5.17
leaves these out when it loads an adapter; a merged model has them."""

LEFT_OUT = "transformers leaves it out when it loads an adapter"

MAGNITUDE, READABLE = "lora_magnitude_vector", "lora_magnitude_vector.weight"
"""Suffixes of DoRA's magnitudes: as PEFT 0.21 writes them, and as both PEFT and transformers 5.17
read them. Magnitudes named the first way stay untrained in transformers, which only warns."""


def non_lora_trainable(folder: Path) -> str | None:
    """Say which of `NON_LORA_TRAINABLES` an adapter has and loses; None if it has none."""
    config = read_json(folder / ADAPTER_FILE, {"peft_type": str})
    if config["peft_type"] != "LORA":
        raise ModelError(f"{folder / ADAPTER_FILE}: peft_type is {config['peft_type']}, not LORA")
    given = (f"adapter.{key}={config[key]}" for key in NON_LORA_TRAINABLES if config.get(key))
    return next((f"{each} was trained, but {LEFT_OUT}" for each in given), None)


def rename_magnitudes(path: Path) -> None:
    """Rename DoRA's magnitudes in an adapter's file, so that transformers reads them too."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    if any(name.endswith(MAGNITUDE) for name in tensors):
        renamed = {
            f"{name}.weight" if name.endswith(MAGNITUDE) else name: tensor
            for name, tensor in tensors.items()
        }
        save_file(renamed, path, metadata={"format": "pt"})


def merged(model: "PeftModel") -> "PreTrainedModel":
    """Merge an adapter into its base; untie a head if the adapter updates it or the embedding."""
    from peft.tuners.lora import LoraLayer

    base = model.get_base_model()
    if any(
        isinstance(m(), LoraLayer) for m in (base.get_input_embeddings, base.get_output_embeddings)
    ):
        untie_head(base)
    return model.merge_and_unload()


@dataclass(frozen=True)
class AdapterUpdates:
    """An adapter's tensors, by the layer of the reduced model they update."""

    folder: Path
    config: "LoraConfig"
    updates: dict[int | None, dict[str, "torch.Tensor"]]
    """By 0-based layer (None: outside the layers), tensors by name as in the adapter's file, but
    all numbered as layer 0: each layer is merged as a model of its own."""
    reduction: Reduction
    """The reduced model that the adapter belongs to."""

    @property
    def unties(self) -> bool:
        """Whether embedding and head, if they are tied, differ once they are merged."""
        return any(".lora_" in name for name in self.updates.get(None, ()))

    def merged(self, layer: int | None, slices: Mapping[str, Any]) -> dict[str, "torch.Tensor"]:
        """Return one layer's updated weights in float32.

        transformers loads the layer as a model of its own, PEFT merges the adapter into it, and
        transformers returns the weights under their names in the checkpoint. `layer` is 0-based,
        None for the tensors outside the layers; `slices` are the layer's tensors before merging,
        and both they and the result have the names of the reduced checkpoint. Raises ModelError if
        the adapter does not fit the model.
        """
        import torch
        from transformers.core_model_loading import revert_weight_conversion

        model = load_single_layer(self.reduction, layer, slices, torch.float32)
        merged = self._with_updates(layer, model)
        weights = revert_weight_conversion(merged, merged.state_dict())
        prefix = f"{merged.base_model_prefix}."
        found = {}
        for name in slices:
            # Some checkpoints leave out the base model's prefix.
            stored = with_layer(name, 0)
            weight = weights.get(stored, weights.get(prefix + stored))
            if weight is None:
                raise ModelError(
                    f"{self.folder}: {name} cannot be merged layer by layer: train again with "
                    "export.form=merged"
                )
            found[name] = weight
        return found

    def _with_updates(self, layer: int | None, model: Any) -> Any:
        from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

        try:
            with warnings.catch_warnings():
                # PEFT warns of missing target_parameters where a layer has no experts.
                warnings.simplefilter("ignore")
                wrapped = PeftModel(model, config_of_layer(self.config, layer, model))
            outcome = set_peft_model_state_dict(wrapped, self.updates[layer])
            unplaced = outcome.unexpected_keys
        except (RuntimeError, ValueError) as error:
            raise self._other_base(str(error).strip().splitlines()[-1].strip()) from error
        if unplaced:
            raise self._other_base(f"{unplaced[0]} has no place in layer {layer}")
        expected = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
        if missing := sorted(expected.keys() - self.updates[layer].keys()):
            raise self._other_base(f"{missing[0]} of layer {layer} is missing")
        return wrapped.merge_and_unload()

    def _other_base(self, reason: str) -> ModelError:
        return ModelError(
            f"{self.folder}: the adapter was trained on a model other than its base ({reason})"
        )


def config_of_layer(config: "LoraConfig", layer: int | None, model: Any) -> "LoraConfig":
    """Return an adapter's config for one layer (0-based), which is `model`'s only one.

    A config may name layers by their indices, and in `model` that layer has index 0. So PEFT finds
    the modules and their ranks by their own names. None is for what is outside the layers.
    """
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.constants import DUMMY_TARGET_MODULES
    from peft.utils.other import get_pattern_key

    own = {
        name: name if layer is None else with_layer(name, layer)
        for name, _ in model.named_modules()
        if (layer is None) == (layer_of(name) is None)
    }
    found = copy(config)
    found.layers_to_transform = found.layers_pattern = None
    whole = config.modules_to_save or ()
    found.modules_to_save = [m for m in whole if any(name.endswith(m) for name in own)] or None
    if layer is not None:
        found.trainable_token_indices = None
    if config.target_modules is not None:
        found.exclude_modules = None
        targets = [name for name in own if check_target_module_exists(config, own[name])]
        found.target_modules = targets or DUMMY_TARGET_MODULES  # only whole modules were saved
    for field, usual in (("rank_pattern", config.r), ("alpha_pattern", config.lora_alpha)):
        if given := getattr(config, field):
            keys = {name: get_pattern_key(given, own[name]) for name in own}
            named = {re.escape(name): given.get(key, usual) for name, key in keys.items()}
            setattr(found, field, {**named, **given})  # the others are of target_parameters
    return found


def adapter_updates(folder: Path, reduced: Reduction) -> AdapterUpdates:
    """Read an adapter, and the reduced layers that it updates; may raise a ModelError."""
    from peft import PeftConfig
    from safetensors.torch import load_file

    try:
        config = PeftConfig.from_pretrained(str(folder))
        tensors = load_file(folder / WEIGHTS_FILE)
    except Exception as error:  # PEFT raises anything for a damaged field
        raise ModelError(f"{folder}: the adapter cannot be read ({reason_of(error)})") from error
    config.layer_replication = None  # the tensors' layers are already the reduced model's
    updates: dict[int | None, dict[str, torch.Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        name = name.removesuffix(".weight") if name.endswith(READABLE) else name
        updates[layer_of(name)][PREFIX + with_layer(name, 0)] = tensor
    found = AdapterUpdates(folder, config, dict(updates), reduced)
    single_layers(reduced)  # refuses an architecture without them
    depth = reduced.config.num_hidden_layers
    if beyond := [layer for layer in updates if layer is not None and layer >= depth]:
        raise found._other_base(f"it changes layer {max(beyond)}, but the model has {depth} layers")
    return found
