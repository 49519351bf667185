"""The losses of a model without each of its layers, by one pass and by the naive loop.

Both hold all weights in memory before the clock starts, and take the same windows in one batch.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.nn import ModuleList
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from harness.random_model import LAYERS, Shape, config
from lamina.depth.loading import load_model
from lamina.scan.calibration import Windows
from lamina.scan.greedy import GreedySearch
from lamina.scan.layers import LayerStack, open_stack
from lamina.scan.passes import Budget, score_removals
from lamina.weights.source import resolve

SHAPE = Shape(
    hidden_size=256,
    intermediate_size=768,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    vocab_size=2000,
)
"""Small enough for a CPU, and with so small a vocabulary that the layers are most of the work."""


@dataclass(frozen=True)
class Found:
    """The losses without each layer, and their cost."""

    losses: dict[int, float]
    """In nats per token, by the 0-based index of the layer that is left out."""

    layer_forwards: int
    seconds: float
    head_seconds: float
    """Of them, behind the last layer."""


@contextmanager
def scorers(device: str) -> Iterator[tuple["Swept", "Naive"]]:
    """Yield the sweep and the naive loop over one random model, each with its own weights."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with TemporaryDirectory() as folder:
        write_model(Path(folder))
        source = resolve(folder)
        with open_stack(source, torch.float32, device) as stack:
            stack.hold()
            whole = load_model(source, range(LAYERS), dtype=torch.float32, device=device)
            yield Swept(stack), Naive(whole)


def write_model(folder: Path) -> None:
    """Write a random model in float32 whose layers differ in how much they matter."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config(SHAPE, LAYERS), dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight *= 4
        for layer in model.model.layers:
            strength = 1 + torch.rand(())
            for weight in layer.parameters():
                weight *= strength
    model.save_pretrained(folder)


def token_ids(tokens: int) -> torch.Tensor:
    """Return random token ids in windows of 256, or in one that is shorter."""
    generator = torch.Generator().manual_seed(2)
    size = (max(1, tokens // 256), min(tokens, 256))
    return torch.randint(SHAPE.vocab_size, size, generator=generator)


def windows(ids: torch.Tensor) -> Windows:
    """Return windows that are one text each, with every prediction scored."""
    return Windows(ids, None, torch.arange(ids.shape[1]).expand(ids.shape) > 0)


class Swept:
    """Lamina's: each layer processes the states of all reduced models while it is loaded."""

    def __init__(self, stack: LayerStack) -> None:
        self.stack = stack

    def __call__(self, ids: torch.Tensor) -> Found:
        """Score every removal on token ids (windows, tokens)."""
        began = time.perf_counter()
        scores, cost = score_removals(
            self.stack, windows(ids), allowed(ids), sublayers=False, folder=None
        )
        total = sum(scores.counts)
        losses = {left[1]: sum(sums) / total for left, sums in scores.loss.items() if left}
        seconds = time.perf_counter() - began
        return Found(losses, cost.layer_forwards, seconds, cost.head_seconds)

    def greedy(self, ids: torch.Tensor, number: int) -> "Chosen":
        """Leave out that many layers, one after the other."""
        began = time.perf_counter()
        rounds = GreedySearch(self.stack, windows(ids), allowed(ids), [])
        for _ in range(number):
            rounds.drop_next()
        return Chosen(rounds.dropped, rounds.layer_forwards, time.perf_counter() - began)


def allowed(ids: torch.Tensor) -> Budget:
    """Return a budget that holds everything; hold=False, as the stack already has its layers."""
    return Budget(hold=False, windows=len(ids), spare=10**10)


class Naive:
    """The peer: one forward pass of transformers for each reduced model, a list of the layers."""

    def __init__(self, model: Any) -> None:
        self.model = model.eval()
        self.layers = list(model.model.layers)
        self.at_norm = 0.0
        model.model.norm.register_forward_pre_hook(self._note)

    @torch.inference_mode()
    def __call__(self, ids: torch.Tensor, skipped: frozenset[int] = frozenset()) -> Found:
        """Score every removal on token ids (windows, tokens), after skipping some layers."""
        ids = ids.to(self.model.device)
        left = [index for index in range(LAYERS) if index not in skipped]
        losses, head_seconds = {}, 0.0
        began = time.perf_counter()
        for dropped in left:
            kept = [self.layers[index] for index in left if index != dropped]
            self.model.model.layers = ModuleList(kept)
            output = self.model(input_ids=ids, labels=ids, use_cache=False)
            losses[dropped] = output.loss.item()
            head_seconds += time.perf_counter() - self.at_norm
        seconds = time.perf_counter() - began
        return Found(losses, len(left) * (len(left) - 1), seconds, head_seconds)

    def greedy(self, ids: torch.Tensor, number: int) -> "Chosen":
        """Leave out that many layers, one after the other."""
        layers: list[int] = []
        rounds = []
        for _ in range(number):
            found = self(ids, frozenset(layers))
            layers.append(min(found.losses, key=found.losses.__getitem__))
            rounds.append(found)
        forwards = sum(found.layer_forwards for found in rounds)
        return Chosen(layers, forwards, sum(found.seconds for found in rounds))

    def _note(self, *_: Any) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        self.at_norm = time.perf_counter()


@dataclass(frozen=True)
class Chosen:
    """Layers left out one after the other, each time the one whose removal costs least."""

    layers: list[int]
    layer_forwards: int
    seconds: float


def summary(runs: Sequence[Found]) -> dict[str, Any]:
    """Return the figures of the fastest run, and the seconds of all."""
    best = min(runs, key=lambda run: run.seconds)
    return {**asdict(best), "all_seconds": [run.seconds for run in runs]}
