"""How many items per second `lamina evaluate` scores, beside lm-eval's command line.

    python benchmarks/evaluate.py --model FOLDER [--items 100] [--answers 20] [--new-tokens 64]
                                  [--batch 8] [--json FILE] [--check] FILE.jsonl ...

Shows: items per second of both command lines on the same items and model in float32, with as many
threads, with start-up and without; start-up is what the same command takes for one item. FILEs
are items as evaluation.tasks takes them; --answers is for those with questions and answers.
Peer: lm-eval, whose tasks are made from the same files; make install-lm-eval.
Aims: at least 1.5 times as many items per second, both ways; every choice and answer the same.
"""

import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import lm_eval_files
from harness.figures import Aim, at_least, finish, options, show
from harness.runs import run_logged, seconds_of

FASTER = 1.5

Rows = Mapping[str, Sequence[Mapping[str, Any]]]


def lm_eval(model: str, rows: Rows, folder: Path, new: int, batch: int) -> dict[str, Any]:
    """Return the seconds of lm-eval's command, and its samples."""
    for name, own in rows.items():
        lm_eval_files.write_task(folder, name, own, shots=0, max_new_tokens=new)
    output = folder / "out"
    command = lm_eval_files.command(model, folder, output, batch=batch, dtype="float32")
    seconds = seconds_of(lambda: run_logged(command, folder))
    return {**seconds._asdict(), "items": lm_eval_files.samples(output)}


def lamina(model: str, rows: Rows, folder: Path, new: int) -> dict[str, Any]:
    """Return the seconds of our command, and its items."""
    files = [lm_eval_files.write_rows(folder / f"{name}.jsonl", own) for name, own in rows.items()]
    command = [
        str(Path(sys.executable).with_name("lamina")),
        *("evaluate", f"model_name={model}", "dtype=float32", f"hydra.run.dir={folder / 'out'}"),
        f"evaluation.tasks=[{','.join(map(str, files))}]",
        f"evaluation.task_settings.max_new_tokens={new}",
        "evaluation.speed.batch_sizes=[]",
    ]
    seconds = seconds_of(lambda: run_logged(command, folder))
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in rows}
    for line in (folder / "out" / "items.jsonl").read_text().splitlines():
        item = json.loads(line)
        found[item["task"]].append(item)
    return {**seconds._asdict(), "items": found}


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[int, float]:
    """Return how many items have another outcome, and the largest difference in nats."""
    other, apart = 0, 0.0
    for name, items in ours["items"].items():
        for item, row in zip(items, theirs["items"][name], strict=True):
            if item["answer"] is not None:
                other += item["answer"] != row["resps"][0][0]
                continue
            expected = [float(each[0][0]) for each in row["resps"]]
            pairs = zip(item["log_likelihoods"], expected, strict=True)
            apart = max(apart, *(abs(mine - their) for mine, their in pairs))
            other += item["correct"] != bool(row["acc"])
            other += item["correct_norm"] not in (None, bool(row.get("acc_norm")))
    return other, apart


def main() -> None:
    """Run both command lines on one item and on all, show, compare with the aims."""
    parser = options("Compare the speed of evaluation with lm-eval's.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.jsonl", help="items")
    parser.add_argument(
        "--model", required=True, type=os.path.abspath, metavar="FOLDER", help="model to evaluate"
    )
    parser.add_argument("--items", type=at_least(2), default=100, help="items of each file")
    parser.add_argument("--answers", type=at_least(2), default=20, help="answers to generate")
    parser.add_argument("--new-tokens", type=at_least(1), default=64, help="tokens of an answer")
    parser.add_argument("--batch", type=at_least(1), default=8, help="lm-eval's batch size")
    given = parser.parse_args()
    rows = {}
    for path in given.files:
        every = [json.loads(line) for line in path.read_text().splitlines()]
        rows[path.stem] = every[: given.answers if "answer" in every[0] else given.items]
    one = {name: own[:1] for name, own in rows.items()}
    found: dict[str, Any] = {}
    for part, own in (("one", one), ("all", rows)):
        for side in ("lm-eval", "Lamina"):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                if side == "lm-eval":
                    result = lm_eval(given.model, own, folder, given.new_tokens, given.batch)
                else:
                    result = lamina(given.model, own, folder, given.new_tokens)
            found[f"{side}, {part}"] = result
            print(f"{side}, {part}: {result['wall']:.1f} s, CPU {result['cpu']:.1f} s", flush=True)
    total, single = sum(map(len, rows.values())), len(rows)
    speeds = {}
    for side in ("lm-eval", "Lamina"):
        whole, start = found[f"{side}, all"], found[f"{side}, one"]
        speeds[side] = {
            "with start-up": total / whole["wall"],
            "without": (total - single) / (whole["wall"] - start["wall"]),
            "CPU, without": (total - single) / (whole["cpu"] - start["cpu"]),
        }
    other, apart = differences(found["Lamina, all"], found["lm-eval, all"])
    columns = list(speeds["Lamina"])
    table = [[side, *(f"{own[name]:.2f}" for name in columns)] for side, own in speeds.items()]
    ratios = {name: speeds["Lamina"][name] / speeds["lm-eval"][name] for name in columns}
    table.append(["ratio", *(f"{ratios[name]:.2f}" for name in columns)])
    counts = ", ".join(f"{len(own)} of {name}" for name, own in rows.items())
    threads = os.environ.get("OMP_NUM_THREADS") or os.cpu_count()
    notes = f"{counts}; {threads} threads; log-likelihoods differ by at most {apart:.1e} nats"
    show("items per second", ["", *columns], table, notes)
    aims = [
        Aim(name=f"lm-eval's items per second to ours, {name}", value=1 / ratio, limit=1 / FASTER)
        for name, ratio in ratios.items()
    ]
    aims.append(Aim(name="items with another outcome", value=other, limit=0))
    times = {
        side: {key: value for key, value in own.items() if key != "items"}
        for side, own in found.items()
    }
    scores = {
        name: {key: sum(bool(item[key]) for item in items) for key in ("correct", "correct_norm")}
        for name, items in found["Lamina, all"]["items"].items()
    }
    figures = {
        "right": scores,
        "times": times,
        "speeds": speeds,
        "apart": apart if math.isfinite(apart) else None,
    }
    finish(figures, aims, given.json, given.check)


if __name__ == "__main__":
    main()
