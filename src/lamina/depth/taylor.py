"""First-order importance of layers: how much the loss changes as their weights go to zero."""

from typing import TYPE_CHECKING

from lamina.depth.blocks import decoder_stack
from lamina.depth.loading import load_model
from lamina.depth.source import Source
from lamina.depth.surgery import layer_count

if TYPE_CHECKING:
    import torch


def taylor_importance(source: Source, ids: "torch.Tensor", device: str) -> tuple[float, ...]:
    """Return the sum of |weight x gradient| over each layer's weights.

    The gradient is that of the mean next-token loss over all windows (Kim et al. 2024, Shortened
    LLaMA, arXiv:2402.02834). The whole model and its gradient are in memory, in float32.

    Args:
        source: The model.
        ids: Calibration windows, (windows, tokens).
        device: Where to compute.
    """
    import torch
    from torch.nn.functional import cross_entropy

    every = range(layer_count(source.config))
    model = load_model(source, every, dtype=torch.float32, device=device).eval()
    for row in ids.to(device):
        logits = model(input_ids=row[None], use_cache=False).logits[0, :-1].float()
        (cross_entropy(logits, row[1:]) / len(ids)).backward()
    with torch.no_grad():
        return tuple(
            sum(
                (parameter.grad * parameter).abs().sum(dtype=torch.float64).item()
                for parameter in block.parameters()
                if parameter.grad is not None
            )
            for block in decoder_stack(model, len(every))[1]
        )
