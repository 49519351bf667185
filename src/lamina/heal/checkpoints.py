"""Checkpoints as they lie on the disk: whole or not, and which one is the best."""

import json
import re
from pathlib import Path
from typing import Any

STEP = re.compile(r"checkpoint-(\d+)$")
"""Name of a checkpoint, with the optimizer step that it was saved after."""


def last_whole_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint-{step}/ with the highest step that was written to its end."""
    whole = [path for path in folder.glob("checkpoint-*") if is_whole(path)]
    return max(whole, key=lambda path: saved_step(path) or 0, default=None)


def is_whole(checkpoint: Path) -> bool:
    """Say whether a checkpoint was written to its end.

    The trainer writes trainer_state.json last: one that cannot be read, or tells of another step,
    belongs to a save that was cut off.
    """
    match = STEP.fullmatch(checkpoint.name)
    return match is not None and saved_step(checkpoint) == int(match[1])


def saved_step(checkpoint: Path) -> int | None:
    """Return the optimizer step that a checkpoint was saved at; None if it is not whole."""
    step: int | None = _state(checkpoint).get("global_step")
    return step


def best_beside(checkpoint: Path) -> Path:
    """Return where the best checkpoint that one knows of lies: beside it, or it is that itself.

    The path in the trainer's state is the one of the day it was written.
    """
    best = _state(checkpoint).get("best_model_checkpoint")
    return checkpoint.with_name(Path(best).name) if best else checkpoint


def _state(checkpoint: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return {}
    return content
