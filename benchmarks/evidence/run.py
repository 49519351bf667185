"""The evidence: which layers to remove, which healing, how far, on a real model.

    python benchmarks/evidence/run.py [PART ...] [KEY=VALUE ...] [--plan]

Shows: the parts `which`, `curve`, `heal`, `tasks`, `far` and `predict` of docs/results.md, in this
order; all of them without PART. Prints the plan with the hours that it expects on one thread of a
CPU, then runs ordinary sweeps, `jobs` at a time. Ctrl-C or TERM lets the running jobs save; the
same command continues, and repeats no finished job. Each finished part writes results/PART.json,
from which page.py makes docs/results.md; the part heal also with some of its healings missing.
Caches lie in the output folder: another one starts from nothing. plan.yaml has the settings.
Peer: the original model, beside every row.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from pathlib import Path
from typing import Any

import record
import texts
from omegaconf import OmegaConf
from parts import (
    ALONE,
    COMPARES,
    DECIDES,
    EVALUATE,
    NEEDS,
    PARTS,
    PASSING,
    SAME,
    TRAIN,
    Plan,
    Sweep,
)

from lamina.depth.surgery import layer_count
from lamina.measure.provenance import git_state
from lamina.measure.results import RESULT_FILE
from lamina.measure.tasks.files import FINAL, ORIGINAL
from lamina.report.runs import Report
from lamina.weights.source import resolve

HERE = Path(__file__).resolve().parent

CONTINUES = "stopped; the same command continues"
STOPPED = threading.Event()
RUNNING: set[int] = set()
"""Ids of the processes of sweeps."""


def main() -> None:
    """Print the plan and run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("given", nargs="*", metavar="PART or KEY=VALUE")
    parser.add_argument("--plan", action="store_true", help="print the plan and end")
    options = parser.parse_intermixed_args()
    own = [each for each in options.given if "=" in each]
    names = [each for each in options.given if "=" not in each] or [*PARTS]
    if unknown := [name for name in names if name not in PARTS]:
        sys.exit(f"error: no part {unknown[0]}: {', '.join(PARTS)}")
    known = OmegaConf.load(HERE / "plan.yaml")
    OmegaConf.set_struct(known, True)
    settings: Any = OmegaConf.merge(known, OmegaConf.from_dotlist(own))
    if Path(settings.model_name).expanduser().is_dir():
        settings.model_name = str(Path(settings.model_name).expanduser().resolve())
    folder, results = Path(settings.output).resolve(), Path(settings.results).resolve()
    settings.output = str(folder)

    def earlier(part: str) -> dict[str, Report] | None:
        path = results / f"{part}.json"
        found = record.read(path) if path.is_file() else None
        return found["reports"] if found and made_with(found, settings, part) else None

    plan = Plan(
        settings=settings,
        layers=layer_count(resolve(settings.model_name).config),
        earlier=earlier,
    )
    show(plan, names)
    if options.plan:
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    folder.mkdir(parents=True, exist_ok=True)
    texts.prepare(Path(settings.data).expanduser(), folder / "texts", settings)
    for part in (part for part in PARTS if part in names):
        for needed in NEEDS.get(part, ()):
            if earlier(needed) is None:
                sys.exit(f"error: {part} needs {needed} with these settings: run that part first")
        sweeps = plan.sweeps(part)
        with ThreadPoolExecutor(1 if part in ALONE else settings.jobs) as pool:
            failed = [*pool.map(lambda each: run(plan, part, each), sweeps)]  # noqa: B023
        if part in COMPARES or not any(failed):
            update(plan, part, sweeps, results / f"{part}.json")
        if any(failed):
            sys.exit(f"error: {next(filter(None, failed))}")


def made_with(found: Mapping[str, Any], settings: Any, part: str) -> bool:
    """Return whether the result of a part is whole and comes from these settings."""
    same = not found.get("missing") and all(
        found["settings"][name] == settings[name] for name in (*SAME, *DECIDES[part])
    )
    return same and record.model(found) == record.model({"settings": settings})


def show(plan: Plan, names: list[str]) -> None:
    """Print what will run and its hours; exit if these are too many."""
    total, limit = 0.0, plan.settings.hours
    print(f"{plan.settings.model_name}, {plan.layers} layers; hours of one thread:")
    for part in (part for part in PARTS if part in names):
        sweeps = plan.sweeps(part)
        hours = sum(sweep.seconds for sweep in sweeps) / 3600
        total += hours
        print(f"  {part:8} {sum(sweep.runs for sweep in sweeps):3} runs {hours:5.1f} h")
    print(
        f"  in all {total:17.1f} h, {total / plan.settings.jobs:.1f} h at {plan.settings.jobs} jobs"
    )
    if total > limit:
        sys.exit(f"error: more than hours={limit}: name fewer parts, or set hours={ceil(total)}")


