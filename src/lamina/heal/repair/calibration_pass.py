"""One pass over calibration windows that finds a repair, layer by layer from disk.

Two hidden states of each window pass through the layers: the original model's through all of them,
the reduced model's through the kept ones. After a cut, the original's state is the one to match.
The reduced model's state continues as repaired, so the next repair also corrects what this one
leaves.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lamina.errors import ModelError
from lamina.heal.repair.fitting import LeastSquares, growth, squared_error
from lamina.heal.repair.methods import CLOSED_FORM, cuts_of, down_projection
from lamina.runtime.console import stage
from lamina.scan.calibration import Windows
from lamina.scan.streams import TOKENS_AT_ONCE, run_layer

if TYPE_CHECKING:
    import torch

    from lamina.scan.layers import LayerStack


class CalibrationPass:
    """The pass; `cuts` and `weights` are what it found."""

    def __init__(
        self, method: str, stack: "LayerStack", windows: Windows, kept_layers: Sequence[int]
    ) -> None:
        """Start before the first layer; `kept_layers` are 0-based and ascending."""
        self.method, self.stack, self.kept_layers = method, stack, tuple(kept_layers)
        self.at_once = max(1, TOKENS_AT_ONCE // windows.length)
        self.portions = list(windows.split(self.at_once))
        self.cuts: list[dict[str, Any]] = []
        """Of each cut, as in result.json."""
        self.weights: dict[str, torch.Tensor] = {}
        """New weights, by the 0-based position of their layer among the kept ones and their name in
        it: 7.mlp.down_proj.weight."""

    def run(self) -> None:
        """Pass all windows up to the end of the last cut."""
        import torch

        cuts = cuts_of(self.kept_layers, self.stack.num_layers)
        starts, ends = {cut.start for cut in cuts}, {cut.stop: cut for cut in cuts}
        last = cuts[-1].stop
        with torch.no_grad(), stage("repairing", last, "layers") as shown:
            embedded = [self.stack.shell.embed(w.ids, w.positions) for w in self.portions]
            self.calls = [calls for _, calls in embedded]
            original = reduced = torch.cat([states for states, _ in embedded])
            del embedded
            waiting = None
            unused = frozenset(range(last, self.stack.num_layers))
            for index, block in self.stack.blocks(0, unused):
                is_same = reduced is original
                original = self._through(index, block, original)
                if index + 1 in starts:  # repaired once the original's state after the cut is known
                    waiting = block
                elif index in self.kept_layers:
                    reduced = original if is_same else self._through(index, block, reduced)
                if cut := ends.get(index + 1):
                    reduced = self._repaired(cut, waiting, reduced, original)
                    waiting = None
                shown.advance()

    def _repaired(
        self, cut: range, block: Any, states: "torch.Tensor", wanted: "torch.Tensor"
    ) -> "torch.Tensor":
        """Repair a cut; return the reduced model's states after it.

        `states` enter `block`, the layer before the cut, or the cut itself if there is none.
        """
        about: dict[str, Any] = {"removed": [cut.start, cut.stop]}
        self.cuts.append(about)
        if self.method == CLOSED_FORM:
            return self._fitted(cut.start - 1, block, states, wanted, about)
        if block is not None:
            states = self._through(cut.start - 1, block, states)
        about["factor"] = growth(states, wanted)
        return states * about["factor"]

    def _fitted(
        self,
        index: int,
        block: Any,
        states: "torch.Tensor",
        wanted: "torch.Tensor",
        about: dict[str, Any],
    ) -> "torch.Tensor":
        name = down_projection(block)
        assert name is not None
        projection, seen = block.get_submodule(name), list[Any]()
        weight = projection.weight
        fit = LeastSquares(weight.shape[1], weight.shape[0], weight.device)
        hook = projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        given_parts = zip(
            states.split(self.at_once), wanted.split(self.at_once), self.calls, strict=True
        )
        for given, target, calls in given_parts:
            missing = target.float() - run_layer(block, calls[index], given).float()
            fit.add(seen.pop().flatten(0, -2), missing.flatten(0, -2), target.flatten(0, -2))
        hook.remove()
        weight.data = (weight.double() + fit.change()).to(weight.dtype)
        repaired = self._through(index, block, states)
        parts = zip(wanted.split(self.at_once), repaired.split(self.at_once), strict=True)
        before = fit.error / fit.tokens
        after = sum(squared_error(target, made) for target, made in parts) / fit.tokens
        if not after <= before:
            raise ModelError(
                f"repair={self.method}: a new {name} of layer {index} does not bring the hidden "
                f"states closer (error {before:.3g}, then {after:.3g}): use repair=none"
            )
        about |= {"layer": index, "error_before": before, "error_after": after}
        self.weights[f"{self.kept_layers.index(index)}.{name}.weight"] = weight.detach()
        return repaired

    def _through(self, index: int, block: Any, states: "torch.Tensor") -> "torch.Tensor":
        """Return the output of a layer (0-based) for all windows."""
        import torch

        made = torch.empty_like(states)
        parts = zip(states.split(self.at_once), made.split(self.at_once), self.calls, strict=True)
        for given, place, calls in parts:
            place.copy_(run_layer(block, calls[index], given))
        return made
