"""Hidden states of the full model and of every model with one part removed, layer by layer.

A model without layer j equals the full model up to j. So when the pass reaches j, the full model's
state before it starts a new stream, which then passes through the later layers beside all others.
Removing each of L layers thus takes L (L + 1) / 2 layer-forwards instead of L (L - 1) for the
reduced models and L for the full one, and every layer's weights are needed once.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.errors import ModelError
from lamina.runtime.files import replacing
from lamina.scan.calibration import Windows

if TYPE_CHECKING:
    import torch

    from lamina.scan.layers import LayerCall, LayerStack

TOKENS_AT_ONCE = 2048
"""Approximate tokens in one forward pass of a layer."""

PARTS = {
    "attention": ("self_attn", "attention", "attn", "linear_attn"),
    "mlp": ("mlp", "feed_forward", "block_sparse_moe"),
}
"""The architectures' names for a layer's sublayers."""

Removal = tuple[str, int]
"""What a stream lacks: layer, attention or mlp, and the 0-based index of the layer."""


class Streams:
    """Hidden states of some windows between two layers."""

    def __init__(
        self, stack: "LayerStack", windows: Windows, *, sublayers: bool, skipped: frozenset[int]
    ) -> None:
        """Start before the first layer.

        `sublayers` adds streams without a layer's attention or mlp; every stream lacks the
        `skipped` 0-based layers.
        """
        import torch

        self.stack, self.sublayers, self.skipped = stack, sublayers, skipped
        self.windows = len(windows)
        self.at_once = max(1, TOKENS_AT_ONCE // windows.length)
        depth = stack.num_layers - len(skipped)
        embedded = [stack.shell.embed(w.ids, w.positions) for w in windows.split(self.at_once)]
        first = torch.cat([hidden for hidden, _ in embedded])
        self.calls = [calls for _, calls in embedded]
        """Each layer's call, for each portion of windows."""
        self.removals: list[Removal] = []
        self.states = first.new_empty((len(self._kinds) * depth, *first.shape))
        """State of each stream in `removals`: (streams, windows, tokens, width)."""
        self.boundaries = first.new_empty((depth + 1, *first.shape))
        """The full model's states before each layer that is not skipped, and after the last one."""
        self.boundaries[0] = first
        self.done = 0
        """Number of layers passed, not counting skipped ones."""
        self.layer_forwards = 0
        """Layers applied, counted once per stream."""
        self._known = 0
        """Index of the last boundary that is valid for the full model."""
        self._marks: dict[int, torch.Tensor] = {}
        """Copies of the streams' states, by the number of layers passed."""

    def advance(self, index: int, block: Any, tick: Callable[[int], object]) -> None:
        """Pass every stream through a layer (0-based), start those that lack it, and tick by 1."""
        before = self.boundaries[self.done]
        if self.done == self._known:
            self._apply(index, block, before, self.boundaries[self.done + 1])
            self._known += 1
            tick(1)
        for state in self.states[: len(self.removals)]:
            self._apply(index, block, state, state)
            tick(1)
        self._start(("layer", index)).copy_(before)
        for part in PARTS if self.sublayers else ():
            with silenced(block, part, index):
                self._apply(index, block, before, self._start((part, index)))
            tick(1)
        self.done += 1

    @property
    def forwards_left(self) -> int:
        """Layers still to be applied, counted once per stream."""
        depth, done = len(self._kept), self.done
        every = len(self._kinds) * (depth * (depth + 1) - done * (done + 1)) // 2
        return every - (self._known - done)

    def mark(self) -> None:
        """Keep a copy of the current states, to which `leave_out` can return."""
        self._marks[self.done] = self.states[: len(self.removals)].clone()

    def leave_out(self, index: int) -> int:
        """Skip one more layer, already passed; return the one to continue with (both 0-based).

        Before that layer no state changes, neither the full model's nor that of a stream without an
        earlier layer. So the streams return to their last mark before it, and streams that start
        between the mark and the layer still find the boundary they start from.
        """
        position = self._kept.index(index)
        self.skipped |= {index}
        self._known = position
        self._marks = {at: states for at, states in self._marks.items() if at <= position}
        self.done = max(self._marks, default=0)
        self.removals = [(kind, kept) for kept in self._kept[: self.done] for kind in self._kinds]
        if self.done:
            self.states[: len(self.removals)] = self._marks[self.done]
        return [*self._kept, self.stack.num_layers][self.done]

    def save(self, path: Path, note: dict[str, str]) -> None:
        """Write the states to a file for `restore`, with a note in its metadata."""
        from safetensors.torch import save_file

        tensors = {"boundaries": self.boundaries[: self.done + 1]}
        tensors["states"] = self.states[: len(self.removals)]
        with replacing(path, flush=False) as partial:
            save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, partial, note)

    def restore(self, path: Path) -> None:
        """Read the states that `save` wrote; ValueError if they are those of other windows."""
        from safetensors.torch import load_file

        tensors = load_file(path)
        if tensors["boundaries"].shape[1:] != self.boundaries.shape[1:]:
            raise ValueError(f"{path}: states of another number of windows")
        self.done = self._known = len(tensors["boundaries"]) - 1
        self.boundaries[: self.done + 1] = tensors["boundaries"]
        self.states[: len(tensors["states"])] = tensors["states"]
        self.removals = [(kind, index) for index in self._kept[: self.done] for kind in self._kinds]
        self.layer_forwards = len(self._kinds) * self.done * (self.done + 1) // 2

    @property
    def _kept(self) -> list[int]:
        return [index for index in range(self.stack.num_layers) if index not in self.skipped]

    @property
    def _kinds(self) -> tuple[str, ...]:
        return ("layer", *PARTS) if self.sublayers else ("layer",)

    def _start(self, removal: Removal) -> "torch.Tensor":
        self.removals.append(removal)
        return self.states[len(self.removals) - 1]

    def _apply(self, index: int, block: Any, given: "torch.Tensor", out: "torch.Tensor") -> None:
        parts = zip(given.split(self.at_once), out.split(self.at_once), self.calls, strict=True)
        for source, target, calls in parts:
            target.copy_(run_layer(block, calls[index], source))
        self.layer_forwards += 1


def run_layer(block: Any, call: "LayerCall", states: "torch.Tensor") -> "torch.Tensor":
    """Return a layer's output for hidden states (windows, tokens, width)."""
    arguments, options = call
    output = block(states, *arguments, **options)
    return output[0] if isinstance(output, tuple) else output


def silenced(block: Any, part: str, index: int) -> AbstractContextManager[Any]:
    """Make the attention or mlp of a layer (0-based) return zeros; ModelError without one."""
    modules = [getattr(block, name) for name in PARTS[part] if hasattr(block, name)]
    if not modules:
        raise ModelError(
            f"scan.sublayers=true: layer {index} ({type(block).__name__}) has no {part} "
            f"({', '.join(PARTS[part])}); scan without sublayers"
        )
    return modules[0].register_forward_hook(_zeros)


def _zeros(_: Any, __: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (output[0].new_zeros(output[0].shape), *output[1:])
    return output.new_zeros(output.shape)
