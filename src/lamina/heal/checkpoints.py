"""Checkpoints: whose folder it is, and the last whole one to go on from."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lamina.errors import OutputError
from lamina.measure import ranks

_STEP = re.compile(r"checkpoint-(\d+)$")


def last_whole_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint-{step}/ with the highest step that was written to its end.

    The trainer writes trainer_state.json last: one that cannot be read, or tells of another step,
    belongs to a save that was cut off.
    """
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*")
             if (match := _STEP.search(path.name))]  # fmt: skip
    for step, path in sorted(found, reverse=True):
        if saved_step(path) == step and _has_every_state(path):
            return path
    return None


def _has_every_state(checkpoint: Path) -> bool:
    """Whether each of several processes has left the state of its random generators."""
    states = [checkpoint / f"rng_state_{rank}.pth" for rank in range(ranks.count())]
    return not states[0].exists() or all(path.exists() for path in states)


def claim(
    folder: Path, run_dir: Path, resume: str, before: dict[str, Any], now: dict[str, Any]
) -> Path | None:
    """Take a checkpoint folder for a run; return the checkpoint to go on from, if there is one.

    A folder inside the run folder is the run's own. One that lies elsewhere says whose it is in
    run.json.

    Args:
        folder: Where checkpoint-{step}/ and final/ go.
        run_dir: The run folder.
        resume: auto or never.
        before: What an earlier start in the run folder recorded; empty if there was none.
        now: What of it must not have changed.

    Raises:
        OutputError: The folder is another run's, cannot be written, or holds a checkpoint that
            cannot be gone on from.
    """
    if ranks.is_first():
        _own(folder, run_dir)
    checkpoint = last_whole_checkpoint(folder)
    if checkpoint is None:
        return None
    if resume == "never":
        raise OutputError(
            f"resume=never, but {checkpoint} is there: give resume=auto or another hydra.run.dir"
        )
    refuse_changes(checkpoint, before, now)
    return checkpoint


def refuse_changes(checkpoint: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on from a checkpoint of another experiment.

    Args:
        checkpoint: The one to go on from.
        before: What the earlier start in the run folder recorded.
        now: Those of its fields that must not have changed.

    Raises:
        OutputError: One of them has.
    """
    for key, value in now.items():
        if (earlier := before.get(key)) not in (value, None):
            raise OutputError(
                f"resume=auto, but {checkpoint} is of {key}={earlier}, not {value}: "
                "give another hydra.run.dir"
            )


def _own(folder: Path, run_dir: Path) -> None:
    owner_file = folder / "run.json"
    inside = folder.is_relative_to(run_dir)
    if not inside and any(folder.glob("[cf]*")):
        try:
            owner = json.loads(owner_file.read_text())["run"]
        except (OSError, ValueError, KeyError):
            owner = "something else"
        if owner != str(run_dir):
            raise OutputError(
                f"output_dir={folder.parent}: {folder} holds the result of {owner}, which is "
                "never overwritten: give another output_dir"
            )
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not inside:
            owner_file.write_text(json.dumps({"run": str(run_dir)}) + "\n")


def saved_step(checkpoint: Path) -> int | None:
    """Return the optimizer step that a checkpoint was saved at; None if it is not whole."""
    try:
        step: int = json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]
    except (OSError, ValueError, KeyError):
        return None
    return step


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn a failed write into an error that says where and why.

    Raises:
        OutputError: The body could not write.
    """
    from safetensors import SafetensorError

    try:
        yield
    except OutputError:
        raise
    # safetensors and torch.save wrap what the operating system says.
    except (OSError, RuntimeError, SafetensorError) as error:
        full = re.search(r"No space left|Read-only|Permission denied|Disk quota", str(error))
        if full is None:
            raise
        raise OutputError(
            f"{folder} cannot be written: {full[0]}; earlier checkpoints are intact, make room "
            "and start the same command again in the same folder"
        ) from error
