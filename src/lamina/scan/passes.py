"""Scores every removal in few passes over a model's weights; resumable, within a memory budget."""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from lamina.errors import ConfigError
from lamina.limits import AT_LEAST_ONE, Limit, one_of
from lamina.runtime.console import Stage, stage
from lamina.runtime.files import write_text
from lamina.scan.calibration import Windows
from lamina.scan.layers import LayerStack
from lamina.scan.scores import HEAD_BYTES, Scores
from lamina.scan.streams import TOKENS_AT_ONCE, Streams
from lamina.units import parse_bytes, parse_tokens

SAVE_SHARE = 0.05
"""Largest share of a scan's time spent on saving its state."""

SAVE_SECONDS = 20.0
"""Minimum seconds between two saves."""

STATE_FILE, PROGRESS_FILE = "scan-state.safetensors", "scan-progress.json"


@dataclass(frozen=True, kw_only=True)
class ScanSettings:
    """How layers are scored."""

    tokens: Any
    sets: Annotated[int, AT_LEAST_ONE]
    rows: Annotated[str, one_of("joined", "apart")]
    sublayers: bool
    stream: Annotated[
        str,
        Limit(lambda value: value.lower() in ("auto", "true", "false"), "use auto, true or false"),
    ]
    memory: Any
    candidates: Annotated[int, AT_LEAST_ONE]

    def problems(self) -> Iterator[str]:
        """Refuse quantities that cannot be read."""
        for key, value, read in (
            ("scan.tokens", self.tokens, parse_tokens),
            ("scan.memory", self.memory, parse_bytes),
        ):
            try:
                read(key, value)
            except ConfigError as error:
                yield str(error)

    def refuse_less_than(self, max_seq_length: int) -> None:
        """Raise a ConfigError if the calibration text is shorter than one window."""
        if parse_tokens("scan.tokens", self.tokens) < max_seq_length:
            raise ConfigError(
                f"scan.tokens={self.tokens} is less than one window of "
                f"max_seq_length={max_seq_length} tokens: use more tokens or a shorter window"
            )


@dataclass
class Cost:
    """What a scan cost."""

    layer_forwards: int = 0
    """Layers applied, counted once per stream, whatever the number of windows."""
    passes: int = 0
    """Passes over the weights."""
    seconds: float = 0.0
    head_seconds: float = 0.0
    """Part of `seconds` spent in norm and output head."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What fits into memory."""

    hold: bool
    """Whether all layers are held in memory."""
    windows: int
    """Windows per pass."""
    spare: int = 0
    """Bytes left besides one pass."""


