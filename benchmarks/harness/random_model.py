"""Random Qwen3 models, written as a stream, so that one of 16 GB needs little memory."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from lamina.depth.tensor_names import layer_of
from lamina.errors import ModelError
from lamina.weights.header import StoredTensor
from lamina.weights.source import Source, resolve
from lamina.weights.writing import Outgoing, write_shards

LAYERS = 36


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a model, named as in its config."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int


SHAPES = {
    "small": Shape(
        hidden_size=1024,
        intermediate_size=3072,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=32768,
    ),
    "8b": Shape(
        hidden_size=4096,
        intermediate_size=12288,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
    ),
}
"""1.3 GB, and 16.4 GB: the shape of Qwen3-8B."""

NOISE_LENGTH = 2**23 - 15
"""Numbers in the noise that fills all tensors. A prime: no two tensors begin alike."""

STEP = 1_000_003
"""How much further on in the noise the next tensor begins."""


def tensors(shape: Shape, layers: int) -> dict[str, StoredTensor]:
    """Return the tensors of a checkpoint with this many layers, by transformers' own names."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config(shape, layers))
    named = model.state_dict().items()
    return {name: StoredTensor("BF16", tuple(tensor.shape)) for name, tensor in named}


def config(shape: Shape, layers: int) -> Any:
    """Return the config of a model with this many layers."""
    from transformers import Qwen3Config

    return Qwen3Config(
        **asdict(shape),
        num_hidden_layers=layers,
        tie_word_embeddings=False,
        architectures=["Qwen3ForCausalLM"],
        dtype="bfloat16",
    )


@contextmanager
def place(folder: Path | None) -> Iterator[Path]:
    """Yield the given folder, or a temporary one."""
    if folder is not None:
        yield folder.expanduser().resolve()
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def generate(folder: Path, shape: Shape) -> None:
    """Write a random model, unless the folder already holds it."""
    wanted = tensors(shape, LAYERS)
    if is_complete(folder, wanted):
        return
    print(f"generating {sum(stored.nbytes for stored in wanted.values()) / 1e9:.1f} GB")
    folder.mkdir(parents=True, exist_ok=True)
    filled = {
        name: Outgoing(stored, partial(blocks, number, stored.nbytes))
        for number, (name, stored) in enumerate(wanted.items())
    }
    write_shards(folder, filled, lambda _: None)
    # Written last: a folder without it is incomplete.
    config(shape, LAYERS).save_pretrained(folder)


def is_complete(folder: Path, wanted: dict[str, StoredTensor]) -> bool:
    """Say whether a folder holds exactly these tensors, in files of the right length."""
    try:
        return resolve(str(folder)).all_stored() == wanted
    except ModelError:
        return False


def blocks(number: int, nbytes: int) -> Iterator[memoryview]:
    """Yield a tensor's bytes: the noise, repeated, from the tensor's own offset."""
    block = noise()
    start = 2 * (number * STEP % NOISE_LENGTH)
    while nbytes:
        piece = block[start : start + nbytes]
        yield piece
        nbytes, start = nbytes - len(piece), 0


@cache
def noise() -> memoryview:
    """Return bfloat16 numbers of the size of weights, as bytes."""
    import torch

    generator = torch.Generator().manual_seed(1)
    numbers = torch.randn(NOISE_LENGTH, generator=generator) * 0.02
    return memoryview(numbers.to(torch.bfloat16).view(torch.uint8).numpy())


def refuse_difference(model: Path, cut: Path, kept: dict[str, StoredTensor]) -> None:
    """Exit unless a cut model holds exactly the kept tensors under their names.

    Compares the name, type and shape of every tensor, and the bytes of those outside the layers and
    in the first and the last layer. They are memory-mapped, so none has to fit into memory.
    """
    from torch import equal

    source, written = resolve(str(model)), resolve(str(cut))
    if written.all_stored() != kept:
        sys.exit(f"error: {cut} does not hold the kept tensors, or more than those")
    last = max(layer for name in kept if (layer := layer_of(name)) is not None)
    for name in (name for name in kept if layer_of(name) in (None, 0, last)):
        if not equal(mapped(source, name), mapped(written, name)):
            sys.exit(f"error: {cut}: {name} is not what it was")


def mapped(source: Source, name: str) -> Any:
    """Return a memory-mapped tensor."""
    from safetensors import safe_open

    with safe_open(source.folder / source.weight_map[name], framework="pt") as file:
        return file.get_tensor(name)
