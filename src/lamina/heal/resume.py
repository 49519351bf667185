"""Resuming: the checkpoint a run continues from, and the owner of a checkpoint folder."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.errors import ConfigError, OutputError
from lamina.measure.results import read_result
from lamina.runtime import distributed
from lamina.runtime.files import PARTIAL, copy_folder, disk_errors, write_json

STEP = re.compile(r"checkpoint-(\d+)$")
"""Name of a checkpoint, with its optimizer step."""

WORDS = ("auto", "never")
"""Values of resume that are not paths."""

FREE_IN_RESUMING = frozenset(
    "max_steps num_train_epochs eval_strategy eval_steps save_strategy save_steps save_total_limit "
    "logging_strategy logging_steps per_device_eval_batch_size".split()
)
"""Training arguments that may change on resuming: the length, and what is logged and saved when."""


def last_checkpoint(folder: Path) -> Path | None:
    """Return the complete checkpoint-{step}/ with the highest step."""
    complete = [path for path in folder.glob("checkpoint-*") if is_complete(path)]
    return max(complete, key=lambda path: saved_step(path) or 0, default=None)


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint is complete.

    The trainer writes trainer_state.json last: if it is unreadable or names another step, the save
    was interrupted.
    """
    match = STEP.fullmatch(checkpoint.name)
    return match is not None and saved_step(checkpoint) == int(match[1])


def saved_step(checkpoint: Path) -> int | None:
    """Return a checkpoint's optimizer step; None if the checkpoint is incomplete."""
    step: int | None = _trainer_state(checkpoint).get("global_step")
    return step


def best_beside(checkpoint: Path) -> Path:
    """Return the best checkpoint that one knows of, which lies beside it or is it.

    The path in the trainer's state may be outdated: the folder may have moved.
    """
    best = _trainer_state(checkpoint).get("best_model_checkpoint")
    return checkpoint.with_name(Path(best).name) if best else checkpoint


