"""A model around its decoder layers: embeddings before them, norm and head behind, no layers.

Whatever an architecture does between its layers (masks, rotary embeddings, scaled embeddings, soft
caps on logits) is done by its own forward pass. In the layers' places stand recorders, which note
what each layer is called with, and hand on a hidden state of ours where one is given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lamina.depth.blocks import decoder_stack
from lamina.depth.reduction import Reduction
from lamina.depth.single_layer import load_single_layer

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LayerCall:
    """What a decoder layer is called with besides its hidden state, for one batch size."""

    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def apply(self, block: Any, hidden: "torch.Tensor") -> "torch.Tensor":
        """Run a layer.

        Args:
            block: The decoder layer.
            hidden: (windows, tokens, width).

        Returns:
            Its output, of the same shape.
        """
        output = block(hidden, *self.arguments, **self.options)
        state: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return state


class Host:
    """A model without its decoder layers, on one device."""

    def __init__(
        self, model: Reduction, slices: Mapping[str, Any], dtype: "torch.dtype", device: str
    ) -> None:
        """Load what is in no layer.

        Args:
            model: The whole model.
            slices: Its tensors that belong to no layer, by their names.
            dtype: Of real numbers.
            device: Where to.
        """
        from accelerate import init_empty_weights
        from transformers import AutoModelForCausalLM

        loaded = load_single_layer(model, None, slices, dtype)
        # Buffers such as rotary frequencies are computed, not loaded: they must be real.
        with init_empty_weights(include_buffers=False):
            self.model = AutoModelForCausalLM.from_config(model.config, dtype=dtype)
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

    def begin(
        self, ids: "torch.Tensor", positions: "torch.Tensor | None"
    ) -> "tuple[torch.Tensor, Sequence[LayerCall]]":
        """Return the first layer's input, and what each layer is called with.

        Args:
            ids: Token ids, (windows, tokens), without padding.
            positions: Of each token in its document, of the same shape: where they begin anew, the
                model keeps documents apart. None for one text a window.

        Returns:
            (windows, tokens, width), and one call a layer.
        """
        self._forward(ids, None, positions)
        hidden: torch.Tensor = self.recorders[0].seen
        return hidden, [LayerCall(r.arguments, r.options) for r in self.recorders]

    def logits(self, hidden: "torch.Tensor") -> "torch.Tensor":
        """Return the predictions from the last layer's output.

        Args:
            hidden: (tokens, width).

        Returns:
            (tokens, vocabulary), in float32.
        """
        import torch

        ids = torch.zeros((1, hidden.shape[0]), dtype=torch.long)
        logits: torch.Tensor = self._forward(ids, hidden[None]).logits[0].float()
        return logits

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
    """Return a module that stands in for a layer without weights."""
    from torch import nn

    class Recorder(nn.Module):
        """Notes what it is called with, and hands on what it got, or what it was given."""

        def __init__(self) -> None:
            super().__init__()
            self.block = (block,)  # in a tuple: its weights are not this module's
            self.given: Any = None
            self.seen: Any = None

        def __getattr__(self, name: str) -> Any:
            """Some models ask their layers for attributes, such as attention_type."""
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self.block[0], name)

        def forward(self, hidden_states: Any, *arguments: Any, **options: Any) -> Any:
            """Note the call."""
            self.seen, self.arguments, self.options = hidden_states, arguments, options
            return hidden_states if self.given is None else self.given

    return Recorder()
