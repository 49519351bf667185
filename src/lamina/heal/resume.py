"""Resuming: which checkpoint a run continues from, and which run a checkpoint folder belongs to."""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.errors import ConfigError, OutputError
from lamina.measure.results import read_result
from lamina.runtime import distributed
from lamina.runtime.checkpoints import (
    STEP,
    best_checkpoint,
    is_complete,
    last_checkpoint,
    saved_step,
)
from lamina.runtime.files import PARTIAL, copy_folder, disk_errors, write_json

logger = logging.getLogger(__name__)

KEYWORDS = ("auto", "never")
"""Values of resume that are not paths."""

MAY_CHANGE_ON_RESUME = frozenset(
    "max_steps num_train_epochs eval_strategy eval_steps save_strategy save_steps save_total_limit "
    "logging_strategy logging_steps per_device_eval_batch_size".split()
)
"""Training arguments that a resumed run may change: its length, and when it logs and saves."""


@dataclass(frozen=True)
class GivenCheckpoint:
    """The checkpoint that resume=PATH names."""

    path: str
    """The absolute path, of a checkpoint or of a run folder."""
    checkpoint: Path
    """The complete checkpoint there."""
    recorded: dict[str, Any]
    """result.json of its run, with the settings at the top level, too."""


def given_checkpoint(resume: str) -> GivenCheckpoint | None:
    """Find the checkpoint that resume=PATH names: the last one if PATH is a run folder.

    Return None for auto and never.

    Raises:
        ConfigError: There is no complete checkpoint, or no result.json of its run.
    """
    if resume in KEYWORDS:
        return None
    path = Path(resume).expanduser().absolute()
    if not path.is_dir():
        raise ConfigError(
            f"resume={resume}: no such folder; use auto, never, or the folder of a run or of a "
            "checkpoint"
        )
    checkpoint = _checkpoint_at(path, resume)
    result = _result_of(checkpoint.parent)
    if not result or not result["kept_layers"]:
        raise ConfigError(
            f"resume={resume}: no result.json above {checkpoint} says which layers and settings it "
            "has; keep checkpoints inside their run's folder"
        )
    return GivenCheckpoint(str(path), checkpoint, {**result, **result["settings"]})


def _checkpoint_at(path: Path, resume: str) -> Path:
    if STEP.fullmatch(path.name):
        if is_complete(path):
            return path
        last = last_checkpoint(path.parent)
        advice = f"use {last}" if last else "there is no complete one beside it"
        raise ConfigError(f"resume={resume}: its save was interrupted; {advice}")
    for folder in _checkpoint_folders(path):
        if (last := last_checkpoint(folder)) is not None:
            return last
    raise ConfigError(f"resume={resume}: there is no complete checkpoint; set resume=auto to start")


def _checkpoint_folders(path: Path) -> list[Path]:
    """Return where checkpoints may be: in the folder itself, or below it if it is a run folder."""
    result = read_result(path) or {}
    folders = [path, path / "checkpoints" / str(result.get("model_type"))]
    final = result.get("final")
    return [*folders, (path / final).parent] if final else folders


def _result_of(folder: Path) -> dict[str, Any] | None:
    """Read result.json of the run that a checkpoint folder belongs to."""
    try:
        return read_result(Path(json.loads((folder / "run.json").read_text())["run"]))
    except (OSError, ValueError, KeyError):
        above = (read_result(parent) for parent in folder.parents[:3])
        return next((result for result in above if result), None)


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run starts: at its first step, or at a checkpoint."""

    checkpoint: Path | None
    """The checkpoint to continue from; None at the first step."""
    recorded: dict[str, Any]
    """result.json of the run that wrote the checkpoint; empty without one."""
    resume: str
    """The parameter."""
    resumed_from: str | None
    """The absolute path that resume=PATH names, or named at an earlier start."""

    @property
    def path(self) -> str | None:
        """The checkpoint's path, for the trainer."""
        return str(self.checkpoint) if self.checkpoint else None

    @property
    def step(self) -> int | None:
        """The checkpoint's optimizer step; None at the first step of a training."""
        return saved_step(self.checkpoint) if self.checkpoint else None

    def warn_if_reached(self, max_steps: int) -> None:
        """Warn if the checkpoint has reached max_steps: the run then only measures it."""
        if self.step is not None and 0 < max_steps <= self.step:
            logger.warning(
                "max_steps=%d, but %s has reached step %d: nothing is left to train; set a larger "
                "max_steps to continue",
                max_steps,
                self.checkpoint,
                self.step,
            )

    def has_eval_rows(self, fingerprint: str) -> bool:
        """Whether the checkpoint's best eval_loss is that of the rows with this fingerprint."""
        return self.checkpoint is None or self.recorded.get("eval_fingerprint") == fingerprint

    def refuse_other_data(self, fingerprint: str) -> None:
        """Refuse to continue if the data's fingerprint is not the checkpoint's."""
        if self.checkpoint is not None and self.recorded:
            now, before = {"data_fingerprint": fingerprint}, self.recorded["provenance"]
            refuse_changes(self.checkpoint, before, now, self.resume)


