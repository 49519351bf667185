"""The arithmetic of both repairs: a projection refitted, and outputs scaled."""

from copy import deepcopy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

RIDGE = 0.01
"""How much a fit avoids changes, as a share of the mean square of the projection's inputs."""


class LeastSquares:
    """A fit of a linear layer's weight that brings hidden states closest to wanted ones.

    It adds to the weight the D that minimizes the mean of |a Dᵀ - r|² / |x|² + RIDGE m |D|² over
    tokens, where a is the layer's input, x the wanted state, r what is missing of it, and m the
    mean of a² / |x|² over tokens and inputs. Errors are relative, as the next norm sees them;
    otherwise a few tokens with huge states would decide the fit. This is ReplaceMe's fit (Shopkhoev
    et al. 2025, arXiv:2505.02819), but of the whole weight.
    """

    def __init__(self, inputs: int, outputs: int, device: "torch.device | str") -> None:
        """Start without a token; the sums are in float64."""
        import torch

        self.gram = torch.zeros((inputs, inputs), dtype=torch.float64, device=device)
        self.cross = torch.zeros((inputs, outputs), dtype=torch.float64, device=device)
        self.error, self.tokens = 0.0, 0
        """Sum of |r|² / |x|², and number of tokens."""

    def add(self, inputs: "torch.Tensor", missing: "torch.Tensor", wanted: "torch.Tensor") -> None:
        """Add tokens: (tokens, inputs), and what the wanted states lack (tokens, width)."""
        scale = 1 / wanted.float().norm(dim=-1, keepdim=True).clamp_min(1e-12)
        a, r = inputs.float() * scale, missing.float() * scale
        self.gram += a.T @ a
        self.cross += a.T @ r
        self.error += float(r.double().square().sum())
        self.tokens += len(a)

    def change(self) -> "torch.Tensor":
        """Return D, in the shape of the layer's weight (outputs, inputs) and float64, once."""
        import torch

        ridge = RIDGE * float(self.gram.diagonal().mean())
        self.gram.diagonal().add_(ridge or 1.0)
        return torch.cholesky_solve(self.cross, torch.linalg.cholesky(self.gram)).T


def squared_error(wanted: "torch.Tensor", found: "torch.Tensor") -> float:
    """Return the sum over tokens of |wanted - found|² / |wanted|²."""
    missing = (wanted.float() - found.float()).norm(dim=-1)
    return float((missing / wanted.float().norm(dim=-1).clamp_min(1e-12)).double().square().sum())


def growth(before: "torch.Tensor", after: "torch.Tensor") -> float:
    """Return how much larger states are after a cut: the mean ratio of the tokens' norms.

    A state of zeros, such as an embedding that was never trained, has no ratio.
    """
    import torch

    before, after = (states.norm(dim=-1, dtype=torch.float32) for states in (before, after))
    return float((after / before)[before > 0].double().mean())


def divide(module: "nn.Module", factor: float) -> None:
    """Divide the output of a linear layer or a norm by a factor, in its weights."""
    import torch

    with torch.no_grad():
        for name, weight in module.named_parameters():
            offset = _offset(module) if name == "weight" else 0.0
            weight.copy_((weight.double() + offset) / factor - offset)


def _offset(module: "nn.Module") -> float:
    """Return what a module adds to its weight before it uses it: Gemma's norms add 1."""
    import torch

    weight = module.get_parameter("weight")
    if weight.dim() != 1:
        return 0.0
    probe = deepcopy(module)
    probe.get_parameter("weight").zero_()
    return round(float(probe(torch.ones_like(weight)[None]).flatten()[0]))
