"""Runs on backend=unsloth: each variant, a dry run, and how they end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import NEEDS_BITSANDBYTES, NEEDS_UNSLOTH, SHORT, environment, train
from tests.reload import loaded

pytestmark = NEEDS_UNSLOTH

RUN = (*SHORT, "backend=unsloth")
NO_PACKING = (
    "backend=unsloth sets packing=false: on a CPU Unsloth cannot keep packed documents apart"
)


@pytest.mark.parametrize(
    ("overrides", "layers"),
    [
        (("model=dropped", "model.layer_to_drop=5"), 11),
        (("model=original", "adapter=full"), 12),
        (("model=pruned", "selector=uniform", "export.form=merged", "bf16=true"), 8),
    ],
    ids=["dropped", "original-full", "pruned-merged-bf16"],
)
def test_every_variant_is_healed(overrides: tuple[str, ...], layers: int, tmp_path: Path) -> None:
    done = train(tmp_path / "run", *RUN, *overrides)
    assert done.code == 0, done.errors
    found = loaded(done, done.final)
    close = 1e-5 if done.result["dtype"] == "float32" else 1e-2
    assert found["loss"] == pytest.approx(done.metrics["eval_loss"], abs=close)
    assert found["layers"] == found["stack"] == layers


def test_a_dry_run_takes_one_step_and_leaves_a_report(tmp_path: Path) -> None:
    done = train(tmp_path / "run", *RUN, "dry_run=true")
    assert done.code == 0, done.errors
    assert NO_PACKING in done.errors
    found = json.loads((tmp_path / "run" / "dry_run.json").read_text())
    assert found["step"]["loss"] > 0
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {
        ".hydra", "dry_run.json", "train.log", "unsloth_compiled_cache"
    }  # fmt: skip


def test_an_error_of_a_run_is_one_line(tmp_path: Path) -> None:
    done = train(tmp_path / "run", *RUN, "adapter.target_modules=[nowhere]")
    said = (
        "trainer.args, adapter: Target modules {'nowhere'} not found in the base model. Please "
        "check the target modules and try again."
    )
    assert (done.code, done.errors.splitlines()[-1]) == (1, f"error: {said}")
    assert (done.result["status"], done.result["error"]) == ("failed", said)
    assert not (tmp_path / "run" / ".reduced").exists()


@NEEDS_BITSANDBYTES
def test_qlora_is_measured_as_with_transformers(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from lamina.depth.quantization import quantization
    from lamina.measure.evaluate import row_losses

    given = (*SHORT, "adapter=qlora", "packing=false")
    backends = ("transformers", "unsloth")
    plain, ours = (train(tmp_path / name, *given, f"backend={name}") for name in backends)
    assert (plain.code, ours.code) == (0, 0), plain.errors + ours.errors
    for name in ("baseline_eval_loss", "reduced_eval_loss"):
        assert ours.metrics[name] == plain.metrics[name]
    assert ours.metrics["eval_loss"] == pytest.approx(plain.metrics["eval_loss"], rel=0.05)
    in_4bit = {"quantization_config": quantization(torch.float32)}
    model = AutoModelForCausalLM.from_pretrained(ours.final, dtype=torch.float32, **in_4bit)
    rows = [json.loads(line) for line in (ours.folder / "eval.jsonl").read_text().splitlines()]
    found = row_losses(model, rows, max_tokens=512).mean()
    assert found == pytest.approx(ours.metrics["eval_loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("whom", "by", "code", "said"),
    [
        (
            "command",
            signal.SIGINT,
            130,
            "hydra.run.dir=run",
        ),
        (
            "child",
            signal.SIGKILL,
            1,
            "the process was killed by SIGKILL, often because memory ran out",
        ),
    ],
)
def test_a_run_and_its_process_end_together(
    whom: str, by: signal.Signals, code: int, said: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "train", f"hydra.run.dir={folder}", *RUN, "max_steps=100000"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        # What a shell starts in the background ignores Ctrl-C, and so does what that starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        checkpoint = folder / "checkpoints" / "pruned" / "checkpoint-3"
        deadline = time.monotonic() + 120
        while not checkpoint.is_dir() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        (child,) = psutil.Process(process.pid).children()
        os.kill({"command": process.pid, "child": child.pid}[whom], by)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == code
    last = "error: interrupted; to continue: " if whom == "command" else f"error: {said}"
    assert errors.splitlines()[-1].startswith(last)
    assert errors.endswith(f"{said}\n")
    assert not child.is_running()
    result = json.loads((folder / "result.json").read_text())
    ended = ("interrupted", "interrupted") if whom == "command" else ("failed", said)
    assert (result["status"], result["error"]) == ended
