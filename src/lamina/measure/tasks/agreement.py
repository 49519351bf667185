"""How far a model's predictions are from the original's on the same text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lamina.measure.tasks.figures import ratio_metric
from lamina.measure.tasks.files import Agreement, ItemResult
from lamina.measure.tasks.forward import Row, predictions

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

AT_ONCE = 256
"""Tokens whose distributions are compared at once; each is as wide as the vocabulary."""


def divergences(
    original: "PreTrainedModel", rows: Sequence[Row], logits: "torch.Tensor", where: "torch.Tensor"
) -> list[tuple[float, int]]:
    """Return each row's summed divergence from the original, in nats, and its equal first choices.

    `logits` and `where` are the other model's `predictions` for the rows.
    """
    import torch

    known, _ = predictions(original, rows)
    kl, same = [], []
    with torch.inference_mode():
        for ours, theirs in zip(logits.split(AT_ONCE), known.split(AT_ONCE), strict=True):
            p, q = theirs.log_softmax(-1).to(ours.device), ours.log_softmax(-1)
            kl.append((p.exp() * (p - q)).sum(-1))
            same.append(p.argmax(-1) == q.argmax(-1))
        counts = [len(row.sources) for row in rows]
        parts = (torch.cat(each)[where].split(counts) for each in (kl, same))
        pairs = zip(*parts, strict=True)
        return [(kl.double().sum().item(), int(same.sum())) for kl, same in pairs]


def agreement(results: Sequence[ItemResult]) -> Agreement:
    """Return a task's agreement; its errors are over documents."""
    tokens = [each.tokens or 0 for each in results]
    kl = ratio_metric([each.kl or 0.0 for each in results], tokens)
    return Agreement(kl=kl, top1=ratio_metric([each.top1 or 0 for each in results], tokens))
