"""The check of a written model: plain transformers takes every tensor, and misses none."""

from pathlib import Path
from typing import Any

from lamina.depth.blocks import blueprint
from lamina.errors import ModelError
from lamina.weights.header import StoredTensor
from lamina.weights.source import resolve


class Unread:
    """A tensor's place in a model that is built without reading any weights."""

    def __init__(self, stored: StoredTensor) -> None:
        """Stand in for a stored tensor."""
        self.stored = stored

    def get_shape(self) -> list[int]:
        """Return the shape, as a slice of a safetensors file does."""
        return list(self.stored.shape)

    def get_dtype(self) -> str:
        """Return the type, as a slice of a safetensors file does."""
        return self.stored.dtype

    def __getitem__(self, _: Any) -> Any:
        import torch

        return torch.empty(self.stored.shape, device="meta")


def refuse_unloadable(folder: Path) -> None:
    """Let transformers load a model folder by its names and shapes.

    Args:
        folder: With config.json and safetensors.

    Raises:
        ModelError: A file is not whole, or a tensor is missing, has no place or another shape.
    """
    from transformers import AutoConfig

    source = resolve(str(folder))
    stored = source.stored(source.weight_map)
    config = AutoConfig.from_pretrained(folder)
    _, info = type(blueprint(config)).from_pretrained(
        None,
        config=config,
        state_dict={name: Unread(tensor) for name, tensor in stored.items()},
        device_map={"": "meta"},
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    refuse_misfits(f"{folder}", info)


def refuse_misfits(name: str, info: dict[str, Any]) -> None:
    """Raise if transformers found a tensor missing, without a place, or of another shape.

    Args:
        name: Of the model, for the message.
        info: What `from_pretrained(output_loading_info=True)` returned.

    Raises:
        ModelError: There is such a tensor.
    """
    mismatched = {str(entry[0]) for entry in info["mismatched_keys"]}
    wrong = sorted(set(info["missing_keys"]) | set(info["unexpected_keys"]) | mismatched)
    if wrong:
        raise ModelError(
            f"{name}: {len(wrong)} tensors do not fit the model (first: {wrong[0]}): "
            "the checkpoint and its config.json disagree"
        )
