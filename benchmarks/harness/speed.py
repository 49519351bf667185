"""Tokens per second and MFU computed by hand, from stamped.py's stamps and a Qwen3's config.json.

    seconds   from the end of the last warm-up step (a tenth of the steps, 2 to 10) to the end of
              the last step, without what lies between a step's end and the end of an evaluation
              or save behind it
    tokens/s  lengths of the documents of those steps, over seconds
    MFU       operations of those steps, over seconds, over the peak; `operations` writes them out
              for this one architecture

The peak is the accelerator's. A CPU's is not known: the fastest multiplication of two
1024 x 1024 matrices seen here stands for it.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RANK = 16
"""Of every adapter that is timed here."""


@dataclass(frozen=True)
class Speed:
    """What one training reached."""

    tokens_per_second: float
    mfu: float
    seconds: float
    """Of the whole training."""


def by_hand(
    stamps: Mapping[str, Any], config: Mapping[str, Any], *, layers: int, full: bool, peak: float
) -> Speed:
    """Compute the speed from stamps.

    Args:
        stamps: As stamped.py writes them.
        config: The model's config.json.
        layers: How many of its layers stay.
        full: Whether every weight is trained, or an adapter.
        peak: Operations per second.
    """
    steps = stamps["steps"]
    warm = min(max(2, -(-len(steps) // 10)), 10)
    seconds = steps[-1] - steps[warm - 1] - left_out(stamps["left_out"], steps[warm - 1], steps[-1])
    steady = [(lengths, targets) for step, lengths, targets in stamps["batches"] if step >= warm]
    documents = [length for lengths, _ in steady for length in lengths]
    targets = sum(targets for _, targets in steady)
    work = operations(config, documents, targets, layers=layers, full=full)
    return Speed(
        tokens_per_second=sum(documents) / seconds,
        mfu=work / seconds / peak,
        seconds=stamps["end"] - stamps["begin"],
    )


def left_out(spans: Sequence[tuple[float, float]], begin: float, end: float) -> float:
    """Return the seconds in some spans, of which several may begin at one step's end."""
    longest: dict[float, float] = {}
    for since, until in spans:
        longest[since] = max(until, longest.get(since, since))
    return sum(until - since for since, until in longest.items() if begin <= since < end)


def operations(
    config: Mapping[str, Any], documents: Sequence[int], targets: int, *, layers: int, full: bool
) -> float:
    """Return the operations of training a Qwen3 on some documents, written out.

    Args:
        config: Its config.json.
        documents: Their lengths in tokens.
        targets: Tokens whose prediction is trained.
        layers: How many of its layers stay.
        full: Whether every weight is trained, or an adapter on every linear layer.
    """
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, head_dim = config["num_attention_heads"], config["head_dim"]
    queries, keys = heads * head_dim, config["num_key_value_heads"] * head_dim
    shapes = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
    shapes += [(hidden, inner), (hidden, inner), (inner, hidden)]
    matrices = sum(a * b for a, b in shapes)
    head = hidden * config["vocab_size"]
    pairs = sum(length * (length + 1) / 2 for length in documents)
    attention = 12 * layers * queries * pairs
    if full:
        return 6 * layers * matrices * sum(documents) + 6 * head * targets + attention
    adapter = sum(RANK * (a + b) for a, b in shapes)
    a_token = layers * (4 * matrices + 6 * adapter)
    # Nothing trained precedes the first layer's queries, keys and values.
    a_token -= 2 * hidden * (queries + 2 * keys) + 2 * 3 * RANK * hidden
    return a_token * sum(documents) + 4 * head * targets + attention


def machine_peak(dtype: str = "float32") -> float:
    """Return the operations per second that this machine can reach: known, or measured."""
    from lamina.measure.speed import compute_peak

    return compute_peak(bf16=False, fp16=False, weights=dtype) or measured_peak(dtype)


def measured_peak(dtype: str) -> float:
    """Return the operations per second of the fastest of ten products of two matrices."""
    import torch

    gpu = torch.cuda.is_available()
    size, device = (8192, "cuda") if gpu else (1024, "cpu")
    matrix = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        float((matrix @ matrix)[0, 0])
        seconds.append(time.perf_counter() - started)
    return float(2 * size**3 / min(seconds))
