"""Taking a checkpoint folder for a run: whose it is, and what the run goes on from."""

import json
import shutil
from pathlib import Path
from typing import Any

from lamina.errors import OutputError
from lamina.heal.checkpoints import STEP, best_beside, is_whole, last_whole_checkpoint
from lamina.heal.origin import Origin
from lamina.runtime.atomic import PARTIAL, copied, write_json
from lamina.runtime.disk import disk_errors

FREE_IN_RESUMING = frozenset(
    "max_steps num_train_epochs eval_strategy eval_steps save_strategy save_steps save_total_limit "
    "logging_strategy logging_steps per_device_eval_batch_size".split()
)
"""Training arguments that may change when a run goes on: how long, and how often it looks."""


def claim(
    folder: Path,
    run_dir: Path,
    resume: str,
    origin: Origin | None,
    before: dict[str, Any],
    now: dict[str, Any],
) -> Path | None:
    """Take a checkpoint folder for a run; return the checkpoint to go on from, if there is one.

    A folder inside the run folder is the run's own. One that lies elsewhere says whose it is in
    run.json. What a save that was cut off left in it goes.

    Args:
        folder: Where checkpoint-{step}/ and final/ go.
        run_dir: The run folder.
        resume: auto, never or a path.
        origin: What a path leads to.
        before: What an earlier start in the run folder recorded; empty if there was none.
        now: What of it must not have changed.

    Raises:
        OutputError: The folder is another run's, cannot be written, or holds a checkpoint that
            cannot be gone on from.
    """
    _own(folder, run_dir)
    _tidy(folder)
    own = last_whole_checkpoint(folder)
    if origin is not None:
        refuse_changes(origin.checkpoint, origin.recorded, now, resume)
        if own is None:
            return _adopted(origin.checkpoint, folder)
        _refuse_two(origin, own, resume, before)
    elif own is not None and resume == "never":
        raise OutputError(
            f"resume=never, but {own} is there: give resume=auto or another hydra.run.dir"
        )
    if own is not None:
        refuse_changes(own, before, now, resume)
        _refuse_without_best(own)
    return own


def _adopted(checkpoint: Path, folder: Path) -> Path:
    """Bring a checkpoint into a run's own folder, the best one before it."""
    _refuse_without_best(checkpoint)
    with disk_errors(folder, "output_dir"):
        for each in dict.fromkeys((best_beside(checkpoint), checkpoint)):
            copied(each, folder / each.name)
    return folder / checkpoint.name


def _refuse_two(origin: Origin, own: Path, resume: str, before: dict[str, Any]) -> None:
    """Refuse a path where the run folder has something else to go on from.

    The same command again, as after a requeue, goes on from what it has done itself.
    """
    inside = origin.checkpoint.parent == own.parent
    if origin.checkpoint == own or (not inside and before.get("resumed_from") == origin.given):
        return
    raise OutputError(
        f"resume={resume}, but {own} is there: give resume=auto to go on from it, or another "
        "hydra.run.dir"
    )


def _refuse_without_best(checkpoint: Path) -> None:
    """Refuse a checkpoint whose best weights are gone: final/ would hold others than it says."""
    best = best_beside(checkpoint)
    if not is_whole(best):
        raise OutputError(
            f"{checkpoint} says that {best.name} beside it has the best weights, but it is gone: "
            "bring it back, or give another hydra.run.dir to start afresh"
        )


def refuse_changes(
    checkpoint: Path, before: dict[str, Any], now: dict[str, Any], resume: str
) -> None:
    """Refuse to go on from a checkpoint of another experiment.

    Args:
        checkpoint: The one to go on from.
        before: What its run recorded.
        now: Those of its fields that must not have changed.
        resume: As it was given.

    Raises:
        OutputError: One of them has.
    """
    for key, value in now.items():
        if (earlier := before.get(key)) not in (value, None):
            raise OutputError(
                f"resume={resume}, but {checkpoint} is of {key}={earlier}, not {value}: "
                f"{'give another hydra.run.dir' if resume == 'auto' else 'give another resume'}"
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
    with disk_errors(folder, "output_dir"):
        folder.mkdir(parents=True, exist_ok=True)
        if not inside:
            write_json(owner_file, {"run": str(run_dir)})


def _tidy(folder: Path) -> None:
    """Remove what cut-off saves left: nobody can use it, and a full disk needs the room."""
    for path in (*folder.glob(PARTIAL), *folder.glob("checkpoint-*")):
        if path.match(PARTIAL) or (STEP.fullmatch(path.name) and not is_whole(path)):
            shutil.rmtree(path)
