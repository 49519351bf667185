"""Result files: reports of finished sweeps as JSON, without item texts, token ids or paths."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from lamina.depth.statistics import Statistics
from lamina.measure.results import RESULT_FILE, ROWS_FILE, SCAN_FILE
from lamina.measure.tasks.files import EVALUATION_FILE, read_evaluation
from lamina.report.reading import read_report
from lamina.report.runs import Report, RunRow, Scan, override_values
from lamina.runtime.files import finite

EXPERIMENT = "evidence_"


def collected(folders: Sequence[Path], pairs: Mapping[Path, Mapping[str, Path]]) -> Report:
    """Read jobs of several sweeps, and scans, as if one sweep had made them.

    `pairs` has evaluations of runs by role, which `lamina evaluate` made in folders of its own.
    """
    jobs = [path.parent for each in folders for path in sorted(each.glob(f"*/{RESULT_FILE}"))]
    with TemporaryDirectory() as name:
        sweep = Path(name).resolve() / "jobs"
        sweep.mkdir()
        for number, job in enumerate(jobs):
            (sweep / str(number)).symlink_to(job.resolve())
        for number, (job, roles) in enumerate(pairs.items(), len(jobs)):
            place = sweep / str(number) / "evaluation"
            place.mkdir(parents=True)
            for file in (RESULT_FILE, ROWS_FILE):
                (place.parent / file).symlink_to((job / file).resolve())
            for role, folder in roles.items():
                (place / role).symlink_to(folder.resolve())
        scans = [each for each in folders if (each / SCAN_FILE).is_file()]
        report = read_report([*([sweep] if jobs or pairs else []), *scans])
    if report.broken:
        raise SystemExit(f"error: {report.broken[0][0]}: {report.broken[0][1]}")
    rows = [_bare(row) for row in report.rows]
    named = [replace(scan, folder=Path(scan.folder).name) for scan in report.scans]
    return replace(report, rows=rows, scans=named)


def _bare(row: RunRow) -> RunRow:
    """Return a row without texts and without folders of this machine."""
    config = {key: value for key, value in row.config.items() if not f"{value}".startswith("/")}
    return replace(row, samples=[], config=config, folder=row.job, sweep=None)


def protocols(part: Path) -> dict[str, list[dict[str, Any]]]:
    """Return how each task of a part was measured, with its kind and items: one way, or several."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(part.glob(f"**/{EVALUATION_FILE}")):
        for name, task in read_evaluation(path.parent).tasks.items():
            way = {"kind": task.kind, "items": task.items, "hash": task.items_hash, **task.protocol}
            ways = found.setdefault(name, [])
            ways += [way] * (way not in ways)
    return found


def write(
    path: Path, content: Mapping[str, Any], reports: Mapping[str, Report], hidden: str
) -> None:
    """Write a part's result file; `hidden` is the model's folder, of which the name is written."""
    whole = {**content, "reports": {name: asdict(report) for name, report in reports.items()}}
    text = json.dumps(finite(whole), indent=1, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace(hidden, Path(hidden).name) + "\n", "utf-8")


def read(path: Path) -> dict[str, Any]:
    """Read a result file; its reports are `Report` again."""
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    content["reports"] = {name: _report(each) for name, each in content["reports"].items()}
    return content


def _report(given: Mapping[str, Any]) -> Report:
    rows = [RunRow(**row) for row in given["rows"]]
    scans = [
        Scan(**{**scan, "statistics": Statistics.from_dict(scan["statistics"])})
        for scan in given["scans"]
    ]
    return Report(**{**given, "rows": rows, "scans": scans})


def model(content: Mapping[str, Any]) -> str:
    """Return the name of a result file's model, without the folder it lay in."""
    return Path(content["settings"]["model_name"]).name


def method(row: RunRow) -> str:
    """Return the healing of a run: its experiment's name."""
    return override_values(row.overrides)["experiment"].removeprefix(EXPERIMENT)


def ranked(rows: Iterable[RunRow]) -> list[tuple[str, float]]:
    """Return the healings of a reduced model with their mean losses over seeds, the best first."""
    losses: dict[str, list[float]] = {}
    for row in rows:
        if row.is_complete and row.dropped_layers and row.healed_loss is not None:
            losses.setdefault(method(row), []).append(row.healed_loss)
    return sorted(((name, fmean(each)) for name, each in losses.items()), key=lambda each: each[1])