def run(plan: Plan, part: str, sweep: Sweep) -> str | None:
    """Run or continue a sweep that has not succeeded before; return what went wrong."""
    place = Path(plan.settings.output) / part / sweep.name
    command, log = command_of(plan, sweep, place), place.with_name(f"{sweep.name}.log")
    attempts = attempts_of(place)
    if has_ended(plan, sweep, place):
        return None
    if STOPPED.is_set():
        return CONTINUES
    place.mkdir(parents=True, exist_ok=True)
    began = time.time()
    with log.open("a") as output:
        process = subprocess.Popen(
            command,
            cwd=plan.settings.output,
            env={
                **os.environ,
                "OMP_NUM_THREADS": f"{plan.settings.threads}",
                "LAMINA_CACHE": str(Path(plan.settings.output) / "cache"),
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # only `stop` interrupts it, and once
        )
    RUNNING.add(process.pid)
    _, status, usage = os.wait4(process.pid, 0)
    RUNNING.remove(process.pid)
    spent = {"seconds": time.time() - began, "cpu_seconds": usage.ru_utime + usage.ru_stime}
    attempts.append({"command": command, "status": status, **spent})
    costs_file(place).write_text(json.dumps(attempts, indent=1))
    outcome = ", stopped" if STOPPED.is_set() else ", failed"
    print(f"{part} {sweep.name}: {spent['seconds']:,.0f} s{outcome * bool(status)}", flush=True)
    if not status:
        for models in place.glob("*/checkpoints") if part in PASSING else ():
            shutil.rmtree(models)
        return None
    return CONTINUES if STOPPED.is_set() else f"{part} {sweep.name} failed: see {log}"


def command_of(plan: Plan, sweep: Sweep, place: Path) -> list[str]:
    """Return the command that runs a sweep in a folder, or continues it there."""
    settings, is_sweep = plan.settings, sweep.command == TRAIN
    given = [*sweep.arguments, f"num_threads={settings.threads}"]
    if sweep.command != EVALUATE:
        given += [f"--config-dir={HERE / 'conf'}", f"model_name={settings.model_name}"]
        given += settings.overrides
    given += ["--multirun"] * is_sweep + [f"hydra.{'sweep' if is_sweep else 'run'}.dir={place}"]
    return [str(Path(sys.executable).with_name("lamina")), sweep.command, *given]


def has_ended(plan: Plan, sweep: Sweep, place: Path) -> bool:
    """Return whether a sweep's command has succeeded in its folder."""
    *_, last = attempts_of(place) or [{}]
    return last.get("status") == 0 and last["command"] == command_of(plan, sweep, place)


def costs_file(place: Path) -> Path:
    """Return the file with the costs of a sweep, beside its folder."""
    return place.with_name(f"{place.name}.costs.json")


def attempts_of(place: Path) -> list[dict[str, Any]]:
    """Return what each start of a sweep cost, and its command and status."""
    path = costs_file(place)
    return json.loads(path.read_text()) if path.is_file() else []


def stop(signal_number: int, _: object) -> None:
    """Let running jobs save and end, and start no others."""
    STOPPED.set()
    for process in [*RUNNING]:
        os.kill(process, signal.SIGTERM)


def update(plan: Plan, part: str, sweeps: list[Sweep], path: Path) -> None:
    """Write the result of a part's ended sweeps, if one has ended since it was written."""
    folder = Path(plan.settings.output) / part
    ended = [each for each in sweeps if has_ended(plan, each, folder / each.name)]
    missing = [each.name for each in sweeps if each not in ended]
    costs = [costs_file(folder / each.name).stat().st_mtime for each in ended]
    if missing and all(each.group != "runs" for each in ended):
        return  # nothing to compare
    if not path.is_file() or path.stat().st_mtime < max(costs):
        write(plan, part, ended, missing, path)


def write(plan: Plan, part: str, sweeps: list[Sweep], missing: list[str], path: Path) -> None:
    """Write the result of sweeps that have ended."""
    folder = Path(plan.settings.output) / part
    groups: dict[str, list[Sweep]] = {}
    for sweep in sweeps:
        groups.setdefault(sweep.group, []).append(sweep)
    reports = {
        group: record.collected(
            [folder / each.name for each in members if each.command != EVALUATE],
            {
                each.evaluates: {FINAL: folder / each.name, ORIGINAL: folder / ORIGINAL}
                for each in members
                if each.evaluates
            },
        )
        for group, members in groups.items()
    }
    for group, members in groups.items():
        expected = sum(each.runs for each in members if each.command != EVALUATE or each.evaluates)
        complete = [row for row in reports[group].rows if row.is_complete]
        found = len(complete) + len(reports[group].scans)
        if found != expected:
            sys.exit(f"error: {part} {group}: {found} of {expected} runs in {folder}")
    costs = {each.name: attempts_of(folder / each.name) for each in sweeps}
    settings = OmegaConf.to_container(plan.settings)
    assert isinstance(settings, dict)
    content = {
        "part": part,
        "missing": missing,
        "settings": {k: v for k, v in settings.items() if k not in ("data", "output", "results")},
        "costs": {
            name: {key: sum(each[key] for each in attempts) for key in ("seconds", "cpu_seconds")}
            for name, attempts in costs.items()
        },
        "protocols": record.protocols(folder),
        "git": git_state(),
    }
    if part == "heal":
        content["card"] = card(folder / record.ranked(reports["runs"].rows)[0][0] / "0")
    record.write(path, content, reports, plan.settings.model_name)
    print(f"{path} written", flush=True)


def card(run: Path) -> str:
    """Return the model card of a run."""
    final = json.loads((run / RESULT_FILE).read_text("utf-8"))["final"]
    return (run / final / "README.md").read_text("utf-8")


if __name__ == "__main__":
    main()
