"""lamina report: its files, what it prints, and that someone else's text stays text."""

import csv
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest

from lamina.report.reading import read_report
from lamina.report.report_files import markdown, table
from lamina.report.runs import RunRow
from lamina.report.sweep_table import SweepTable
from lamina.runtime.console import console
from tests.conftest import Finished, lamina
from tests.report.test_evidence import run
from tests.report.test_reading import write_result

HOSTILE = "=1+1 <script>alert(1)</script> | \x1b[31m `a` *b* [c](http://d)\nnext"


def parsed(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def test_the_files_of_a_sweep(tmp_path: Path) -> None:
    for number in (1, 2):
        overrides = ["experiment=quickstart", f"seed={number}"]
        run(tmp_path / "jobs" / str(number), name=f"seed-{number}", overrides=overrides)
    write_result(tmp_path / "jobs" / "3", status="failed", error="no such layer", name=None)
    (tmp_path / "jobs" / "0").mkdir()
    (tmp_path / "jobs" / "0" / "result.json").write_text("[1]")
    done = lamina("report", "jobs", cwd=tmp_path)
    assert done.code == 0, done.errors
    path = tmp_path / "jobs" / "0" / "result.json"
    assert done.refusal == f"cannot be used: {path}: expected a JSON object, found [1]\n"
    assert done.output.splitlines()[-1] == "jobs/report.html, report.png, report.md, report.csv"
    rows = parsed((tmp_path / "jobs" / "report.csv").read_text())
    assert [row["status"] for row in rows] == ["completed", "completed", "damaged", "failed"]
    first = rows[0]
    assert (first["rank"], first["name"], first["healed_loss"]) == ("1", "seed-1", "1.5")
    assert (first["arc/acc original"], first["arc/acc final"]) == ("0.8", "0.2")
    assert float(first["arc/acc retention"]) == pytest.approx(25)
    assert first["arc/acc is_within_noise"] == "False"
    assert first["healed_loss of seeds: spread"] == "0.0"
    assert first["arc/acc of seeds: mean"] == "0.2"
    lines = (tmp_path / "jobs" / "report.md").read_text().splitlines()
    assert lines[0] == "# jobs"
    assert lines[2].startswith("4 of 4 runs have ended; made at ")
    assert "| \\* seed-1 | 5 of 6 | 1 | 3 | 1.5 | 0.5 | 25 % | 90 % | completed |" in lines
    assert [line for line in lines if line.startswith("## ")] == [
        "## Runs",
        "## Tasks",
        "## Over seeds",
        "## Not completed",
        "## Files that cannot be used",
        "## Made with",
    ]
    (task,) = (line for line in lines if line.startswith("| seed-1 | arc acc |"))
    cells = task.split(" | ")
    assert cells[2:7] == ["10", "0.25", "0.8 ± 0.2", "", "0.2 ± 0.2"]
    assert cells[10] == "0.031"
    (setting,) = (line for line in lines if line.startswith("| experiment=quickstart |"))
    assert setting == (
        "| experiment=quickstart | 2 | 1.5 ± 0 | 20.0 % ± 30.2 % | 2 ± 0 | 2 ± 0 "
        "| 0.0041 MB ± 0 MB |"
    )


def test_someone_elses_text_stays_text(tmp_path: Path) -> None:
    run(tmp_path / "run", name=HOSTILE, error=HOSTILE, status="failed")
    report = read_report([tmp_path / "run"])
    (row,) = parsed(table(report).replace("\nnext", " next"))
    assert row["name"].startswith("'=1+1 <script>")
    shown = markdown(report)
    assert (
        r"=1+1 \<script\>alert(1)\</script\> \| \\x1b\[31m \`a\` \*b\* \[c\](http:\//d) next"
        in shown
    )
    assert "\x1b" not in shown + table(report)
    done = lamina("report", tmp_path / "run", cwd=tmp_path, COLUMNS="200")
    assert done.code == 0
    assert r"<script>alert(1)</script> | \x1b[31m" in done.output
    assert "\x1b" not in done.output + done.errors


@pytest.mark.parametrize("start", "=+-@")
def test_no_cell_is_a_formula(start: str, tmp_path: Path) -> None:
    write_result(tmp_path, name=f"{start}cmd", metrics={"eval_loss": 0.5})
    (row,) = parsed(table(read_report([tmp_path])))
    assert row["name"] == f"'{start}cmd"
    assert row["difference"] == "-0.5"


def test_a_report_of_several_folders_goes_where_it_is_told(tmp_path: Path) -> None:
    run(tmp_path / "a")
    write_result(tmp_path / "b", metrics={"eval_loss": 1.4})
    done = lamina("report", "b", "a", "--output", "out", cwd=tmp_path)
    assert done.code == 0, done.errors
    names = [f"report.{suffix}" for suffix in ("csv", "html", "md", "png")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert not (tmp_path / "a" / "report.csv").exists()
    assert (tmp_path / "out" / "report.md").read_text().startswith("# b, a\n")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("nowhere", "nowhere: no such folder"),
        ("empty", "empty: holds no run, sweep, scan or evaluation: pass the folder of one"),
    ],
)
def test_a_folder_that_holds_nothing_is_refused(given: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = lamina("report", given, cwd=tmp_path)
    assert (done.code, done.output) == (1, "")
    assert done.refusal == f"error: {tmp_path}/{reason}\n"
    assert list((tmp_path / "empty").iterdir()) == []


IMPORTED = """
import sys
from lamina.cli import main
main()
heavy = [name for name in ("torch", "transformers", "scipy.stats", "pandas") if name in sys.modules]
sys.exit(str(heavy) if heavy else 0)
"""


def test_a_report_imports_nothing_heavy(tmp_path: Path) -> None:
    run(tmp_path / "run")
    command = [sys.executable, "-c", IMPORTED, "report", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    reported = Finished(done.returncode, done.stdout, done.stderr, tmp_path)
    assert (reported.code, reported.refusal) == (0, "")


@pytest.mark.parametrize(
    ("width", "shown", "legend"),
    [
        (200, ["copy", "recall", "reverse", "sort", "swap"], "% of the original's figure"),
        (80, ["copy", "recall", "reverse"], "; 2 more in the report"),
    ],
)
def test_the_console_shows_the_tasks_it_has_room_for(
    width: int, shown: list[str], legend: str
) -> None:
    families = ("copy", "recall", "reverse", "sort", "swap")
    compared = {name: {"exact_match": {"retention": 75.0}} for name in families}
    rows = [
        RunRow(
            name=f"keep-7-seed-{seed}",
            folder="/runs/0",
            sweep=None,
            status="completed",
            is_best=seed == 1,
            comparisons=compared,
        )
        for seed in (1, 2)
    ]
    with StringIO() as file:
        console(file=file, width=width).print(SweepTable(rows))
        _, header, *lines = file.getvalue().splitlines()
    assert header.split() == ["job", "layers", "healed", "difference", *shown, "status"]
    assert lines[0].count("75 %") == len(shown)
    assert " ".join(lines).rstrip().endswith(legend)
