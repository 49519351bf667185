"""DoRA's magnitudes in an adapter's file, under names that both of its readers take.

PEFT 0.21 writes `lora_magnitude_vector`; transformers 5.17 then leaves the magnitudes as they were
before the training, with a warning. With `.weight` behind it, both read the same model.
"""

from pathlib import Path

WRITTEN, READ = "lora_magnitude_vector", "lora_magnitude_vector.weight"


def as_written(name: str) -> str:
    """Return a tensor's name as PEFT writes it."""
    return name.removesuffix(".weight") if name.endswith(READ) else name


def make_readable(path: Path) -> None:
    """Rename the magnitudes in an adapter's file; without any it stays as it is.

    Args:
        path: Of adapter_model.safetensors.
    """
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    if any(name.endswith(WRITTEN) for name in tensors):
        renamed = {
            f"{name}.weight" if name.endswith(WRITTEN) else name: tensor
            for name, tensor in tensors.items()
        }
        save_file(renamed, path, metadata={"format": "pt"})
