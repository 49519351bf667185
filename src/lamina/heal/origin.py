"""Where resume=PATH leads: a whole checkpoint, and what its run recorded."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.errors import ConfigError
from lamina.heal.checkpoints import STEP, is_whole, last_whole_checkpoint
from lamina.measure.results import read_result

WORDS = ("auto", "never")
"""Values of resume that are no paths."""


@dataclass(frozen=True)
class Origin:
    """A checkpoint to go on from that was named."""

    given: str
    """The absolute path that was given: of a checkpoint, or of a run folder."""

    checkpoint: Path
    """A whole one."""

    recorded: dict[str, Any]
    """What its run's result.json says of it, with the settings beside the rest."""


def origin(resume: str) -> Origin | None:
    """Follow resume=PATH; None where there is none.

    Args:
        resume: auto, never, a checkpoint-{step}/, or a run folder for its last whole checkpoint.

    Raises:
        ConfigError: There is nothing to go on from, or nothing says what it is of.
    """
    if resume in WORDS:
        return None
    path = Path(resume).expanduser().absolute()
    if not path.is_dir():
        raise ConfigError(
            f"resume={resume}: no such folder; give auto, never, or the folder of a run or of a "
            "checkpoint"
        )
    checkpoint = _checkpoint(resume, path)
    result = _result(checkpoint.parent)
    if not result or not result["kept_layers"]:
        raise ConfigError(
            f"resume={resume}: no result.json above {checkpoint} says which layers and settings it "
            "is of; keep a checkpoint below the folder of its run"
        )
    return Origin(str(path), checkpoint, {**result, **result["settings"]})


def _checkpoint(resume: str, path: Path) -> Path:
    if STEP.fullmatch(path.name):
        if is_whole(path):
            return path
        last = last_whole_checkpoint(path.parent)
        advice = f"give {last}" if last else "there is no whole one beside it"
        raise ConfigError(f"resume={resume}: its save was cut off; {advice}")
    for folder in _folders(path):
        if (last := last_whole_checkpoint(folder)) is not None:
            return last
    raise ConfigError(f"resume={resume}: there is no whole checkpoint; give resume=auto to begin")


def _folders(path: Path) -> list[Path]:
    """Where the checkpoints of a run folder may lie; or it is the folder of checkpoints itself."""
    result = read_result(path) or {}
    own = [path, path / "checkpoints" / str(result.get("model_type"))]
    final = result.get("final")
    return [*own, (path / final).parent] if final else own


def _result(folder: Path) -> dict[str, Any] | None:
    """Find the result.json of the run that a folder of checkpoints is of."""
    try:
        return read_result(Path(json.loads((folder / "run.json").read_text())["run"]))
    except (OSError, ValueError, KeyError):
        above = (read_result(parent) for parent in folder.parents[:3])
        return next((result for result in above if result), None)
