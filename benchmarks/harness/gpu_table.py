"""gpu.py's output: its table in Markdown, and its aims."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.gpu_cells import PLAIN, Cell

Found = Mapping[Cell, Mapping[str, Any]]
"""Cells with their figures, or the reason why there are none."""

HEADER = (
    "adapter", "layers", "kernels", "by", "tokens/s", "MFU", "peak memory", "of plain TRL",
    "depth speed-up", "of ideal",
)  # fmt: skip


@dataclass(frozen=True)
class Goal:
    """A figure and its lower limit."""

    name: str
    least: float
    value: float | None
    """None if not measured."""

    @property
    def met(self) -> bool:
        """Whether it was measured and is large enough."""
        return self.value is not None and self.value >= self.least

    def __str__(self) -> str:
        """Return name, value and limit in one line."""
        digits = 0 if self.least > 1 else 3
        value = "not measured" if self.value is None else f"{self.value:,.{digits}f}"
        return f"{'met' if self.met else 'not met'}: {self.name}: {value}, at least {self.least:,g}"


def measured(found: Found) -> dict[Cell, Mapping[str, Any]]:
    """Return the cells that have figures."""
    return {cell: figures for cell, figures in found.items() if "reason" not in figures}


def of_plain(cell: Cell, found: Found) -> float | None:
    """Return a cell's tokens per second over those of plain TRL."""
    peer = measured(found).get(cell.peer)
    if peer is None or cell.backend == PLAIN:
        return None
    return float(found[cell]["tokens_per_second"] / peer["tokens_per_second"])


def speed_up(cell: Cell, found: Found) -> tuple[float, float] | None:
    """Return how much faster a cell is than with every layer, and that ratio over the ideal one.

    The ideal is the ratio of the operations per token: the output head does not shrink.
    """
    whole = measured(found).get(cell.whole)
    if whole is None or cell == cell.whole:
        return None
    here = found[cell]
    faster = here["tokens_per_second"] / whole["tokens_per_second"]
    each = (figures["flops_per_second"] / figures["tokens_per_second"] for figures in (whole, here))
    return faster, faster / (next(each) / next(each))


def markdown(found: Found) -> str:
    """Return the table, and below it the cells that could not run, with the reason."""
    lines = [HEADER, ("---",) * len(HEADER), *(row(cell, found) for cell in measured(found))]
    table = [f"| {' | '.join(cells)} |" for cells in lines]
    reasons: dict[str, list[str]] = {}
    for cell, figures in found.items():
        if "reason" in figures:
            reasons.setdefault(figures["reason"], []).append(str(cell))
    missing = [f"- {'; '.join(cells)}: {reason}" for reason, cells in reasons.items()]
    return "\n".join([*table, *([""] if missing else []), *missing])


def row(cell: Cell, found: Found) -> tuple[str, ...]:
    """Return one line of the table."""
    figures, plain, depth = found[cell], of_plain(cell, found), speed_up(cell, found)
    return (
        cell.adapter,
        str(cell.layers),
        cell.kernels,
        cell.backend,
        f"{figures['tokens_per_second']:,.0f}",
        f"{figures['mfu']:.1%}",
        f"{figures['peak_memory_bytes'] / 2**30:.1f} GiB",
        "" if plain is None else f"{plain:.3f}",
        "" if depth is None else f"{depth[0]:.3f}",
        "" if depth is None else f"{depth[1]:.3f}",
    )


def goals(found: Found, layers: int) -> list[Goal]:
    """Return the aims for one H200 with packs of 4096 tokens in bfloat16.

    Args:
        found: All cells.
        layers: Of the whole model.
    """
    ours = [cell for cell in measured(found) if cell.backend != PLAIN]
    plain = [ratio for cell in ours if (ratio := of_plain(cell, found)) is not None]
    depth = [faster[1] for cell in ours if (faster := speed_up(cell, found)) is not None]
    return [
        *_rates(found, ours, layers),
        Goal("tokens/s over plain TRL's, the least", 1.0, min(plain, default=None)),
        Goal("depth speed-up over the ideal, the least", 0.9, min(depth, default=None)),
    ]


def _rates(found: Found, ours: Sequence[Cell], layers: int) -> Iterator[Goal]:
    for adapter, least in (("lora", 12_000), ("full", 6_000)):
        whole = [cell for cell in ours if (cell.adapter, cell.layers) == (adapter, layers)]
        rates = [found[cell]["tokens_per_second"] for cell in whole]
        yield Goal(f"{adapter}, {layers} layers, tokens/s", least, max(rates, default=None))
