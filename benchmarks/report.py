"""What a report of many runs costs.

    python benchmarks/report.py [--runs 100,1000] [--json FILE] [--check]

Shows: seconds and peak memory of `lamina report` on the files of 100 and 1,000 runs with two tasks
of 500 items, and of a scan; the size of the page, and the seconds until Chromium, if there is one,
has drawn it. The runs are made up, their files have the real form. The plotting library's
JavaScript has been bundled before, as after anyone's first report.
Peer: none.
Aim: a report of 100 runs in ten seconds.
"""

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from subprocess import DEVNULL, Popen

from harness.figures import Aim, finish, options, show
from harness.made_runs import write_scan, write_sweep

LIMIT_S, LIMITED = 10.0, 100


def reported(runs: int, folder: Path) -> dict[str, float]:
    """Write runs, report them, and return seconds and bytes."""
    write_sweep(folder / "sweep", runs)
    write_scan(folder / "scan")
    command = [str(Path(sys.executable).with_name("lamina")), "report", "sweep", "scan"]
    began = time.perf_counter()
    process = Popen([*command, "--output", "report"], cwd=folder, stdout=DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        sys.exit(f"error: {' '.join(command)} failed")
    page = folder / "report" / "report.html"
    return {
        "seconds": seconds,
        "cpu": usage.ru_utime + usage.ru_stime,
        "memory": usage.ru_maxrss * 1024,
        "page": page.stat().st_size,
        "drawn": drawn(page),
    }


def drawn(page: Path) -> float:
    """Return the seconds until Chromium has drawn a page; NaN without one."""
    chromium = shutil.which("chromium")
    if chromium is None:
        return float("nan")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page()
        began = time.perf_counter()
        tab.goto(page.resolve().as_uri())
        tab.wait_for_selector("html[data-drawn]", timeout=120_000)
        seconds = time.perf_counter() - began
        browser.close()
    return seconds


def main() -> None:
    """Measure each number of runs."""
    parser = options(__doc__)
    parser.add_argument("--runs", default="100,1000", metavar="N,N")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        reported(2, Path(folder))
    found, rows, aims = {}, [], []
    for runs in map(int, given.runs.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            cost = reported(runs, Path(folder))
        found[str(runs)] = cost
        sizes = (f"{cost[name] / 1e6:.1f}" for name in ("memory", "page"))
        seconds = (f"{cost[name]:.1f}" for name in ("seconds", "cpu"))
        rows.append((f"{runs:,}", *seconds, *sizes, f"{cost['drawn']:.1f}"))
        if runs <= LIMITED:
            aims.append(Aim(name=f"{runs} runs, s", value=cost["seconds"], limit=LIMIT_S))
    header = ("runs", "seconds", "CPU seconds", "peak memory, MB", "page, MB", "drawn in, s")
    show("Reports", header, rows, "two tasks of 500 items for each run, and a scan")
    finish({"report": found}, aims, given.json, given.check)


if __name__ == "__main__":
    main()
