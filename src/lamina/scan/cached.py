"""A model's scores on a data set, from the cache or from a new scan."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from lamina.data.chat.template import choose_template
from lamina.data.sources import Blend, DataSource, Synthetic
from lamina.depth import loading
from lamina.depth.reduction import decoder_stack
from lamina.depth.selection import LayerScores
from lamina.depth.statistics import Statistics
from lamina.depth.surgery import layer_count
from lamina.runtime.cache import cache_folder, cached, folder_of
from lamina.runtime.console import quiet_libraries, stage
from lamina.runtime.device import compute_device, free_memory_bytes, peak_memory_bytes
from lamina.runtime.files import refuse_unwritable
from lamina.scan.calibration import Calibration, Windows
from lamina.scan.greedy import cheapest, greedy_order
from lamina.scan.layers import LayerStack, open_stack
from lamina.scan.passes import ScanSettings, budget, score_removals
from lamina.units import parse_tokens
from lamina.weights.reading import identity
from lamina.weights.source import Source

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

PROTOCOL = 2
"""Raise it when a code change alters a scan's numbers: older cached scans are then ignored."""


@dataclass(frozen=True, kw_only=True)
class CachedScores(LayerScores):
    """The scores of a model's layers; each kind is computed once and then read from the cache."""

    source: Source
    data: DataSource
    settings: ScanSettings
    max_seq_length: int
    """Tokens per window."""
    seed: int
    """Seed of the draws of further calibration sets."""
    dtype: "Callable[[], torch.dtype]"
    """Returns the type in which the model computes; called late, because it imports torch."""

    @override
    def statistics(self) -> Statistics:
        return Statistics.from_dict(self.scan())

    @stage("preparing the scan")
    def scan(self) -> dict[str, Any]:
        """Return the content of scan.json: the statistics, their cost and their provenance."""
        with cached(self._folder, "scan.json") as cache:
            if cache.content is None:
                cache.content = self._scanned(cache.folder)
            return cache.content

    @override
    def greedy(self, count: int, protected: frozenset[int] = frozenset()) -> tuple[int, ...]:
        losses = self.statistics().leave_one_out.loss
        first = cheapest(dict(enumerate(losses)), protected)
        kept = "".join(f"-{index}" for index in sorted(protected))
        name = f"-{sha256(kept.encode()).hexdigest()[:8]}" if kept else ""
        with cached(self._folder, f"greedy{name}.json") as cache:
            known = list((cache.content or {}).get("order", [first]))
            if len(known) < count:
                free = free_memory_bytes()
                with self.opened() as stack:
                    known = greedy_order(
                        stack, self.windows, self.settings, count, known, free, protected
                    )
                cache.content = {"order": known}
            return tuple(known[:count])

    @override
    def taylor(self) -> tuple[float, ...]:
        with cached(self._folder, "taylor.json") as cache:
            if cache.content is None:
                with self.opened():  # refuses windows in which this model would not keep rows apart
                    pass
                found = taylor_importance(self.source, self.windows, compute_device())
                cache.content = {"importance": list(found)}
            return tuple(cache.content["importance"])

    def _scanned(self, folder: Path) -> dict[str, Any]:
        settings, (windows, sets) = self.settings, self._calibration
        text = "1 window" if len(windows) == 1 else f"{len(windows):,} windows"
        logger.info("scoring the layers of %s on %s", self.source.name, text)
        with self.opened() as stack:
            allowed = budget(settings, stack, windows, free_memory_bytes(), stack.num_layers)
            scores, cost = score_removals(
                stack, windows, allowed, sublayers=settings.sublayers, folder=folder
            )
            found = scores.statistics(stack.num_layers, sets)
        return {
            **asdict(found),
            **asdict(cost),
            "peak_memory_bytes": peak_memory_bytes(),
            "provenance": {
                "model": self.source.name,
                "revision": self.source.revision,
                "calibration_fingerprint": windows.fingerprint,
                "dtype": str(self.dtype()).removeprefix("torch."),
                "settings": asdict(settings),
                "max_seq_length": self.max_seq_length,
                "protocol": PROTOCOL,
            },
        }

    @contextmanager
    def opened(self) -> Iterator[LayerStack]:
        """Open the model's layers, to be read from disk when they are needed.

        Raises ModelError if they would not keep the rows of scan.rows=apart apart.
        """
        quiet_libraries()
        with open_stack(self.source, self.dtype(), compute_device()) as stack:
            stack.refuse_leak(self.windows)
            yield stack

    @property
    def windows(self) -> Windows:
        """The calibration text, of all sets."""
        return self._calibration[0]

    @cached_property
    def _calibration(self) -> tuple[Windows, tuple[range, ...]]:
        loading.refuse_long_sequences(self.source, self.max_seq_length)
        calibration = Calibration(
            tokens=parse_tokens("scan.tokens", self.settings.tokens),
            length=self.max_seq_length,
            sets=self.settings.sets,
            seed=self.seed,
            apart=self.settings.rows == "apart",
            loss_on=self.data.loss_on,
        )
        tokenizer = choose_template(loading.load_tokenizer(self.source), self.data.chat_template)
        windows, sets = calibration.windows(self.data.load().train, tokenizer)
        loading.refuse_unknown_tokens(self.source, tokenizer, windows.ids.tolist())
        return windows, sets

    @cached_property
    def _folder(self) -> Path:
        """Cache folder, named after everything that the numbers depend on."""
        refuse_unwritable(cache_folder(), "LAMINA_CACHE")
        parts = [
            *identity(self.source),
            f"{self.windows.fingerprint} {self._calibration[1]}",
            str(self.dtype()),
            str(self.settings.sublayers),
            f"protocol {PROTOCOL}{'' if self.windows.positions is None else ', rows known apart'}",
        ]
        return folder_of("scans", parts)


def without_holdout(data: DataSource) -> DataSource:
    """Return a data set with nothing held out: a scan trains nothing, so it uses every row.

    Of a blend, which has no one file to evaluate on, it uses the training part.
    """
    return data if isinstance(data, Synthetic | Blend) else replace(data, eval=data.train)


def taylor_importance(source: Source, windows: Windows, device: str) -> tuple[float, ...]:
    """Return the sum of |weight x gradient| over each layer's weights.

    The gradient is that of the mean loss over all scored predictions (Kim et al. 2024, Shortened
    LLaMA, arXiv:2402.02834). The full model and its gradient are in memory, in float32.
    """
    import torch
    from torch.nn.functional import cross_entropy

    every = range(layer_count(source.config))
    model = loading.load_model(source, every, dtype=torch.float32, device=device).eval()
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