def find_start(
    folder: Path, run_dir: Path, resume: str, previous: dict[str, Any], now: dict[str, Any]
) -> Start:
    """Claim a checkpoint folder in the first process, and find in all where the run starts.

    `previous` is the result.json that the run left before, `now` are its identity and settings.
    """
    given = given_checkpoint(resume)
    before = {**previous, **previous.get("settings", {})}
    checkpoint = distributed.first_process_first(
        "claim_folder",
        lambda: (
            claim_folder(folder, run_dir, resume, given, before, now)
            if distributed.is_first()
            else last_checkpoint(folder)
        ),
    )
    return Start(
        checkpoint=checkpoint,
        recorded=given.recorded if given else previous,
        resume=resume,
        resumed_from=given.path if given else previous.get("resumed_from"),
    )


def claim_folder(
    folder: Path,
    run_dir: Path,
    resume: str,
    given: GivenCheckpoint | None,
    before: dict[str, Any],
    now: dict[str, Any],
) -> Path | None:
    """Claim a checkpoint folder for a run; return the checkpoint to resume from, if there is one.

    A folder inside the run folder belongs to the run; any other names its run in run.json. The
    remains of interrupted saves are removed. `before` is the record of an earlier start in the run
    folder, or empty; `now` has the fields of the record that must not have changed.

    Raises:
        OutputError: The folder is another run's, cannot be written, or holds a checkpoint that
            cannot be resumed from.
    """
    _claim(folder, run_dir)
    _remove_interrupted_saves(folder)
    own = last_checkpoint(folder)
    if given is not None:
        refuse_changes(given.checkpoint, given.recorded, now, resume)
        if own is None:
            return _copied(given.checkpoint, folder)
        _refuse_two_checkpoints(given, own, resume, before)
    elif own is not None and resume == "never":
        raise OutputError(
            f"resume=never, but {own} is there: use resume=auto or another hydra.run.dir"
        )
    if own is not None:
        refuse_changes(own, before, now, resume)
        _refuse_without_best(own)
    return own


def _copied(checkpoint: Path, folder: Path) -> Path:
    """Copy a checkpoint into a run's folder, after the best one it refers to."""
    _refuse_without_best(checkpoint)
    with disk_errors(folder, "output_dir"):
        for each in dict.fromkeys((best_checkpoint(checkpoint), checkpoint)):
            copy_folder(each, folder / each.name)
    return folder / checkpoint.name


def _refuse_two_checkpoints(
    given: GivenCheckpoint, own: Path, resume: str, before: dict[str, Any]
) -> None:
    """Refuse a path if the run folder has another checkpoint to resume from.

    The same command again, as after a requeue, resumes from its own.
    """
    inside = given.checkpoint.parent == own.parent
    if given.checkpoint == own or (not inside and before.get("resumed_from") == given.path):
        return
    raise OutputError(
        f"resume={resume}, but {own} is there: use resume=auto to resume from it, or another "
        "hydra.run.dir"
    )


def _refuse_without_best(checkpoint: Path) -> None:
    """Refuse a checkpoint whose best weights are gone: final/ could not hold them."""
    best = best_checkpoint(checkpoint)
    if not is_complete(best):
        raise OutputError(
            f"{checkpoint} says that {best.name} beside it has the best weights, but it is gone: "
            "restore it, or use another hydra.run.dir to start from scratch"
        )


def refuse_changes(
    checkpoint: Path, before: dict[str, Any], now: dict[str, Any], resume: str
) -> None:
    """Refuse to resume from a checkpoint if its run recorded other values than those of `now`."""
    for key, value in now.items():
        if (earlier := before.get(key)) not in (value, None):
            raise OutputError(
                f"resume={resume}, but {checkpoint} has {key}={earlier}, not {value}: "
                f"{'use another hydra.run.dir' if resume == 'auto' else 'use another checkpoint'}"
            )


def _claim(folder: Path, run_dir: Path) -> None:
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
                "never overwritten: use another output_dir"
            )
    with disk_errors(folder, "output_dir"):
        folder.mkdir(parents=True, exist_ok=True)
        if not inside:
            write_json(owner_file, {"run": str(run_dir)})


def _remove_interrupted_saves(folder: Path) -> None:
    """Remove what interrupted saves left, to make room on a full disk."""
    for path in (*folder.glob(PARTIAL), *folder.glob("checkpoint-*")):
        if path.match(PARTIAL) or (STEP.fullmatch(path.name) and not is_complete(path)):
            shutil.rmtree(path)
