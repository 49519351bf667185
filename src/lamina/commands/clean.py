"""`lamina clean RUN`: remove the checkpoints that are no longer needed."""

import argparse
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lamina.commands.app import errors_in_one_line, parse
from lamina.errors import ConfigError, OutputError
from lamina.export.final import FINAL
from lamina.measure.results import LADDER_FOLDER, RESULT_FILE, read_result, run_of, with_settings
from lamina.runtime.checkpoints import best_checkpoint, checkpoints, damage, last_checkpoint
from lamina.runtime.console import printable
from lamina.runtime.lock import locked
from lamina.runtime.sizes import folder_bytes
from lamina.units import format_bytes
from lamina.weights.source import ADAPTER_FILE, made_of

DESCRIPTION = """\
List the checkpoints that are no longer needed, with their sizes, and remove them: all of a
completed run; of any other, those older than its last whole one, except the best. final/ stays, but
for those of a completed ladder's earlier rounds, and a run that is still running is left alone.
Without checkpoints, a completed run cannot be continued with more steps."""

CALLS = """\
usual calls:
  lamina clean outputs/2026-11-27/12-00-00-000000     one run: list its checkpoints, then ask
  lamina clean multirun/2026-11-27/12-00-00-000000    every job of a sweep
  lamina clean SWEEP/3                                one of its jobs
  lamina clean SWEEP --yes                            without asking, as in scripts
  lamina clean SWEEP < /dev/null                      only list them
"""


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser("lamina clean", description=DESCRIPTION, epilog=CALLS)
    parser.add_argument("folder", metavar="RUN_OR_SWEEP", type=Path, help="folder of either")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    given = parse(parser)
    with errors_in_one_line(), ExitStack() as owned:
        sizes = {path: folder_bytes(path) for path in unneeded(given.folder, owned)}
        for path, size in sizes.items():
            sys.stdout.write(printable(f"{format_bytes(size):>8}  {path}\n"))
        if not sizes:
            sys.stdout.write(f"{given.folder}: no checkpoint to remove\n")
            return
        kind = "folder" if any(path.name == FINAL for path in sizes) else "checkpoint"
        count = f"{len(sizes)} {kind}{'s' * (len(sizes) > 1)}, {format_bytes(sum(sizes.values()))}"
        if not (given.yes or _agreed(count)):
            return
        for path in sizes:
            try:
                shutil.rmtree(path)
            except OSError as error:
                raise OutputError(f"{path} cannot be removed: {error.strerror}") from error
        sys.stdout.write(f"removed {count}\n")


def unneeded(folder: Path, owned: ExitStack) -> Iterator[Path]:
    """Yield a run's or a sweep's checkpoints that can go; `owned` locks their runs until it closes.

    Raises ConfigError if the folder holds no run.
    """
    jobs = [folder, *sorted(path.parent for path in folder.glob(f"*/{RESULT_FILE}"))]
    rounds = f"{LADDER_FOLDER}/*/{RESULT_FILE}"
    runs = [each for job in jobs for each in (job, *(path.parent for path in job.glob(rounds)))]
    results = {run: result for run in runs if (result := read_result(run)) is not None}
    if not results:
        raise ConfigError(f"{folder}: holds no run or sweep: pass the folder of one")
    for run, result in results.items():
        saved = _checkpoint_folder(run, result)
        if saved is None:
            continue
        try:
            owned.enter_context(locked(run, "hydra.run.dir"))
            if saved.is_dir() and not saved.samefile(run):
                owned.enter_context(locked(saved, "output_dir"))
        except OutputError as error:
            sys.stderr.write(printable(f"left alone: {error}\n"))
            continue
        needed = _needed(saved, result)
        whole = results.get(run.parent.parent, {}) if run.parent.name == LADDER_FOLDER else {}
        if whole.get("status") == "completed" and (saved / FINAL).is_dir():
            yield saved / FINAL
        for path in sorted(saved.glob("*checkpoint-*"), key=lambda path: path.stat().st_mtime):
            if path not in needed and path.is_dir() and not path.is_symlink():
                yield path


def _checkpoint_folder(run: Path, result: dict[str, Any]) -> Path | None:
    """Return where a run's checkpoints are; outside of it only if run.json there names the run."""
    inside = run / "checkpoints" / str(result["model_type"])
    folder, own = (run / result["final"]).parent if result["final"] else inside, run.resolve()
    for each in (folder, inside):
        with made_of(run / RESULT_FILE):  # a path may hold what no file system does
            if each.resolve().is_relative_to(own) or run_of(each) == str(own):
                return each
    return None


def _needed(folder: Path, result: dict[str, Any]) -> set[Path]:
    if result["status"] != "completed":
        newest = checkpoints(folder)
        for number, path in enumerate(newest, 1):
            if damage(path, with_settings(result)) is None:
                return {*newest[:number], best_checkpoint(path)}
        return {*newest}
    last = last_checkpoint(folder)
    if last is None:
        return set()
    best = best_checkpoint(last)
    # lamina export takes the adapter of a merged run from there; that of a round has lost its base.
    has_rounds = "ladder.keep_layers" in (result["settings"] or {})
    is_merged = not (folder / FINAL / ADAPTER_FILE).is_file() and not has_rounds
    return {best} if is_merged and (best / ADAPTER_FILE).is_file() else set()


def _agreed(count: str) -> bool:
    if not sys.stdin.isatty():
        sys.stdout.write(f"{count}: nothing was removed; --yes removes them\n")
        return False
    sys.stdout.write(f"remove {count}? [y/N] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
