"""Checkpoints of a training on disk: which are complete, the last one and the best one."""

import json
import re
from pathlib import Path
from typing import Any

STEP = re.compile(r"checkpoint-(\d+)$")
"""Name of a checkpoint, with its optimizer step."""


def last_checkpoint(folder: Path) -> Path | None:
    """Return the complete checkpoint-{step}/ with the highest step."""
    complete = [path for path in folder.glob("checkpoint-*") if is_complete(path)]
    return max(complete, key=lambda path: saved_step(path) or 0, default=None)


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint is complete: trainer_state.json is written last, with its step."""
    match = STEP.fullmatch(checkpoint.name)
    return match is not None and saved_step(checkpoint) == int(match[1])


def saved_step(checkpoint: Path) -> int | None:
    """Return a checkpoint's optimizer step; None if the checkpoint is incomplete."""
    step: int | None = _trainer_state(checkpoint).get("global_step")
    return step


def best_checkpoint(checkpoint: Path) -> Path:
    """Return the best checkpoint so far according to a checkpoint: itself, or one beside it."""
    # The folder may have moved since the trainer wrote the path.
    best = _trainer_state(checkpoint).get("best_model_checkpoint")
    return checkpoint.with_name(Path(best).name) if best else checkpoint


def _trainer_state(checkpoint: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return {}
    return content
