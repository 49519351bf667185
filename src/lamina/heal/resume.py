"""Resuming: which checkpoint a run continues from, and whose a checkpoint folder is."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.errors import ConfigError, OutputError
from lamina.measure.results import read_result
from lamina.runtime.files import PARTIAL, copy_folder, disk_errors, write_json

STEP = re.compile(r"checkpoint-(\d+)$")
"""Name of a checkpoint, with the optimizer step that it was saved after."""

WORDS = ("auto", "never")
"""Values of resume that are no paths."""

FREE_IN_RESUMING = frozenset(
    "max_steps num_train_epochs eval_strategy eval_steps save_strategy save_steps save_total_limit "
    "logging_strategy logging_steps per_device_eval_batch_size".split()
)
"""Training arguments that may change when a run goes on: how long, and how often it looks."""


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
    step: int | None = _trainer_state(checkpoint).get("global_step")
    return step


def best_beside(checkpoint: Path) -> Path:
    """Return where the best checkpoint that one knows of lies: beside it, or it is that itself.

    The path in the trainer's state is the one of the day it was written.
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
    checkpoint = _named_checkpoint(resume, path)
    result = _result(checkpoint.parent)
    if not result or not result["kept_layers"]:
        raise ConfigError(
            f"resume={resume}: no result.json above {checkpoint} says which layers and settings it "
            "is of; keep a checkpoint below the folder of its run"
        )
    return Origin(str(path), checkpoint, {**result, **result["settings"]})


def _named_checkpoint(resume: str, path: Path) -> Path:
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
            copy_folder(each, folder / each.name)
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
