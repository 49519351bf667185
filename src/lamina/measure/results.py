"""result.json: all that sweeps, reports and resumed jobs read of a run."""

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lamina.errors import LaminaError, ModelError, OutputError
from lamina.runtime import distributed
from lamina.runtime.files import write_json
from lamina.runtime.interruption import interruptible
from lamina.weights.source import parse_json, read_json, refuse_mistyped

RESULT_FILE = "result.json"
SCAN_FILE = "scan.json"
RUN_FILE = "run.json"
ROWS_FILE = "eval.jsonl"
DRY_RUN_FILE = "dry_run.json"
MULTIRUN_FILE = "multirun.yaml"
"""Hydra's file in a sweep's folder, with the config and the command line."""
SKIPPED_FILE = "skipped_rows.jsonl"
LADDER_FOLDER = "ladder"
"""Folder of a ladder's earlier rounds in that of their run, each a run by itself."""

READ: dict[str, Any] = {
    "status": str,
    "metrics": dict,
    "overrides": list,
    **dict.fromkeys(("error", "name", "model_type", "adapter", "final", "dtype"), str | None),
    **dict.fromkeys(("selector", "eval_fingerprint"), str | None),
    **dict.fromkeys(("settings", "provenance", "evaluation", "repair"), dict | None),
    **dict.fromkeys(("kept_layers", "history", "samples", "rounds"), list | None),
    **dict.fromkeys(("num_layers", "num_parameters", "trainable_parameters", "seed"), int | None),
}
"""Fields of result.json that are read again, and their types."""

ROW: dict[str, Any] = {"input_ids": list, "labels": list, "loss": int | float | None}
"""Fields of a row of eval.jsonl, and their types."""

ROUND: dict[str, Any] = {
    "kept_layers": list,
    **dict.fromkeys(("reduced_eval_loss", "eval_loss", "train_seconds"), int | float | None),
    "trained_tokens": int,
}
"""Fields of a ladder's round, and their types."""

METRICS = (
    "baseline_eval_loss reduced_eval_loss eval_loss perplexity eval_sample_loss kl captured_mass "
    "tokens_per_second flops_per_second mfu train_tokens trained_tokens train_seconds seconds "
    "teacher_cache_seconds peak_memory_bytes"
).split()
"""Every metric of a run; None until it is measured."""

KNOWN_LATER = (
    "error name model_type num_layers kept_layers selector adapter num_parameters "
    "trainable_parameters repair"
).split()
"""Fields of result.json that begin as None."""


class Record:
    """One run's result.json, kept in memory and written atomically."""

    def __init__(
        self,
        folder: Path,
        overrides: Sequence[str],
        config: str | None = None,
        own: Sequence[str] = (),
    ) -> None:
        """Start a record in a run folder.

        `overrides` are the command line's arguments, `own` those that distinguish a job from the
        others of its sweep, `config` is the composed config's hash.
        """
        self.path = folder / RESULT_FILE
        self.own = own
        self.previous = read_result(folder)
        self.content: dict[str, Any] = {
            "status": "running",
            **dict.fromkeys(KNOWN_LATER),
            "overrides": list(overrides),
            "config": config,
            "notes": [],
            "settings": {},
            **dict.fromkeys(("resumed_from", "started_from", "final", "dtype", "seed")),
            "history": [],
            "samples": [],
            "rounds": [],
            "evaluation": {},
            "eval_fingerprint": None,
            "provenance": {},
            "data": {},
            "metrics": dict.fromkeys(METRICS),
        }

    def update(self, **fields: Any) -> None:
        """Set fields of the record and write it."""
        unknown = fields.keys() - self.content.keys()
        assert not unknown, f"not fields of result.json: {unknown}"
        self.content.update(fields)
        self.write()

    def measured(self, **metrics: Any) -> None:
        """Set metrics; `update` or the end of the run writes them."""
        unknown = metrics.keys() - set(METRICS)
        assert not unknown, f"not metrics of result.json: {unknown}"
        self.content["metrics"].update(metrics)

    def write(self) -> None:
        """Write the file, in the first process only; raises OutputError if the disk is full."""
        if distributed.is_first():
            write_json(self.path, self.content)

    def adopt(self) -> None:
        """Adopt what another process has written since this one read the file."""
        now = read_result(self.path.parent)
        if now is not None and now != self.previous:
            self.content = now

    def completed_before(self) -> dict[str, Any] | None:
        """Return the result if an earlier start completed the run, with the same config."""
        if (before := self.previous) is None or before["status"] != "completed":
            return None
        is_same = sorted(before["overrides"]) == sorted(self.content["overrides"]) and (
            before.get("config", self.content["config"]) == self.content["config"]
        )
        return before if is_same and (self.path.parent / (before["final"] or "")).is_dir() else None

    @contextmanager
    def outcome(self) -> Iterator[None]:
        """Record how the body ends: completed, requeued, interrupted, or failed with the reason.

        A start that is refused, or fails to resume a completed run, keeps the folder's earlier
        result.
        """
        try:
            with interruptible():
                yield
        except SystemExit:
            self.update(status="requeued")  # by submitit: the job will continue in this folder
            raise
        # Ctrl-C too: result.json must not say "running" forever.
        except BaseException as error:
            self._fail(error)
            raise
        self.update(status="completed")

    def _fail(self, error: BaseException) -> None:
        before = self.previous
        refused = self.content["model_type"] is None
        if before and before["model_type"] and (refused or before["status"] == "completed"):
            if read_result(self.path.parent) != before:
                write_json(self.path, before)
            return
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, LaminaError | KeyboardInterrupt):
            reason = str(error) or "interrupted"
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        with suppress(OutputError):  # a full disk must not hide the reason, which will be printed
            self.update(status=status, error=reason)


