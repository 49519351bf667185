"""Resuming: which checkpoint a run continues from, and which run a checkpoint folder belongs to."""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.errors import ConfigError, OutputError
from lamina.export.final import FINAL
from lamina.measure.results import RUN_FILE, read_result, run_of, with_settings
from lamina.runtime import distributed
from lamina.runtime.checkpoints import (
    STEP,
    best_checkpoint,
    checkpoints,
    damage,
    last_checkpoint,
    saved_step,
)
from lamina.runtime.files import copy_folder, disk_errors, write_json

logger = logging.getLogger(__name__)

ONLY_MODEL = "trainer.args.save_only_model"

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
    """The whole checkpoint there."""
    recorded: dict[str, Any]
    """result.json of its run, with the settings at the top level, too."""
    skipped: dict[Path, str]
    """What is wrong with each checkpoint after it, if PATH is a run folder."""


def given_checkpoint(resume: str) -> GivenCheckpoint | None:
    """Find the checkpoint that resume=PATH names: the last one if PATH is a run folder.

    Return None for auto and never. Raises ConfigError if there is no whole checkpoint, or no
    result.json of its run.
    """
    if resume in KEYWORDS:
        return None
    path = Path(resume).expanduser().absolute()
    if not path.is_dir():
        raise ConfigError(
            f"resume={resume}: no such folder; use auto, never, or the folder of a run or of a "
            "checkpoint"
        )
    named = path if STEP.fullmatch(path.name) else None
    folder = path.parent if named else next(filter(checkpoints, _checkpoint_folders(path)), None)
    if folder is None:
        raise ConfigError(f"resume={resume}: there is no checkpoint; set resume=auto to start")
    result = _result_of(folder)
    if not result or not result["kept_layers"]:
        raise ConfigError(
            f"resume={resume}: no result.json above {named or folder} says which layers and "
            "settings it has; keep checkpoints inside their run's folder"
        )
    record = with_settings(result)
    last, skipped = last_whole(folder, record)
    problem = _problem(named, record) if named else next(iter(skipped.values()), "")
    if problem and (named or not last):
        advice = f"use {last}" if last else "no other checkpoint there is whole"
        raise ConfigError(f"resume={resume}: {problem}; {advice}")
    return GivenCheckpoint(str(path), named or last or path, record, skipped)


def last_whole(folder: Path, recorded: Mapping[str, Any]) -> tuple[Path | None, dict[Path, str]]:
    """Return a folder's last whole checkpoint, and what is wrong with each one after it."""
    skipped: dict[Path, str] = {}
    for checkpoint in checkpoints(folder):
        if (problem := _problem(checkpoint, recorded)) is None:
            return checkpoint, skipped
        skipped[checkpoint] = problem
    return None, skipped


