"""A model's decoder layers one after the other, read when needed or all in memory, and its shell.

The shell is the model without its layers: embeddings before them, norm and head behind. Whatever an
architecture does between its layers (masks, rotary embeddings, scaled embeddings, soft caps on
logits) is done by its own forward pass. Recorders take the layers' places: they note what each
layer is called with, and return a given hidden state where there is one.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lamina.depth.loading import load_single_layer, refuse_unfit
from lamina.depth.reduction import (
    Reduction,
    decoder_stack,
    difference_of,
    reduction,
    single_layer_config,
    single_layers,
    true_ties,
)
from lamina.depth.surgery import layer_count
from lamina.depth.tensor_names import is_mtp_tensor, kept_tensors, layer_of
from lamina.errors import ModelError
from lamina.scan.calibration import Windows
from lamina.scan.streams import run_layer
from lamina.weights.reading import tensor_slices
from lamina.weights.source import Source

if TYPE_CHECKING:
    import torch

ROUNDING = 1e-3
"""Largest mean relative difference of a token's float32 states that rounding explains."""

LayerCall = tuple[tuple[Any, ...], dict[str, Any]]
"""A decoder layer's arguments besides its hidden state, for one batch size."""


class ModelShell:
    """A model without its decoder layers, on one device."""

    def __init__(
        self, model: Reduction, slices: Mapping[str, Any], dtype: "torch.dtype", device: str
    ) -> None:
        """Load everything outside the full model's layers; `slices` are those tensors, by name."""
        from accelerate import init_empty_weights
        from transformers import AutoModelForCausalLM

        loaded = load_single_layer(model, None, slices, dtype)
        # Buffers such as rotary frequencies are computed, not loaded, so they must be real.
        with init_empty_weights(include_buffers=False):
            self.model = AutoModelForCausalLM.from_config(
                model.config, dtype=dtype, trust_remote_code=False
            )
        stack = decoder_stack(self.model, model.config.num_hidden_layers)[1]
        self.recorders = [_recorder(block) for block in stack]
        for index, recorder in enumerate(self.recorders):
            stack[index] = recorder
        inside = f"{decoder_stack(loaded, 1)[0]}."
        outside = {k: v for k, v in loaded.state_dict().items() if not k.startswith(inside)}
        self.model.load_state_dict(outside, strict=False, assign=True)
        self.model.tie_weights()
        self.model.to(device).eval()
        self.device = device
        in_tuple = self._expects_tuples()
        for recorder in self.recorders:
            recorder.in_tuple = in_tuple

    def _expects_tuples(self) -> bool:
        """Whether the model takes the first of what a layer returns, as MPT and Bamba do."""
        import torch

        try:
            logits = self._forward(torch.zeros((1, 2), dtype=torch.long), None).logits
        except (IndexError, RuntimeError, ValueError):
            return True
        return bool(logits.dim() < 3)  # each layer has taken off one dimension

    def embed(
        self, ids: "torch.Tensor", positions: "torch.Tensor | None"
    ) -> "tuple[torch.Tensor, Sequence[LayerCall]]":
        """Return the first layer's input (windows, tokens, width), and one call per layer.

        `ids` are (windows, tokens), without padding; where `positions`, of the same shape, restart,
        the model keeps documents apart.
        """
        self._forward(ids, None, positions)
        calls = [(each.arguments, each.options) for each in self.recorders]
        return self.recorders[0].seen, calls

    def logits(self, hidden: "torch.Tensor") -> "torch.Tensor":
        """Turn the last layer's output (tokens, width) into float32 logits (tokens, vocabulary)."""
        import torch

        ids = torch.zeros((1, hidden.shape[0]), dtype=torch.long)
        return self._forward(ids, hidden[None]).logits[0].float()

    def _forward(
        self,
        ids: "torch.Tensor",
        given: "torch.Tensor | None",
        positions: "torch.Tensor | None" = None,
    ) -> Any:
        self.recorders[0].given = given
        placed = {} if positions is None else {"position_ids": positions.to(self.device)}
        return self.model(input_ids=ids.to(self.device), use_cache=False, **placed)


def _recorder(block: Any) -> Any:
    """Return a module without weights that takes a layer's place."""
    from torch import nn

    class Recorder(nn.Module):
        """Notes its arguments, and returns the given hidden state or else the one it received."""

        def __init__(self) -> None:
            super().__init__()
            self.block = (block,)  # in a tuple, so that its weights are not registered here
            self.given: Any = None
            self.seen: Any = None
            self.in_tuple = False

        def __getattr__(self, name: str) -> Any:
            """Some models read attributes of their layers, such as attention_type."""
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self.block[0], name)

        def forward(self, hidden_states: Any, *arguments: Any, **options: Any) -> Any:
            self.seen, self.arguments, self.options = hidden_states, arguments, options
            state = hidden_states if self.given is None else self.given
            return (state, None) if self.in_tuple else state  # Bamba takes two

    return Recorder()


