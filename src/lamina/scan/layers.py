"""A model's decoder layers, one after the other: from disk as they are needed, or all in memory."""

from collections import defaultdict
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lamina.depth.blocks import decoder_stack
from lamina.depth.reduction import reduction
from lamina.depth.single_layer import load_single_layer
from lamina.depth.surgery import layer_count
from lamina.depth.tensor_names import kept_tensors, layer_of
from lamina.scan.host import Host
from lamina.weights.reading import tensor_slices
from lamina.weights.source import Source

if TYPE_CHECKING:
    import torch


class LayerStack:
    """Gives a model's layers as often as asked; each time they are read at most once."""

    def __init__(
        self, source: Source, slices: dict[str, Any], dtype: "torch.dtype", device: str
    ) -> None:
        """Load what is in no layer.

        Args:
            source: The model's files.
            slices: All its tensors, by name.
            dtype: Of real numbers.
            device: Where the layers compute.
        """
        self.num_layers = layer_count(source.config)
        self.dtype, self.device = dtype, device
        self._whole = reduction(source, range(self.num_layers))
        self._slices: dict[int | None, dict[str, Any]] = defaultdict(dict)
        for name, piece in slices.items():
            layer = layer_of(name)
            if layer is None or layer < self.num_layers:
                self._slices[layer][name] = piece
        self.host = Host(self._whole, self._slices[None], dtype, device)
        self._held: dict[int, Any] = {}

    def hold(self) -> None:
        """Load all layers, and keep them."""
        for index in range(self.num_layers):
            if index not in self._held:
                self._held[index] = self._block(index, self._slices[index])

    def weight_bytes(self) -> tuple[int, int, int]:
        """Return the bytes of what is in no layer, of the largest layer, and of all layers."""
        sizes = {
            layer: sum(piece.stored.size for piece in slices.values()) * self.dtype.itemsize
            for layer, slices in self._slices.items()
        }
        layers = [nbytes for layer, nbytes in sizes.items() if layer is not None]
        return sizes[None], max(layers), sum(layers)

    def blocks(self, start: int, skipped: AbstractSet[int]) -> Iterator[tuple[int, Any]]:
        """Give the layers from `start` on, with their 0-based indices; the next one is read ahead.

        Reading, and copying to the device, is all that the other thread does: building a module
        changes process-wide state.

        Args:
            start: 0-based layer.
            skipped: Layers that are not wanted, and not read.
        """
        wanted = [index for index in range(start, self.num_layers) if index not in skipped]
        if self._held:
            yield from ((index, self._held[index]) for index in wanted)
            return
        with ThreadPoolExecutor(max_workers=1) as reader:
            ahead = [reader.submit(self._read, index) for index in wanted[:1]]
            for index, following in zip(wanted, [*wanted[1:], None], strict=True):
                tensors = ahead.pop().result()
                if following is not None:
                    ahead.append(reader.submit(self._read, following))
                yield index, self._block(index, tensors)

    def _read(self, index: int) -> dict[str, "torch.Tensor"]:
        return {name: piece[...].to(self.device) for name, piece in self._slices[index].items()}

    def _block(self, index: int, tensors: dict[str, Any]) -> Any:
        model = load_single_layer(self._whole, index, tensors, self.dtype, self.device)
        return decoder_stack(model, 1)[1][0].eval()


@contextmanager
def open_stack(source: Source, dtype: "torch.dtype", device: str) -> Iterator[LayerStack]:
    """Open a model's files and give its layers.

    Raises:
        ModelError: A file is missing or not whole, or transformers does not know the architecture.
    """
    every = range(layer_count(source.config))
    mapping = kept_tensors(source.weight_map, every, source.config)
    with tensor_slices(source, mapping) as slices:
        yield LayerStack(source, slices, dtype, device)