def _problem(checkpoint: Path, recorded: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a checkpoint; raises OutputError if it has only a model."""
    problem = damage(checkpoint, recorded)
    if problem and recorded.get(ONLY_MODEL) and not damage(checkpoint, recorded, resumable=False):
        raise OutputError(
            f"{checkpoint} has only a model, since {ONLY_MODEL}=true: no run resumes from it; use "
            "another hydra.run.dir to start from scratch"
        )
    return problem


def _checkpoint_folders(path: Path) -> list[Path]:
    """Return where checkpoints may be: in the folder itself, or below it if it is a run folder."""
    result = read_result(path) or {}
    folders = [path, path / "checkpoints" / str(result.get("model_type"))]
    final = result.get("final")
    return [*folders, (path / final).parent] if final else folders


def _result_of(folder: Path) -> dict[str, Any] | None:
    """Read result.json of the run that a checkpoint folder belongs to."""
    if run := run_of(folder):
        return read_result(Path(run))
    return next(filter(None, map(read_result, folder.parents[:3])), None)


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
    """The checkpoint, where it lay before a copy came into the run's folder."""
    started_from: str | None
    """The absolute path that resume=PATH names, or named at an earlier start."""

    @property
    def step(self) -> int | None:
        """The checkpoint's optimizer step; None at the first step of a training."""
        return saved_step(self.checkpoint) if self.checkpoint else None

    def warn_if_reached(self, max_steps: int, budget: Any) -> None:
        """Warn if the checkpoint has reached the last step: the run then only measures it.

        `budget` is budget.tokens, which decided max_steps, or None.
        """
        if self.step is not None and 0 < max_steps <= self.step:
            key, given = "max_steps", f"max_steps={max_steps}"
            if budget is not None:
                key, given = "budget.tokens", f"budget.tokens={budget} takes {max_steps} steps"
            reached = f"{given}, but {self.checkpoint} has reached step {self.step}"
            further = f"nothing is left to train; set a larger {key} to continue"
            logger.warning("%s: %s", reached, further)

    def refuse_other_data(self, trained: str, evaluated: str) -> None:
        """Refuse to continue if the fingerprint of the data or of its evaluation rows is another.

        The best checkpoint so far is the best on its own evaluation rows.
        """
        if self.checkpoint is not None and self.recorded:
            earlier = {**self.recorded["provenance"], **self.recorded}
            now = {"data_fingerprint": trained, "eval_fingerprint": evaluated}
            before = {key: earlier.get(key) for key in now}
            refuse_changes(self.checkpoint, before, now, self.resume)


def find_start(
    folder: Path, run_dir: Path, resume: str, previous: dict[str, Any], now: dict[str, Any]
) -> Start:
    """Claim a checkpoint folder in the first process, and find in all where the run starts.

    `previous` is the result.json that the run left before, `now` are its identity and settings.
    """
    given = given_checkpoint(resume)

    def find() -> Path | None:
        if distributed.is_first():
            return claim_folder(folder, run_dir, resume, given, with_settings(previous), now)
        return last_checkpoint(folder)

    checkpoint = distributed.first_process_first("claim_folder", find)
    before_from = previous.get("started_from")
    copied = given is not None and given.checkpoint.parent != folder and before_from != given.path
    source = given.checkpoint if given is not None and copied else checkpoint
    start = Start(
        checkpoint=checkpoint,
        recorded=given.recorded if given else previous,
        resume=resume,
        resumed_from=str(source) if source else None,
        started_from=given.path if given else before_from,
    )
    if source is not None:
        logger.info("resuming from %s, after step %d", source, start.step)
    elif now.get("trainer") != "none":
        logger.info("no checkpoint to resume from: starting at the first step")
    return start


def claim_folder(
    folder: Path,
    run_dir: Path,
    resume: str,
    given: GivenCheckpoint | None,
    before: dict[str, Any],
    now: dict[str, Any],
) -> Path | None:
    """Claim a checkpoint folder for a run; return the checkpoint to resume from, if there is one.

    A folder inside the run folder belongs to the run; any other names its run in run.json. Damaged
    checkpoints are renamed. `before` is the record of an earlier start in the run folder, or empty;
    `now` has the fields of the record that must not have changed. Raises OutputError if the folder
    is another run's, cannot be written, or holds a checkpoint that cannot be resumed from.
    """
    _claim(folder, run_dir)
    # The run that wrote them says which parts they must have.
    record = {**now, **{key: value for key, value in before.items() if value is not None}}
    own, skipped = last_whole(folder, record)
    done = [folder / FINAL] if before and (folder / FINAL).is_dir() else []
    newest = own or next(iter([*skipped, *done]), None)
    if given is not None:
        refuse_changes(given.checkpoint, given.recorded, now, resume)
        if own is not None:
            _refuse_two_checkpoints(given, own, resume, before)
    elif own is not None and resume == "never":
        raise OutputError(
            f"resume=never, but {own} is there: use resume=auto or another hydra.run.dir"
        )
    elif own is not None and not before.get("kept_layers"):
        raise OutputError(
            f"resume=auto, but no result.json in {run_dir} says which layers and settings {own} "
            f"has: remove {folder} to start from scratch"
        )
    if newest is not None and resume != "never":
        refuse_changes(newest, before, now, resume)
    if own is not None:
        _refuse_without_best(own, record)
    with disk_errors(folder, "output_dir"):
        for path, problem in skipped.items():
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            logger.warning("%s: this checkpoint is skipped, and now called %s", problem, aside.name)
    return _copied(given, folder) if given is not None and own is None else own


def _copied(given: GivenCheckpoint, folder: Path) -> Path:
    """Copy a checkpoint into a run's folder, after the best one it refers to."""
    checkpoint = given.checkpoint
    _refuse_without_best(checkpoint, given.recorded)
    for problem in given.skipped.values():
        logger.warning("%s: this checkpoint is skipped", problem)
    with disk_errors(folder, "output_dir"):
        for each in dict.fromkeys((best_checkpoint(checkpoint), checkpoint)):
            copy_folder(each, folder / each.name)
    return folder / checkpoint.name


def _refuse_two_checkpoints(
    given: GivenCheckpoint, own: Path, resume: str, before: dict[str, Any]
) -> None:
    """Refuse a path if the run folder has another checkpoint to resume from."""
    inside = given.checkpoint.parent == own.parent
    # The same command again, as after a requeue, resumes from its own.
    is_again = not inside and before.get("started_from") == given.path
    if given.checkpoint != own and not is_again:
        raise OutputError(
            f"resume={resume}, but {own} is there: use resume=auto to resume from it, or another "
            "hydra.run.dir"
        )


def _refuse_without_best(checkpoint: Path, recorded: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose best weights are gone or damaged: final/ could not hold them."""
    best = best_checkpoint(checkpoint)
    if best == checkpoint:
        return
    if problem := damage(best, recorded, resumable=False) if best.is_dir() else "it is gone":
        raise OutputError(
            f"{checkpoint} says that {best.name} beside it has the best weights, but {problem}: "
            "restore it, or use another hydra.run.dir to start from scratch"
        )


def refuse_changes(
    checkpoint: Path, before: dict[str, Any], now: dict[str, Any], resume: str
) -> None:
    """Refuse to resume from a checkpoint if its run recorded other values than those of `now`.

    A setting of the trainer or the adapter that only one of them has is a change, too.
    """
    own = [key for key in {**now, **before} if key.startswith(("trainer.", "adapter."))]
    if not before.keys() & {*own}:  # an older version recorded none
        own = []
    for key in dict.fromkeys([*now, *own]):
        value, earlier = now.get(key), before.get(key)
        if earlier != value and (earlier is not None or key in own):
            raise OutputError(
                f"resume={resume}, but {checkpoint} has {key}={earlier}, not {value}: "
                f"{'use another hydra.run.dir' if resume == 'auto' else 'use another checkpoint'}"
            )


def _claim(folder: Path, run_dir: Path) -> None:
    own = run_dir.resolve()
    inside = folder.resolve().is_relative_to(own)
    if not inside and any(folder.glob("[cf]*")):
        owner = run_of(folder) or "something else"
        if owner not in (str(own), str(run_dir)):
            raise OutputError(
                f"output_dir={folder.parent}: {folder} holds the result of {owner}, which is "
                "never overwritten: use another output_dir"
            )
    with disk_errors(folder, "output_dir"):
        folder.mkdir(parents=True, exist_ok=True)
        if not inside:
            write_json(folder / RUN_FILE, {"run": str(own)})
