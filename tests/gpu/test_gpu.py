"""What only a GPU can show, with the real command. One GPU is enough; no network is needed."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import (
    NEEDS_BITSANDBYTES,
    NEEDS_UNSLOTH,
    SHORT,
    Finished,
    lamina,
    train,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="no GPU: run it on a machine with one"
    ),
]

GPU = (*SHORT, "bf16=true", "learning_rate=2e-4", "logger=none")
SAME = 0.02
"""How far losses in bfloat16 may be apart, relative."""


def ran(folder: Path, *given: str) -> Finished:
    done = train(folder, *GPU, *given)
    assert done.code == 0, done.errors
    assert done.result["status"] == "completed"
    return done


def losses(done: Finished) -> list[float]:
    return [entry["loss"] for entry in done.result["history"] if entry.get("loss") is not None]


@pytest.fixture(scope="module")
def sdpa(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return ran(tmp_path_factory.mktemp("sdpa") / "run", "attention=sdpa")


def test_the_quickstart_heals_as_it_does_on_a_cpu(tmp_path: Path) -> None:
    done = train(tmp_path / "run", "experiment=quickstart", "logger=tb")
    assert done.code == 0, done.errors
    metrics = done.metrics
    assert metrics["baseline_eval_loss"] < 1e-4
    assert metrics["reduced_eval_loss"] == pytest.approx(0.0583759625448173, rel=0.01)
    assert metrics["eval_loss"] < 0.01
    assert "NVIDIA" in done.result["provenance"]["device"]
    assert done.result["provenance"]["attention"] == "flex_attention"
    assert metrics["mfu"] > 0


def test_a_merged_export_and_the_adapter_predict_the_same_on_the_gpu(tmp_path: Path) -> None:
    done = ran(tmp_path / "run", "export.form=both")
    from transformers import AutoModelForCausalLM

    ids = torch.arange(5, 69, device="cuda")[None]
    found = []
    for folder in (done.final, done.final.with_name("final-merged")):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).cuda().eval()
        with torch.no_grad():
            found.append(model(ids).logits)
    assert (found[0] - found[1]).abs().max() < 0.1


@pytest.mark.parametrize("given", ["attention=flex", "attention=eager", "kernels=liger"])
def test_attention_and_kernels_do_not_change_the_losses(
    given: str, sdpa: Finished, tmp_path: Path
) -> None:
    if given == "kernels=liger":
        pytest.importorskip("liger_kernel", reason="pip install liger-kernel")
    done = ran(tmp_path / "run", given, *(["attention=sdpa"] if "attention" not in given else []))
    assert losses(done) == pytest.approx(losses(sdpa), rel=SAME, abs=1e-3)


def test_packed_documents_do_not_attend_to_each_other_with_flex(tmp_path: Path) -> None:
    """One step over the same rows, packed and alone: the mean loss of its tokens is the same."""
    rows = ["max_steps=1", "eval_steps=1", "save_steps=1", "generator.train_rows=16"]
    rows += ["lr_scheduler_type=constant", "warmup_ratio=0", "per_device_train_batch_size=16"]
    packed = ran(tmp_path / "packed", *rows, "packing=true", "attention=flex", "max_seq_length=512")
    alone = ran(tmp_path / "alone", *rows, "packing=false", "attention=sdpa")
    assert losses(packed)[0] == pytest.approx(losses(alone)[0], rel=SAME, abs=1e-3)


@pytest.mark.parametrize(
    "given",
    [
        "adapter=full learning_rate=2e-5",
        "adapter=full gradient_checkpointing=true activation_offloading=true",
        "adapter=dora",
        "torch_compile=true",
        pytest.param("optim=paged_adamw_8bit", marks=NEEDS_BITSANDBYTES),
        pytest.param("adapter=qlora export.form=both", marks=NEEDS_BITSANDBYTES),
        pytest.param("backend=unsloth", marks=NEEDS_UNSLOTH),
        pytest.param("backend=unsloth adapter=full learning_rate=2e-5", marks=NEEDS_UNSLOTH),
        pytest.param("backend=unsloth adapter=qlora", marks=[NEEDS_UNSLOTH, NEEDS_BITSANDBYTES]),
    ],
)
def test_it_trains(given: str, tmp_path: Path) -> None:
    done = ran(tmp_path / "run", *given.split())
    assert done.metrics["eval_loss"] < done.metrics["reduced_eval_loss"]
    assert done.metrics["peak_memory_bytes"] > 0


def test_a_resumed_run_continues_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    rate = ["lr_scheduler_type=constant", "warmup_ratio=0"]
    at_once = ran(tmp_path / "once", *rate)
    ran(tmp_path / "twice", *rate, "max_steps=3")
    resumed = ran(tmp_path / "twice", *rate)
    assert resumed.result["history"][-1]["step"] == 6
    assert losses(resumed)[-1] == pytest.approx(losses(at_once)[-1], rel=SAME, abs=1e-3)


def test_a_scan_scores_layers_as_on_a_cpu(tmp_path: Path) -> None:
    given = ["experiment=quickstart", "scan.tokens=4k", "logger=none"]
    found = []
    for name, devices in (("gpu", "0"), ("cpu", "")):
        done = lamina("scan", *given, f"hydra.run.dir={tmp_path / name}", cwd=tmp_path,
                      CUDA_VISIBLE_DEVICES=devices)  # fmt: skip
        assert done.code == 0, done.errors
        found.append(json.loads((tmp_path / name / "scan.json").read_text()))
    on_gpu, on_cpu = (scan["leave_one_out"]["loss"] for scan in found)
    assert on_gpu == pytest.approx(on_cpu, rel=0.01, abs=1e-4)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Hold all memory of the GPU but 3 GB."""
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(free - 3 * 10**9, dtype=torch.uint8, device="cuda")
    yield
    del held
    torch.cuda.empty_cache()


@pytest.mark.usefixtures("little_memory")
def test_when_memory_is_short_the_error_names_what_saves_it(tmp_path: Path) -> None:
    large = ["per_device_train_batch_size=4096", "generator.train_rows=20000", "packing=false"]
    done = train(tmp_path / "run", *GPU, *large)
    assert done.code == 1
    lines = done.errors.strip().splitlines()
    assert lines[-1].startswith(
        "error: out of memory: the training does not fit; try, in this order"
    )
    assert "per_device_train_batch_size=2048 gradient_accumulation_steps=2" in lines[-1]
    assert "Traceback" not in done.errors