def _trainer_state(checkpoint: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return {}
    return content


@dataclass(frozen=True)
class Origin:
    """The checkpoint that resume=PATH names."""

    given: str
    """The absolute path as given, of a checkpoint or of a run folder."""

    checkpoint: Path
    """The complete checkpoint it leads to."""

    recorded: dict[str, Any]
    """result.json of its run, with the settings at the top level, too."""


def origin(resume: str) -> Origin | None:
    """Find the checkpoint that resume=PATH names; None for auto and never.

    Args:
        resume: auto, never, a checkpoint-{step}/, or a run folder for its last checkpoint.

    Raises:
        ConfigError: There is no complete checkpoint, or no result.json of its run.
    """
    if resume in WORDS:
        return None
    path = Path(resume).expanduser().absolute()
    if not path.is_dir():
        raise ConfigError(
            f"resume={resume}: no such folder; give auto, never, or the folder of a run or of a "
            "checkpoint"
        )
    checkpoint = _named_checkpoint(resume, path)
    result = _result(checkpoint.parent)
    if not result or not result["kept_layers"]:
        raise ConfigError(
            f"resume={resume}: no result.json above {checkpoint} says which layers and settings it "
            "has; keep a checkpoint below the folder of its run"
        )
    return Origin(str(path), checkpoint, {**result, **result["settings"]})


def _named_checkpoint(resume: str, path: Path) -> Path:
    if STEP.fullmatch(path.name):
        if is_complete(path):
            return path
        last = last_checkpoint(path.parent)
        advice = f"give {last}" if last else "there is no complete one beside it"
        raise ConfigError(f"resume={resume}: its save was interrupted; {advice}")
    for folder in _folders(path):
        if (last := last_checkpoint(folder)) is not None:
            return last
    raise ConfigError(
        f"resume={resume}: there is no complete checkpoint; give resume=auto to start"
    )


def _folders(path: Path) -> list[Path]:
    """Return where checkpoints may lie: in the folder itself, or below it if it is a run folder."""
    result = read_result(path) or {}
    own = [path, path / "checkpoints" / str(result.get("model_type"))]
    final = result.get("final")
    return [*own, (path / final).parent] if final else own


def _result(folder: Path) -> dict[str, Any] | None:
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
    """The absolute path that resume=PATH gave, now or in an earlier start."""

    @property
    def path(self) -> str | None:
        """The checkpoint's path, as the trainer takes it."""
        return str(self.checkpoint) if self.checkpoint else None

    def refuse_other_data(self, fingerprint: str) -> None:
        """Refuse to continue on other data than the checkpoint's.

        Raises:
            OutputError: The data has changed.
        """
        if self.checkpoint is not None and self.recorded:
            now, before = {"data_fingerprint": fingerprint}, self.recorded["provenance"]
            refuse_changes(self.checkpoint, before, now, self.resume)


def start_of(
    folder: Path, run_dir: Path, resume: str, previous: dict[str, Any], now: dict[str, Any]
) -> Start:
    """Take a checkpoint folder, in the first process before the others; see `claim`.

    Args:
        folder: Folder of checkpoint-{step}/ and final/.
        run_dir: The run folder.
        resume: auto, never or a path.
        previous: What an earlier start in the run folder recorded; empty if there was none.
        now: Fields that must not have changed since.
    """
    named = origin(resume)
    earlier = {**previous, **previous.get("settings", {})}
    checkpoint = distributed.in_turn(
        "claim",
        lambda: (
            claim(folder, run_dir, resume, named, earlier, now)
            if distributed.is_first()
            else last_checkpoint(folder)
        ),
    )
    return Start(
        checkpoint=checkpoint,
        recorded=named.recorded if named else previous,
        resume=resume,
        resumed_from=named.given if named else previous.get("resumed_from"),
    )


def claim(
    folder: Path,
    run_dir: Path,
    resume: str,
    origin: Origin | None,
    before: dict[str, Any],
    now: dict[str, Any],
) -> Path | None:
    """Take a checkpoint folder for a run; return the checkpoint to resume from, if there is one.

    A folder inside the run folder belongs to the run; another one names its run in run.json. The
    remains of interrupted saves are removed.

    Args:
        folder: Folder of checkpoint-{step}/ and final/.
        run_dir: The run folder.
        resume: auto, never or a path.
        origin: What a path leads to.
        before: Record of an earlier start in the run folder; empty if there was none.
        now: Fields of it that must not have changed.

    Raises:
        OutputError: The folder is another run's, cannot be written, or holds a checkpoint that
            cannot be resumed from.
    """
    _own(folder, run_dir)
    _tidy(folder)
    own = last_checkpoint(folder)
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
    """Copy a checkpoint into a run's folder, after the best one it refers to."""
    _refuse_without_best(checkpoint)
    with disk_errors(folder, "output_dir"):
        for each in dict.fromkeys((best_beside(checkpoint), checkpoint)):
            copy_folder(each, folder / each.name)
    return folder / checkpoint.name


def _refuse_two(origin: Origin, own: Path, resume: str, before: dict[str, Any]) -> None:
    """Refuse a path if the run folder has another checkpoint to resume from.

    The same command again, as after a requeue, resumes from its own.
    """
    inside = origin.checkpoint.parent == own.parent
    if origin.checkpoint == own or (not inside and before.get("resumed_from") == origin.given):
        return
    raise OutputError(
        f"resume={resume}, but {own} is there: give resume=auto to resume from it, or another "
        "hydra.run.dir"
    )


def _refuse_without_best(checkpoint: Path) -> None:
    """Refuse a checkpoint whose best weights are gone: final/ could not hold them."""
    best = best_beside(checkpoint)
    if not is_complete(best):
        raise OutputError(
            f"{checkpoint} says that {best.name} beside it has the best weights, but it is gone: "
            "restore it, or give another hydra.run.dir to start anew"
        )


def refuse_changes(
    checkpoint: Path, before: dict[str, Any], now: dict[str, Any], resume: str
) -> None:
    """Refuse to resume from a checkpoint of another experiment.

    Args:
        checkpoint: The checkpoint.
        before: Record of its run.
        now: Fields of it that must not have changed.
        resume: The parameter.

    Raises:
        OutputError: One of them has changed.
    """
    for key, value in now.items():
        if (earlier := before.get(key)) not in (value, None):
            raise OutputError(
                f"resume={resume}, but {checkpoint} has {key}={earlier}, not {value}: "
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
    """Remove the remains of interrupted saves, which a full disk needs the room of."""
    for path in (*folder.glob(PARTIAL), *folder.glob("checkpoint-*")):
        if path.match(PARTIAL) or (STEP.fullmatch(path.name) and not is_complete(path)):
            shutil.rmtree(path)
