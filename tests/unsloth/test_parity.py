"""One sweep over both backends: nothing differs but the backend."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import NEEDS_UNSLOTH, SHORT, Finished, environment, train

pytestmark = NEEDS_UNSLOTH

STEPS = 20
SWEEP = (
    *SHORT,
    f"max_steps={STEPS}",
    "eval_steps=10",
    "save_steps=10",
    "model.keep_layers=4",  # enough is gone for losses well above the bound
    "packing=false",
    "trainer.args.loss_type=nll",  # TRL's default leaves the loss to TRL, this one to Unsloth
    "gradient_checkpointing=true",
    "backend=transformers,unsloth",
    "adapter=lora,full",
)
JOBS = {(b, a): 2 * j + i for j, b in enumerate(("transformers", "unsloth")) for i, a in
        enumerate(("lora", "full"))}  # fmt: skip


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("parity")
    done = train(folder / "sweep", "--multirun", f"hydra.sweep.dir={folder / 'sweep'}", *SWEEP)
    assert done.code == 0, done.errors
    return done


def job(sweep: Finished, backend: str, adapter: str) -> Finished:
    folder = sweep.folder / str(JOBS[backend, adapter])
    return Finished(0, "", "", folder)


def both(sweep: Finished, adapter: str) -> list[Finished]:
    return [job(sweep, backend, adapter) for backend in ("transformers", "unsloth")]


def differing(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    keys = one.keys() | other.keys()
    return {k: (one.get(k), other.get(k)) for k in keys if one.get(k) != other.get(k)}


def test_each_job_ran_on_its_backend(sweep: Finished) -> None:
    for (backend, adapter), _ in JOBS.items():
        result = job(sweep, backend, adapter).result
        assert (result["status"], result["provenance"]["backend"]) == ("completed", backend)
        assert result["settings"]["backend"] == backend
        assert result["adapter"] == adapter
    assert "sweep of 4 jobs: 4 done\n" in sweep.errors


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_the_arguments_are_equal(adapter: str, sweep: Finished) -> None:
    files = [
        run.folder / "checkpoints" / "pruned" / f"checkpoint-{STEPS}" / "training_args.bin"
        for run in both(sweep, adapter)
    ]
    one, other = (vars(torch.load(path, weights_only=False)) for path in files)
    assert len(one) > 100
    known = {"output_dir", "distributed_state", "deepspeed_plugin"}  # where, and objects
    difference = {k: v for k, v in differing(one, other).items() if k not in known}
    sys.stdout.write(f"difference of the effective arguments: {difference}\n")
    assert difference == {}


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_the_losses_are_equal(adapter: str, sweep: Finished) -> None:
    histories = [[entry["loss"] for entry in run.result["history"] if "loss" in entry] for run in
                 both(sweep, adapter)]  # fmt: skip
    assert [len(history) for history in histories] == [STEPS, STEPS]
    assert max(abs(a - b) for a, b in zip(*histories, strict=True)) < 1e-4
    assert max(histories[0]) > 0.1
    plain, ours = (run.metrics for run in both(sweep, adapter))
    for name in ("baseline_eval_loss", "reduced_eval_loss", "eval_loss", "train_tokens"):
        assert ours[name] == pytest.approx(plain[name], abs=1e-4), name


def test_the_adapters_are_on_the_same_modules_and_name_the_whole_base(sweep: Finished) -> None:
    configs, weights = [], []
    for run in both(sweep, "lora"):
        config = json.loads((run.final / "adapter_config.json").read_text())
        config["target_modules"] = sorted(config["target_modules"])
        configs.append(config)
        weights.append(load_file(run.final / "adapter_model.safetensors"))
    assert differing(*configs) == {}
    assert configs[1]["layer_replication"] == [[0, 4]]
    assert configs[1]["base_model_name_or_path"].endswith("assets/reference")
    assert weights[0].keys() == weights[1].keys()
    assert max((weights[0][k] - weights[1][k]).abs().max() for k in weights[0]) < 1e-4


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_the_loss_of_final_is_equal_in_a_process_without_unsloth(
    adapter: str, sweep: Finished
) -> None:
    from transformers import AutoModelForCausalLM

    from lamina.measure.evaluate import row_losses

    assert "unsloth" not in sys.modules
    run = job(sweep, "unsloth", adapter)
    rows = [json.loads(line) for line in (run.folder / "eval.jsonl").read_text().splitlines()]
    model = AutoModelForCausalLM.from_pretrained(run.final, dtype=torch.float32)
    losses = row_losses(model, rows, max_tokens=512)
    assert losses.mean() == pytest.approx(run.metrics["eval_loss"], abs=1e-5)
    for found, row in zip(losses.row_means(), rows, strict=True):
        assert found == pytest.approx(row["loss"], abs=1e-5)


def test_only_the_run_folder_remains(sweep: Finished) -> None:
    assert [path.name for path in sweep.folder.parent.iterdir()] == ["sweep"]
    folder = job(sweep, "unsloth", "lora").folder
    known = {".hydra", "checkpoints", "eval.jsonl", "logs", "result.json", "train.log"}
    assert {path.name for path in folder.iterdir()} <= {*known, "unsloth_compiled_cache"}
    assert "Unsloth 2026.10.9" in (folder / "train.log").read_text()
    assert "Unsloth" not in sweep.output


EXACT = """
import json, sys
from pathlib import Path
from lamina.heal.adapters import Full, Lora
from lamina.heal.backends.transformers import Training, Transformers
from lamina.heal.backends.unsloth import Unsloth

