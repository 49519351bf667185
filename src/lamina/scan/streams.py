"""Hidden states of the whole model and of every model with something left out, layer by layer.

A model without layer j is the whole model up to j. So when the sweep reaches j, the whole model's
state before it becomes the state of a new stream, which then goes through the layers behind j
beside all others. Leaving out each of L layers so costs L (L + 1) / 2 layer-forwards instead of
L (L - 1) for the reduced models and L for the whole one, and every layer's weights are needed once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.errors import ModelError
from lamina.scan.windows import Windows

if TYPE_CHECKING:
    import torch

    from lamina.scan.layers import LayerStack

TOKENS_AT_ONCE = 2048
"""Tokens in one forward pass of a layer, about."""

PARTS = {
    "attention": ("self_attn", "attention", "attn", "linear_attn"),
    "mlp": ("mlp", "feed_forward", "block_sparse_moe"),
}
"""Names of a layer's sublayers in the architectures."""

Left = tuple[str, int]
"""What a stream has left out: layer, attention or mlp, and of which 0-based layer."""


class Streams:
    """The states of some windows, before or behind one layer."""

    def __init__(
        self, stack: "LayerStack", windows: Windows, *, sublayers: bool, skipped: frozenset[int]
    ) -> None:
        """Begin before the first layer.

        Args:
            stack: The model.
            windows: Calibration text.
            sublayers: Whether streams without a layer's attention or mlp are wanted, too.
            skipped: 0-based layers that are left out of every stream.
        """
        import torch

        self.stack, self.sublayers, self.skipped = stack, sublayers, skipped
        self.windows = len(windows)
        self.at_once = max(1, TOKENS_AT_ONCE // windows.length)
        depth = stack.num_layers - len(skipped)
        begun = [stack.host.begin(w.ids, w.positions) for w in windows.split(self.at_once)]
        first = torch.cat([hidden for hidden, _ in begun])
        self.calls = [calls for _, calls in begun]
        """Of each portion of windows, what each layer is called with."""
        self.left: list[Left] = []
        self.states = first.new_empty((len(self._kinds) * depth, *first.shape))
        """Of each stream in `left`: (streams, windows, tokens, width)."""
        self.boundaries = first.new_empty((depth + 1, *first.shape))
        """The whole model's, before each layer that is not skipped, and behind the last one."""
        self.boundaries[0] = first
        self.done = 0
        """Layers that are behind us, of those that are not skipped."""
        self.layer_forwards = 0
        """How often a layer was applied, once for each stream."""
        self._known = 0
        """The last boundary that is the whole model's."""
        self._marks: dict[int, torch.Tensor] = {}
        """Copies of the streams' states, by how many layers were behind them."""

    def advance(self, index: int, block: Any, tick: Callable[[int], object]) -> None:
        """Send every stream through a layer, and begin those that leave it out.

        Args:
            index: 0-based index of the layer.
            block: The layer.
            tick: Called with 1 for each stream that is through.
        """
        before = self.boundaries[self.done]
        if self.done == self._known:
            self._through(index, block, before, self.boundaries[self.done + 1])
            self._known += 1
            tick(1)
        for state in self.states[: len(self.left)]:
            self._through(index, block, state, state)
            tick(1)
        self._begin(("layer", index)).copy_(before)
        for part in PARTS if self.sublayers else ():
            with silenced(block, part, index):
                self._through(index, block, before, self._begin((part, index)))
            tick(1)
        self.done += 1

    def whole(self) -> "torch.Tensor":
        """Return the whole model's state behind the last layer."""
        return self.boundaries[self.done]

    @property
    def forwards_left(self) -> int:
        """How often a layer has yet to be applied."""
        depth, done = len(self._kept), self.done
        every = len(self._kinds) * (depth * (depth + 1) - done * (done + 1)) // 2
        return every - (self._known - done)

    def mark(self) -> None:
        """Keep a copy of all states as they are now: `leave_out` can go back to it."""
        self._marks[self.done] = self.states[: len(self.left)].clone()

    def leave_out(self, index: int) -> int:
        """Leave one more layer out of every stream, and go back to where that does not matter yet.

        Before that layer no state changes: neither the whole model's nor that of a stream without
        an earlier layer. So the streams go back to their last mark before it, and those that begin
        between there and the layer find the state that they begin with.

        Args:
            index: 0-based index of a layer that is behind us.

        Returns:
            The 0-based index of the layer to go on with.
        """
        position = self._kept.index(index)
        self.skipped |= {index}
        self._known = position
        self._marks = {at: states for at, states in self._marks.items() if at <= position}
        self.done = max(self._marks, default=0)
        self.left = [(kind, kept) for kept in self._kept[: self.done] for kind in self._kinds]
        if self.done:
            self.states[: len(self.left)] = self._marks[self.done]
        return [*self._kept, self.stack.num_layers][self.done]

    def save(self, path: Path, note: dict[str, str]) -> None:
        """Write the states to a file that `restore` reads; it is whole or not there.

        Args:
            path: Of the file.
            note: What else is to be known when it is read.
        """
        from safetensors.torch import save_file

        partial = path.with_suffix(".partial")
        tensors = {"boundaries": self.boundaries[: self.done + 1]}
        tensors["states"] = self.states[: len(self.left)]
        save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, partial, note)
        partial.replace(path)

    def restore(self, path: Path) -> None:
        """Take up the states that were saved behind some layer."""
        from safetensors.torch import load_file

        tensors = load_file(path)
        self.done = self._known = len(tensors["boundaries"]) - 1
        self.boundaries[: self.done + 1] = tensors["boundaries"]
        self.states[: len(tensors["states"])] = tensors["states"]
        self.left = [(kind, index) for index in self._kept[: self.done] for kind in self._kinds]
        self.layer_forwards = len(self._kinds) * self.done * (self.done + 1) // 2

    @property
    def _kept(self) -> list[int]:
        return [index for index in range(self.stack.num_layers) if index not in self.skipped]

    @property
    def _kinds(self) -> tuple[str, ...]:
        return ("layer", *PARTS) if self.sublayers else ("layer",)

    def _begin(self, left: Left) -> "torch.Tensor":
        self.left.append(left)
        return self.states[len(self.left) - 1]

    def _through(self, index: int, block: Any, given: "torch.Tensor", out: "torch.Tensor") -> None:
        parts = zip(given.split(self.at_once), out.split(self.at_once), self.calls, strict=True)
        for source, target, calls in parts:
            target.copy_(calls[index].apply(block, source))
        self.layer_forwards += 1


@contextmanager
def silenced(block: Any, part: str, index: int) -> Iterator[None]:
    """Let one sublayer of a layer give zeros.

    Args:
        block: The layer.
        part: attention or mlp.
        index: The layer's index, for the message.

    Raises:
        ModelError: The layer has no sublayer of a known name.
    """
    modules = [getattr(block, name) for name in PARTS[part] if hasattr(block, name)]
    if not modules:
        raise ModelError(
            f"scan.sublayers=true: layer {index} ({type(block).__name__}) has no {part} "
            f"({', '.join(PARTS[part])}); scan without sublayers"
        )
    hook = modules[0].register_forward_hook(_zeros)
    try:
        yield
    finally:
        hook.remove()


def _zeros(_: Any, __: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (output[0].new_zeros(output[0].shape), *output[1:])
    return output.new_zeros(output.shape)
