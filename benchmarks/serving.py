"""Whether what Lamina writes has the same loss where people serve it.

    python benchmarks/serving.py --model FOLDER [--vllm-python PATH] [--rows 8] [--json FILE]
                                 [--check]

Shows: losses in nats per token, on the same tokens, of the embedded reference model without its
layer 1, healed for a few steps and merged into final/, and of --model without its layer 5.
`lamina export` writes the GGUF files; each engine is a process of its own.
Peer: the same folder in transformers. vLLM is left out without --vllm-python, the interpreter of an
environment that has it.
Aim: each difference at most what `lamina verify` allows for the type.
"""

import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.figures import Aim, at_least, finish, options, show
from harness.runs import run_logged

from lamina.measure.evaluate import ENGINE_TOLERANCES
from lamina.measure.results import trained_tokens
from lamina.measure.separate import in_engine

TEXT = Path(__file__).resolve().parents[1] / "tests" / "data" / "gsm8k"
FILES = {"bfloat16": ("--dtype", "bfloat16"), "q8_0": (), "q4_k_m": ()}
LENGTH = 128

Rows = Sequence[Mapping[str, Any]]


def lamina(*arguments: object) -> None:
    """Run a command of Lamina."""
    command = Path(sys.executable).with_name("lamina")
    with tempfile.TemporaryDirectory() as name:
        run_logged([str(command), *map(str, arguments)], Path(name))


def healed(folder: Path, number: int) -> tuple[Path, Rows]:
    """Heal the reference model without a layer; return its merged final/ and recorded rows."""
    short = "max_steps=20 eval_steps=20 save_steps=20 generator.train_rows=200"
    fixed = "experiment=quickstart model=dropped model.layer_to_drop=1 export.form=merged"
    rest = "export.dtype=bfloat16 evaluation.num_samples=0 evaluation.baseline=false logger=none"
    lamina("train", *f"{fixed} {short} {rest}".split(), f"hydra.run.dir={folder}")
    lines = (folder / "eval.jsonl").read_text().splitlines()[:number]
    final = json.loads((folder / "result.json").read_text())["final"]
    return folder / final, [json.loads(line) for line in lines]


def cut(model: str, folder: Path, number: int) -> tuple[Path, Rows]:
    """Cut a layer out of a model; return it and rows of text."""
    from transformers import AutoTokenizer

    choice = ("model=dropped", "model.layer_to_drop=5")
    lamina("cut", f"model_name={model}", *choice, f"output={folder}")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "".join(path.read_text() for path in sorted(TEXT.glob("*.jsonl")))
    ids = tokenizer(text)["input_ids"][: number * LENGTH]
    pieces = [ids[start : start + LENGTH] for start in range(0, len(ids), LENGTH)]
    return folder, [{"input_ids": piece, "labels": piece} for piece in pieces]


def losses(folder: Path, rows: Rows, scratch: Path, vllm: str | None) -> dict[str, dict[str, Any]]:
    """Return the loss in each engine, its version and the type of the weights, by column."""
    wanted = [{key: row[key] for key in ("input_ids", "labels")} for row in rows]
    tokens, found = sum(map(trained_tokens, rows)), {}

    def measured(name: str, engine: str, model: Path, python: str | None = None) -> None:
        answer = in_engine(engine, python, {"model": str(model), "rows": wanted})
        loss, dtype = math.fsum(answer["nll"]) / tokens, answer["dtype"] or name.split()[-1]
        found[name] = {"loss": loss, "dtype": dtype, "version": answer["version"]}
        print(f"  {name} {answer['version']}: {loss:.4f}", flush=True)

    measured("transformers", "transformers", folder)
    if vllm:
        measured("vllm", "vllm", folder, vllm)
    for kind, given in FILES.items():
        output = scratch / f"{folder.name}-{kind}"
        options = given or ("--quantize", kind)
        lamina("export", folder, "--form", "gguf", *options, "--output", output)
        measured(f"llama.cpp {kind}", "llama.cpp", next(output.glob("*.gguf")))
    return found


def main() -> None:
    """Write the models, measure, show, compare with the aims."""
    parser = options("Compare a written model's loss in transformers, vLLM and llama.cpp.")
    parser.add_argument("--model", required=True, metavar="FOLDER", help="a model to cut")
    parser.add_argument("--vllm-python", metavar="PATH", help="interpreter that has vLLM")
    parser.add_argument("--rows", type=at_least(1), default=8, help="rows to evaluate")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch, found = Path(name), {}
        title = f"{Path(given.model).name}, cut"
        models = {
            "reference, healed": healed(scratch / "run", given.rows),
            title: cut(given.model, scratch / "cut", given.rows),
        }
        for title, (folder, rows) in models.items():
            print(title)
            found[title] = losses(folder, rows, scratch, given.vllm_python)
    columns = list(next(iter(found.values())))
    table = [
        [title, *(f"{of[name]['loss']:.4f}" for name in columns)] for title, of in found.items()
    ]
    aims = [
        Aim(
            name=f"{title}: {name}, difference as a share of 1 + loss",
            value=abs(of[name]["loss"] - of["transformers"]["loss"])
            / (1 + of["transformers"]["loss"]),
            limit=ENGINE_TOLERANCES[of[name]["dtype"]],
        )
        for title, of in found.items()
        for name in columns[1:]
    ]
    versions = {f"{name.split()[0]} {found[title][name]['version']}": 0 for name in columns}
    show("loss, nats per token", ["", *columns], table, ", ".join(versions))
    finish({"losses": found}, aims, given.json, given.check)


if __name__ == "__main__":
    main()
