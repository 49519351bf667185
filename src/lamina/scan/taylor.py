"""First-order importance of layers: how much the loss changes as their weights go to zero."""

from lamina.depth.loading import load_model
from lamina.depth.reduction import decoder_stack
from lamina.depth.surgery import layer_count
from lamina.scan.calibration import Windows
from lamina.weights.source import Source


def taylor_importance(source: Source, windows: Windows, device: str) -> tuple[float, ...]:
    """Return the sum of |weight x gradient| over each layer's weights.

    The gradient is that of the mean loss over all scored predictions (Kim et al. 2024, Shortened
    LLaMA, arXiv:2402.02834). The full model and its gradient are in memory, in float32.
    """
    import torch
    from torch.nn.functional import cross_entropy

    every = range(layer_count(source.config))
    model = load_model(source, every, dtype=torch.float32, device=device).eval()
    total = int(windows.scored[:, 1:].sum())
    for window in windows.split(1):
        ids, scored = window.ids.to(device), window.scored[0, 1:].to(device)
        placed = {} if window.positions is None else {"position_ids": window.positions.to(device)}
        logits = model(input_ids=ids, use_cache=False, **placed).logits[0, :-1].float()
        losses = cross_entropy(logits, ids[0, 1:], reduction="none")
        (losses[scored].sum() / total).backward()
    with torch.no_grad():
        return tuple(
            sum(
                (parameter.grad * parameter).abs().sum(dtype=torch.float64).item()
                for parameter in block.parameters()
                if parameter.grad is not None
            )
            for block in decoder_stack(model, len(every))[1]
        )
