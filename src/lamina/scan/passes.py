"""One sweep over a model's weights that scores every removal; resumable, within a memory budget."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from lamina.errors import ConfigError
from lamina.limits import AT_LEAST_ONE, Limit, one_of
from lamina.scan.layers import LayerStack
from lamina.scan.scores import HEAD_BYTES, Scores
from lamina.scan.streams import TOKENS_AT_ONCE, Streams
from lamina.scan.windows import Windows
from lamina.units import count, size

SAVE_SHARE = 0.05
"""Share of a scan's time that saving its state may take."""

SAVE_SECONDS = 20.0
"""Time between two saves, at least."""

STATE_FILE, PROGRESS_FILE = "scan-state.safetensors", "scan-progress.json"


@dataclass(frozen=True, kw_only=True)
class ScanSettings:
    """How layers are scored."""

    tokens: Any
    """Calibration tokens of one set, such as 4096, 16k or 1.6M."""

    sets: Annotated[int, AT_LEAST_ONE]
    """Calibration sets: the first is the beginning of the text, others are drawn from the rest."""

    rows: Annotated[str, one_of("joined", "apart")]
    """joined: rows are one text, and every next token counts; apart: rows are kept apart and only
    trained tokens count, as in training."""

    sublayers: bool
    """Whether each layer's attention and mlp are scored apart, too."""

    stream: Annotated[
        str,
        Limit(lambda value: value.lower() in ("auto", "true", "false"), "give auto, true or false"),
    ]
    """Whether layers are read as they are needed: auto, true or false."""

    memory: Any
    """Budget for weights and hidden states, such as 8GB; text beyond it takes another pass."""

    candidates: Annotated[int, AT_LEAST_ONE]
    """Layers that `lamina shortlist` heals without."""

    def problems(self) -> Iterator[str]:
        """Refuse quantities that cannot be read."""
        for key, value, read in (
            ("scan.tokens", self.tokens, count),
            ("scan.memory", self.memory, size),
        ):
            try:
                read(key, value)
            except ConfigError as error:
                yield str(error)


@dataclass
class Cost:
    """What a scan took."""

    layer_forwards: int = 0
    """Layers applied, once for each stream, whatever the number of windows."""

    passes: int = 0
    """Sweeps over the weights."""

    seconds: float = 0.0
    head_seconds: float = 0.0
    """Of them, in norm and output head."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What fits into memory."""

    hold: bool
    """Whether all layers stay in memory."""

    windows: int
    """Windows in one pass."""

    spare: int = 0
    """Bytes that are left beside one pass."""