def budget(
    settings: ScanSettings, stack: LayerStack, windows: Windows, free: int, num_kept: int
) -> Budget:
    """Decide how much to hold in memory at once, given its free bytes and the layers not skipped.

    Raises ConfigError if scan.memory does not hold one layer and one window.
    """
    limit = parse_bytes("scan.memory", settings.memory)
    kinds = 3 if settings.sublayers else 1
    states = (kinds + 1) * num_kept + 2
    width = stack.shell.model.config.hidden_size
    window = states * windows.length * width * stack.dtype.itemsize
    outside, layer, every = stack.weight_bytes()
    working = HEAD_BYTES + 16 * max(TOKENS_AT_ONCE, windows.length) * width * 4
    fixed = outside + working
    streamed = {"true": True, "false": False}.get(
        str(settings.stream).lower(), fixed + every + window > min(limit, free)
    )
    fixed += 2 * layer if streamed else every
    if fixed + window > limit:
        raise ConfigError(
            f"scan.memory={settings.memory} is too small for "
            f"{'one layer' if streamed else 'all layers'} and one window of this model: use at "
            f"least {-(-(fixed + window) // 10**8) / 10:.1f}GB"
            + ("" if streamed else ", or scan.stream=true")
        )
    room = min(limit, free) - fixed
    at_once = min(len(windows), max(1, room // window))
    return Budget(hold=not streamed, windows=at_once, spare=max(0, room - at_once * window))


def score_removals(
    stack: LayerStack,
    windows: Windows,
    allowed: Budget,
    *,
    sublayers: bool,
    folder: Path | None = None,
    skipped: frozenset[int] = frozenset(),
) -> tuple[Scores, Cost]:
    """Score every removal, in as many passes over the weights as the windows need.

    `sublayers` also scores attention and mlp alone; `folder` is where progress is saved and
    resumed, None saves nothing; `skipped` are 0-based layers already removed.
    """
    import torch

    if allowed.hold:
        stack.hold()
    progress = _Progress(folder)
    # As many windows per pass as memory allows now, which may be more or fewer than at the start.
    passes = list(windows[progress.scored :].split(allowed.windows))
    depth = stack.num_layers - len(skipped)
    forwards = (3 if sublayers else 1) * depth * (depth + 1) // 2 * len(passes)
    with torch.inference_mode(), stage("scoring layers", forwards, "forward passes") as shown:
        for portion in passes:
            _one_pass(stack, portion, progress, sublayers, skipped, shown)
    progress.remove()
    return progress.scores, progress.cost


def _one_pass(
    stack: LayerStack,
    windows: Windows,
    progress: "_Progress",
    sublayers: bool,
    skipped: frozenset[int],
    shown: Stage,
) -> None:
    """Pass one portion of the windows through all layers, and score it."""
    began = time.monotonic()
    streams = Streams(stack, windows, sublayers=sublayers, skipped=skipped)
    start = progress.restore(streams)
    for index, block in stack.blocks(start, skipped):
        shown.notes = (f"layer {index + 1} of {stack.num_layers}",)
        streams.advance(index, block, shown.advance)
        progress.save(streams, index + 1, stack.num_layers)
    headed = time.monotonic()
    progress.scores.add_states(streams)
    progress.scores.add_predictions(streams, windows)
    ended = time.monotonic()
    progress.cost.passes += 1
    progress.cost.layer_forwards = max(progress.cost.layer_forwards, streams.layer_forwards)
    progress.cost.head_seconds += ended - headed
    progress.cost.seconds += ended - began
    progress.finish_pass()


class _Progress:
    """A scan's progress on disk: sums of finished passes, and streams of the current one."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.scores, self.cost = Scores(), Cost()
        self.saved_at, self.saving = time.monotonic(), 0.0
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError, ValueError, KeyError, TypeError):  # none, or damaged
                content = json.loads((folder / PROGRESS_FILE).read_text())
                scores, cost = Scores.from_dict(content["scores"]), Cost(**content["cost"])
                self.scores, self.cost = scores, cost

    @property
    def scored(self) -> int:
        """Number of windows scored: those of finished passes."""
        return len(self.scores.counts)

    def restore(self, streams: Streams) -> int:
        """Resume an interrupted pass; return the 0-based layer to continue with."""
        from safetensors import SafetensorError, safe_open

        path = self.folder / STATE_FILE if self.folder else None
        if path is None or not path.is_file():
            return 0
        try:
            with safe_open(path, framework="pt") as file:
                note = file.metadata()
            if int(note["scored"]) != self.scored:
                return 0
            layer = int(note["layer"])
            streams.restore(path)
        except (SafetensorError, KeyError, TypeError, ValueError):  # damaged, or of another size
            return 0
        return layer

    def save(self, streams: Streams, layer: int, num_layers: int) -> None:
        """Save the streams, unless that was done recently or takes too much of the time."""
        since = time.monotonic() - self.saved_at
        wait = max(SAVE_SECONDS, self.saving / SAVE_SHARE)
        if self.folder is None or layer == num_layers or since < wait:
            return
        began = time.monotonic()
        note = {"layer": str(layer), "scored": str(self.scored)}
        streams.save(self.folder / STATE_FILE, note)
        self.saved_at = time.monotonic()
        self.saving = self.saved_at - began

    def finish_pass(self) -> None:
        """Save the sums of the passes done; NaN must survive, so not with `write_json`."""
        if self.folder is not None:
            content = {"scores": self.scores.to_dict(), "cost": vars(self.cost)}
            write_text(self.folder / PROGRESS_FILE, json.dumps(content))

    def remove(self) -> None:
        """Delete the saved progress."""
        if self.folder is not None:
            for name in (STATE_FILE, PROGRESS_FILE):
                (self.folder / name).unlink(missing_ok=True)