folder, model = Path(sys.argv[1]), sys.argv[2]
ours = Unsloth(statistics=False)
ours.prepare(folder)

import torch
from lamina.depth.plan import Plan
from lamina.weights.source import resolve

shape = {"r": 4, "alpha": 8, "dropout": 0.0, "bias": "none", "target_modules": "all-linear"}
lora = Lora(learning_rate=2e-4, **shape, further={})
common = dict(max_seq_length=64, gradient_checkpointing=False, seed=7, folder=folder)
source, found = resolve(model), {}
for name, kept in {"original": range(12), "dropped": [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11],
                   "pruned": [0, 2, 3, 7]}.items():
    plan = Plan("layers", source, 12, tuple(kept), {})
    for adapter in (lora, Full(learning_rate=2e-5)):
        training = Training(adapter=adapter, **common)
        models = []
        for backend in (Transformers(), ours):
            loaded = backend.load_model(plan, torch.float32, training)
            adapted, left = backend.add_adapter(loaded, training)
            if left is not None:
                from peft import get_peft_model
                adapted = get_peft_model(adapted, left)
            models.append(adapted.eval())
        ids = torch.arange(5, 69)[None] % models[0].config.vocab_size
        one, other = (each(input_ids=ids).logits for each in models)
        states = [each.state_dict() for each in models]
        found[f"{name}-{adapter.name}"] = [
            (one - other).abs().max().item(),
            one.abs().max().item(),
            states[0].keys() == states[1].keys()
            and all(torch.equal(states[0][k], states[1][k]) for k in states[0]),
            [n for n, p in models[0].named_parameters() if p.requires_grad]
            == [n for n, p in models[1].named_parameters() if p.requires_grad],
            models[1].config.name_or_path == model,
            len([n for n in states[1] if n.endswith("q_norm.weight")]),
        ]
import os
found["telling"] = os.environ.get("UNSLOTH_DISABLE_STATISTICS")
Unsloth(statistics=True).prepare(folder)
found["telling"] = [found["telling"], os.environ.get("UNSLOTH_DISABLE_STATISTICS")]
found["cache"] = os.environ["UNSLOTH_COMPILE_LOCATION"]
found["left"] = sorted(path.name for path in folder.iterdir())
print(json.dumps(found))
"""


def test_unsloth_loads_the_same_model_as_transformers(tmp_path: Path) -> None:
    from tests.conftest import REFERENCE

    done = subprocess.run(
        [sys.executable, "-c", EXACT, str(tmp_path), str(REFERENCE)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1")),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("left") == []
    assert found.pop("cache") == str(tmp_path / "unsloth_compiled_cache")
    assert found.pop("telling") == ["1", None]
    layers = {"original": 12, "dropped": 11, "pruned": 4}
    assert len(found) == 6
    for name, (difference, largest, same, same_trained, named, stack) in found.items():
        assert difference == 0.0, name
        assert largest > 1, name
        assert (same, same_trained, named) == (True, True, True), name
        assert stack == layers[name.partition("-")[0]], name