def budget(
    settings: ScanSettings, stack: LayerStack, windows: Windows, free: int, num_kept: int
) -> Budget:
    """Decide how much is in memory at once.

    Args:
        settings: Of the scan.
        stack: The model.
        windows: Calibration text.
        free: Bytes that the machine has left.
        num_kept: Layers that take part.

    Raises:
        ConfigError: One layer and one window are more than scan.memory.
    """
    limit = size("scan.memory", settings.memory)
    kinds = 3 if settings.sublayers else 1
    states = (kinds + 1) * num_kept + 2
    width = stack.host.model.config.hidden_size
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
            f"{'one layer' if streamed else 'all layers'} and one window of this model: give at "
            f"least {-(-(fixed + window) // 10**8) / 10:.1f}GB"
            + ("" if streamed else ", or scan.stream=true")
        )
    at_once = min(len(windows), (limit - fixed) // window)
    spare = max(0, min(limit, free) - fixed - at_once * window)
    return Budget(hold=not streamed, windows=at_once, spare=spare)


def sweep(
    stack: LayerStack,
    windows: Windows,
    allowed: Budget,
    *,
    sublayers: bool,
    folder: Path | None,
    skipped: frozenset[int] = frozenset(),
) -> tuple[Scores, Cost]:
    """Score every removal, in as many passes over the weights as the windows need.

    Args:
        stack: The model.
        windows: Calibration text.
        allowed: What fits into memory.
        sublayers: Whether attention and mlp are scored apart, too.
        folder: Where the state is saved, and taken up again; None saves nothing.
        skipped: 0-based layers that are left out already.
    """
    import torch

    if allowed.hold:
        stack.hold()
    passes = list(windows.split(allowed.windows))
    state = _State(folder)
    with torch.inference_mode(), _bar(stack, passes, sublayers, skipped) as bar:
        for number in range(state.cost.passes, len(passes)):
            _one_pass(stack, passes[number], state, sublayers, skipped, bar)
    state.remove()
    return state.scores, state.cost


def _one_pass(
    stack: LayerStack,
    windows: Windows,
    state: "_State",
    sublayers: bool,
    skipped: frozenset[int],
    bar: Any,
) -> None:
    """Take one share of the windows through all layers, and score them."""
    began = time.monotonic()
    streams = Streams(stack, windows, sublayers=sublayers, skipped=skipped)
    start = state.restore(streams)
    for index, block in stack.blocks(start, skipped):
        bar.set_description(
            f"layer {index + 1}/{stack.num_layers}, {1 + len(streams.left)} streams"
        )
        streams.advance(index, block, bar.update)
        state.save(streams, index + 1, stack.num_layers)
    bar.set_description("predictions")
    headed = time.monotonic()
    state.scores.add_states(streams)
    state.scores.add_predictions(streams, windows)
    ended = time.monotonic()
    state.cost.passes += 1
    state.cost.layer_forwards = max(state.cost.layer_forwards, streams.layer_forwards)
    state.cost.head_seconds += ended - headed
    state.cost.seconds += ended - began
    state.finish_pass()


class _State:
    """A scan's progress on disk: sums of finished passes, and the streams of the current one."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.scores, self.cost = Scores(), Cost()
        self.saved_at, self.saving = time.monotonic(), 0.0
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / PROGRESS_FILE).is_file():
                content = json.loads((folder / PROGRESS_FILE).read_text())
                self.scores = Scores.read(content["scores"])
                self.cost = Cost(**content["cost"])

    def restore(self, streams: Streams) -> int:
        """Take up a pass that was interrupted; return the layer to go on with."""
        from safetensors import safe_open

        path = self.folder / STATE_FILE if self.folder else None
        if path is None or not path.is_file():
            return 0
        with safe_open(path, framework="pt") as file:
            note = file.metadata()
        if int(note["pass"]) != self.cost.passes:
            return 0
        streams.restore(path)
        return int(note["layer"])

    def save(self, streams: Streams, layer: int, num_layers: int) -> None:
        """Write the streams, unless that was just done or would take too long."""
        since = time.monotonic() - self.saved_at
        wait = max(SAVE_SECONDS, self.saving / SAVE_SHARE)
        if self.folder is None or layer == num_layers or since < wait:
            return
        began = time.monotonic()
        note = {"layer": str(layer), "pass": str(self.cost.passes)}
        streams.save(self.folder / STATE_FILE, note)
        self.saved_at = time.monotonic()
        self.saving = self.saved_at - began

    def finish_pass(self) -> None:
        """Write the sums: the next pass begins anew."""
        if self.folder is not None:
            content = {"scores": self.scores.written(), "cost": vars(self.cost)}
            partial = self.folder / f".{PROGRESS_FILE}"
            partial.write_text(json.dumps(content))
            partial.replace(self.folder / PROGRESS_FILE)

    def remove(self) -> None:
        """Leave nothing behind."""
        if self.folder is not None:
            for name in (STATE_FILE, PROGRESS_FILE):
                (self.folder / name).unlink(missing_ok=True)


@contextmanager
def _bar(
    stack: LayerStack, passes: list[Any], sublayers: bool, skipped: frozenset[int]
) -> Iterator[Any]:
    from tqdm import tqdm

    depth = stack.num_layers - len(skipped)
    forwards = (3 if sublayers else 1) * depth * (depth + 1) // 2
    # disable=None: quiet where the console is a file.
    with tqdm(total=forwards * len(passes), unit="stream", disable=None) as bar:
        yield bar