class LayerStack:
    """Yields a model's layers as often as needed; each time they are read at most once."""

    def __init__(
        self, source: Source, slices: dict[str, Any], dtype: "torch.dtype", device: str
    ) -> None:
        """Load everything outside the layers; `slices` are all tensors, by name."""
        self.num_layers = layer_count(source.config)
        self.dtype, self.device = dtype, device
        needed = {k: v for k, v in slices.items() if not is_mtp_tensor(k, self.num_layers)}
        self._model = true_ties(reduction(source, range(self.num_layers)), needed)
        refuse_unfit(f"model_name={source.name}", self._model.config, needed)
        refuse_unlike_alone(self._model)
        self._slices: dict[int | None, dict[str, Any]] = defaultdict(dict)
        for name, piece in needed.items():
            self._slices[layer_of(name)][name] = piece
        self.shell = ModelShell(self._model, self._slices[None], dtype, device)
        self._held: dict[int, Any] = {}

    def hold(self) -> None:
        """Load all layers and keep them in memory."""
        for index in range(self.num_layers):
            if index not in self._held:
                self._held[index] = self._block(index, self._slices[index])

    def weight_bytes(self) -> tuple[int, int, int]:
        """Return the bytes outside the layers, of the largest layer, and of all layers."""
        sizes = {
            layer: sum(piece.stored.size for piece in slices.values()) * self.dtype.itemsize
            for layer, slices in self._slices.items()
        }
        layers = [nbytes for layer, nbytes in sizes.items() if layer is not None]
        return sizes[None], max(layers), sum(layers)

    def blocks(self, start: int, skipped: AbstractSet[int]) -> Iterator[tuple[int, Any]]:
        """Yield the layers from 0-based index `start` on with their indices, reading one ahead.

        The other thread only reads and copies to the device, because building a module changes
        process-wide state. Skipped layers are not read.
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

    def refuse_leak(self, windows: Windows) -> None:
        """Raise a ModelError if a layer does not keep the documents of a window apart.

        Positions that restart mean nothing to recurrent layers, or where attention gets none. The
        first layer of each kind computes a document behind another one, and the same one alone.
        """
        import torch
        from torch.utils._pytree import tree_map_only

        if (pair := windows.neighbours()) is None:
            return
        contents = (single_layer_config(self._model, layer) for layer in range(self.num_layers))
        kinds = [json.dumps(content, sort_keys=True) for content in contents]
        with torch.inference_mode():
            embedded = [self.shell.embed(each.ids, each.positions) for each in pair]
            for index in sorted(map(kinds.index, {*kinds})):
                block = self._block(index, self._slices[index]).float()
                behind, alone = (
                    run_layer(block, tree_map_only(torch.Tensor, _float, calls[index]), x.float())
                    for x, calls in embedded
                )
                moved = (behind[:, -alone.shape[1] :] - alone).norm(dim=-1) / alone.norm(dim=-1)
                if not moved.mean() <= ROUNDING:
                    raise ModelError(
                        f"scan.rows=apart: layer {index} of this {self._model.config.model_type} "
                        "does not keep rows apart that share a window: use scan.rows=joined"
                    )

    def _read(self, index: int) -> dict[str, "torch.Tensor"]:
        return {name: piece[...].to(self.device) for name, piece in self._slices[index].items()}

    def _block(self, index: int, tensors: dict[str, Any]) -> Any:
        model = load_single_layer(self._model, index, tensors, self.dtype, self.device)
        return decoder_stack(model, 1)[1][0].eval()


def _float(tensor: "torch.Tensor") -> "torch.Tensor":
    return tensor.float() if tensor.is_floating_point() else tensor


def refuse_unlike_alone(model: Reduction) -> None:
    """Raise a ModelError if a layer, loaded as a model of its own, would compute anything else."""
    blocks = decoder_stack(model.blueprint, model.config.num_hidden_layers)[1]
    for layer, (block, alone) in enumerate(zip(blocks, single_layers(model), strict=True)):
        if difference := difference_of(block, alone):
            raise ModelError(
                f"model_name={model.config.name_or_path}: layer {layer} of this "
                f"{model.config.model_type} cannot be scored, since it would not compute the same "
                f"alone ({difference}): choose layers without scores, by model.keep or "
                "selector=uniform"
            )


@contextmanager
def open_stack(source: Source, dtype: "torch.dtype", device: str) -> Iterator[LayerStack]:
    """Open a model's files and yield its layers; may raise a ModelError."""
    every = range(layer_count(source.config))
    mapping = kept_tensors(source.weight_map, every, source.config)
    with tensor_slices(source, mapping) as slices:
        yield LayerStack(source, slices, dtype, device)
