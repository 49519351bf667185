"""Metrics of a task from its items, with their standard errors."""

import math
from collections.abc import Sequence

from lamina.measure.evaluate import perplexity
from lamina.measure.tasks.files import Metric

SHARES = ("acc", "acc_norm", "exact_match", "top1", "ended", "looped", "capped")
"""Figures between 0 and 1."""

LOWER_IS_BETTER = ("loss", "perplexity", "kl", "looped", "capped", "seconds", "bytes")
"""Ends of the names of figures of which less is better."""

HALF_WIDTH = 1.96
"""Standard errors on each side of a value in its 95 % interval."""


def mean_metric(values: Sequence[float], chance: float | None = None) -> Metric:
    """Return the mean over items."""
    count = len(values)
    mean = math.fsum(values) / count
    squares = math.fsum((value - mean) ** 2 for value in values)
    stderr = math.sqrt(squares / (count - 1) / count) if count > 1 else None
    return Metric(value=mean, stderr=stderr, n=count, chance=chance)


def ratio_metric(totals: Sequence[float], tokens: Sequence[int]) -> Metric:
    """Return a sum per token; its standard error is over documents, whose lengths vary, too.

    A document without tokens is none.
    """
    count, size = sum(length > 0 for length in tokens), sum(tokens)
    ratio = math.fsum(totals) / size if size else math.nan
    pairs = zip(totals, tokens, strict=True)
    squares = math.fsum((total - ratio * length) ** 2 for total, length in pairs)
    stderr = math.sqrt(squares * count / (count - 1)) / size if count > 1 and size else None
    return Metric(value=ratio, stderr=stderr, n=count)


def loss_metrics(nll: Sequence[float], tokens: Sequence[int]) -> dict[str, Metric]:
    """Return the loss in nats per token, and the perplexity."""
    loss = ratio_metric(nll, tokens)
    value = perplexity(loss.value)
    assert value is not None
    stderr = None if loss.stderr is None else value * loss.stderr
    return {"loss": loss, "perplexity": Metric(value=value, stderr=stderr, n=loss.n)}


def as_text(name: str, value: float) -> str:
    """Return a figure as text; shares are in %."""
    return f"{100 * value:.1f} %" if name in SHARES else f"{value:.4g}"


def with_interval(name: str, metric: Metric) -> str:
    """Return a metric as text with its 95 % interval, if that is known."""
    value = as_text(name, metric.value)
    if metric.stderr is None:
        return value
    return f"{value} ± {as_text(name, HALF_WIDTH * metric.stderr)}"