def combined_metrics(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the metrics that a ladder's rounds add up to, and their peak memory."""
    sums = ("train_tokens", "trained_tokens", "train_seconds")
    spent = [each["seconds"] for each in rounds]
    return {
        **{name: sum(each[name] for each in rounds) for name in sums},
        "seconds": {name: sum(each.get(name, 0) for each in spent) for name in spent[-1]},
        "peak_memory_bytes": max(each["peak_memory_bytes"] for each in rounds),
    }


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return a run folder's result.json; None if it is missing or damaged."""
    with suppress(ModelError):
        return load_result(folder)
    return None


def load_result(folder: Path) -> dict[str, Any]:
    """Return a run folder's result.json; raises ModelError if it is missing or damaged."""
    content = read_json(folder / RESULT_FILE, READ)
    if not all(isinstance(override, str) for override in content["overrides"]):
        raise ModelError(f"{folder / RESULT_FILE}: overrides holds what is not text")
    numbers = {**dict.fromkeys(METRICS, int | float | None), "seconds": dict | None}
    refuse_mistyped(f"{folder / RESULT_FILE}: metrics", content["metrics"], numbers)
    return content | {key: content[key] or {} for key in ("settings", "provenance", "evaluation")}


def with_settings(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return result.json's content, with the settings at the top level, too."""
    return {**result, **result.get("settings", {})}


def run_of(folder: Path) -> str | None:
    """Return the run folder that a folder of checkpoints outside of it names, if any."""
    with suppress(ModelError):
        return str(read_json(folder / RUN_FILE, {"run": str})["run"])
    return None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of eval.jsonl, if there is one, that have a loss; may raise a ModelError."""
    lines = path.read_bytes().splitlines() if path.is_file() else []
    rows = [parse_json(f"{path}, row {n}", line, ROW) for n, line in enumerate(lines, 1)]
    for number, row in enumerate(rows, 1):
        for field, least in (("input_ids", 0), ("labels", -100)):
            if not all(type(token) is int and least <= token < 2**31 for token in row[field]):
                found = reprlib.repr(row[field])
                raise ModelError(f"{path}, row {number}: {field} is {found}, expected token ids")
        if row["loss"] is not None and not {*row["labels"][1:]} - {-100}:
            raise ModelError(f"{path}, row {number}: it has a loss, but no label")
    return [row for row in rows if row["loss"] is not None]


def trained_tokens(row: Mapping[str, Any]) -> int:
    """Return the number of a row's tokens that a loss counts."""
    return sum(label != -100 for label in row["labels"][1:])


def distinguishing(jobs: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return each job's overrides without those that all jobs share."""
    common = set.intersection(*map(set, jobs)) if len(jobs) > 1 else set()
    return [[override for override in own if override not in common] for own in jobs]
