"""An adapter's updates, added to one weight at a time by PEFT itself."""

from collections import defaultdict
from copy import copy, deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.errors import ModelError

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from transformers import PreTrainedModel

PREFIX = "base_model.model."
WEIGHTS_FILE = "adapter_model.safetensors"


@dataclass(frozen=True)
class AdapterUpdates:
    """An adapter's tensors, sorted by the weights of the reduced model that they change."""

    config: "LoraConfig"
    """PEFT's settings."""

    updates: dict[str, dict[str, "torch.Tensor"]]
    """By the name of a module: its tensors, by their names in the adapter's file."""

    replaced: dict[str, "torch.Tensor"]
    """Weights that were trained themselves, such as biases, by the model's name of them."""

    model: "PreTrainedModel"
    """The reduced model without weights."""

    def merged(self, name: str, weight: "torch.Tensor") -> "torch.Tensor":
        """Return a weight with its update.

        Args:
            name: The model's name of it.
            weight: As the base has it, in float32.
        """
        if name in self.replaced:
            return self.replaced[name]
        from peft import inject_adapter_in_model, set_peft_model_state_dict

        path = name.removesuffix(".weight")
        holder = _holding(path, _filled(self.model.get_submodule(path), weight))
        holder = inject_adapter_in_model(self.config, holder)
        set_peft_model_state_dict(holder, self.updates[path])
        layer: Any = holder.get_submodule(path)
        layer.merge()
        return layer.get_base_layer().weight.detach()

    def names(self) -> set[str]:
        """Return the model's names of all weights that change."""
        return {f"{path}.weight" for path in self.updates} | self.replaced.keys()


def adapter_updates(folder: Path, model: "PreTrainedModel") -> AdapterUpdates:
    """Read an adapter and hold it against the reduced model.

    Args:
        folder: With adapter_config.json and adapter_model.safetensors.
        model: The reduced model without weights.

    Raises:
        ModelError: The adapter is of a kind that is not merged here, or belongs to another model.
    """
    from peft import PeftConfig
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = copy(PeftConfig.from_pretrained(str(folder)))
        tensors = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{folder}: the adapter cannot be read ({reason})") from error
    config.layer_replication = None  # the names below are already those of the reduced model
    updates: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    replaced: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        path, found, _ = key.removeprefix(PREFIX).partition(".lora_")
        if found:
            updates[path][key.removeprefix(PREFIX)] = tensor
        else:
            replaced[path.replace(".base_layer.", ".")] = tensor
    _refuse_other_model(folder, dict(updates), replaced, model)
    return AdapterUpdates(config, dict(updates), replaced, model)


def _refuse_other_model(
    folder: Path, updates: dict[str, Any], replaced: dict[str, Any], model: "PreTrainedModel"
) -> None:
    modules = dict(model.named_modules())
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for path, tensors in updates.items():
        weight = getattr(modules.get(path), "weight", None)
        inner = [t.shape[1] for name, t in tensors.items() if ".lora_A." in name]
        outer = [t.shape[0] for name, t in tensors.items() if ".lora_B." in name]
        if weight is None or sorted(weight.shape) != sorted(inner + outer):
            raise _other_base(folder, path)
    for name, tensor in replaced.items():
        if shapes.get(name) != tuple(tensor.shape):
            raise _other_base(folder, name)


def _other_base(folder: Path, name: str) -> ModelError:
    return ModelError(
        f"{folder}: the adapter's {name} does not fit its base: it was trained on another model"
    )


def _filled(leaf: "torch.nn.Module", weight: "torch.Tensor") -> "torch.nn.Module":
    """Copy a module without weights, and give it one; nothing else of it is needed."""
    filled = deepcopy(leaf)
    filled.weight = type(leaf.weight)(weight, requires_grad=False)
    if getattr(filled, "bias", None) is not None:
        filled.bias = type(leaf.bias)(weight.new_zeros(leaf.bias.shape), requires_grad=False)
    return filled


def _holding(path: str, module: "torch.nn.Module") -> "torch.nn.Module":
    """Put a module at its own path of an otherwise empty model, where PEFT looks for it."""
    import torch

    root = parent = torch.nn.Module()
    *parents, last = path.split(".")
    for name in parents:
        child = torch.nn.Module()
        parent.add_module(name, child)
        parent = child
    parent.add_module(last, module)
    return root
