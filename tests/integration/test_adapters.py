"""adapter=dora and adapter=qlora: trained, resumed, read back, merged and exported."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from lamina.measure.evaluate import row_losses
from tests.conftest import NEEDS_BITSANDBYTES, SHORT, Finished, lamina, train

CONSTANT = ("lr_scheduler_type=constant", "warmup_ratio=0")
"""The same learning rate in every step, however many there are."""


def healed(folder: Path, *given: str) -> Finished:
    done = train(folder, *SHORT, *CONSTANT, "export.form=both", *given)
    assert done.code == 0, done.errors
    return done


def loaded(folder: Path, **settings: Any) -> torch.nn.Module:
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **settings
    )
    assert not any(info.values()), info
    return model.eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(5, 45)[None]).logits


def loss(done: Finished, model: Any) -> float:
    rows = [json.loads(line) for line in (done.folder / "eval.jsonl").read_text().splitlines()]
    return row_losses(model, rows, max_tokens=512).mean()


def trained_eval_loss(done: Finished) -> float:
    return min(entry["eval_loss"] for entry in done.result["history"] if entry["eval_loss"])


@pytest.mark.parametrize(
    ("given", "types"),
    [
        (("adapter=full",), {torch.float32}),
        (("adapter=partial", "adapter.layers=2"), {torch.float32, torch.bfloat16}),
        (("adapter=full", "dtype=bfloat16"), {torch.bfloat16}),
    ],
)
def test_trained_weights_are_float32_unless_dtype_says_otherwise(
    given: tuple[str, ...], types: set[torch.dtype], tmp_path: Path
) -> None:
    """Of the trained layers each weight moves, however small the learning rate."""
    quick = ("bf16=true", "evaluation=none", "learning_rate=2e-5", "logger=none")
    done = train(tmp_path / "run", *SHORT, *CONSTANT, *quick, *given)
    assert done.code == 0, done.errors
    first, last = (
        load_file(tmp_path / f"run/checkpoints/pruned/checkpoint-{step}/model.safetensors")
        for step in (3, 6)
    )
    assert {weight.dtype for weight in last.values()} == types
    down = last["model.layers.7.mlp.down_proj.weight"]
    moved = (down != first["model.layers.7.mlp.down_proj.weight"]).float().mean()
    assert (moved > 0.9) == (torch.float32 in types)
    saved = load_file(done.final / "model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.bfloat16}


@pytest.fixture(scope="module")
def dora(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return healed(tmp_path_factory.mktemp("dora") / "run", "adapter=dora")


def test_dora_is_read_back_with_its_magnitudes(dora: Finished) -> None:
    model = loaded(dora.final)
    assert dora.result["adapter"] == "dora"
    # 56 linear layers' outputs, beside lora's 262,144.
    assert dora.result["trainable_parameters"] == 262_144 + 8_192
    assert loss(dora, model) == pytest.approx(dora.metrics["eval_loss"], abs=1e-6)
    assert dora.metrics["eval_loss"] == pytest.approx(trained_eval_loss(dora), abs=1e-5)
    merged = loaded(dora.final.with_name("final-merged"))
    assert (logits(model) - logits(merged)).abs().max() < 1e-4
    assert loss(dora, merged) == pytest.approx(dora.metrics["eval_loss"], abs=1e-5)


def test_dora_is_merged_by_export(dora: Finished, tmp_path: Path) -> None:
    done = lamina("export", dora.folder, "--output", "out", cwd=tmp_path)
    assert (done.code, done.refusal) == (0, "")
    assert (logits(loaded(tmp_path / "out")) - logits(loaded(dora.final))).abs().max() < 1e-4


@pytest.mark.parametrize("adapted", ["embed_tokens", "lm_head"])
def test_a_tied_head_is_untied_if_only_one_of_the_two_is_adapted(
    adapted: str, tmp_path: Path
) -> None:
    further = ["learning_rate=0.01", "trainer.args.loss_type=nll", "max_steps=3"]
    done = healed(tmp_path / "run", f"adapter.target_modules=[{adapted},q_proj]", *further)
    exported = lamina("export", done.folder, "--output", "out", cwd=tmp_path)
    assert exported.code == 0, exported.errors
    expected = logits(loaded(done.final))
    for folder in (done.final.with_name("final-merged"), tmp_path / "out"):
        assert (logits(loaded(folder)) - expected).abs().max() < 1e-4
        assert not AutoConfig.from_pretrained(folder).tie_word_embeddings


def test_a_checkpoint_of_dora_is_exported_as_an_adapter(dora: Finished, tmp_path: Path) -> None:
    """PEFT's own names of the magnitudes, as checkpoints have them, become readable."""
    checkpoint = next(iter(sorted(dora.final.parent.glob("checkpoint-*"))))
    (tmp_path / "final").mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (tmp_path / "final" / name).write_bytes((checkpoint / name).read_bytes())
    (tmp_path / "final" / "lamina.json").write_bytes((dora.final / "lamina.json").read_bytes())
    done = lamina("export", "final", "--output", "out", "--form", "adapter", cwd=tmp_path)
    assert done.code == 0, done.errors
    loaded(tmp_path / "out")


@pytest.fixture(scope="module")
def qlora(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return healed(tmp_path_factory.mktemp("qlora") / "run", "adapter=qlora")


@NEEDS_BITSANDBYTES
def test_qlora_is_measured_on_its_base_in_four_bits(qlora: Finished) -> None:
    from lamina.depth.quantization import quantization

    model = loaded(qlora.final, quantization_config=quantization(torch.float32))
    weights = {type(p).__name__ for p in model.parameters() if not p.requires_grad}
    assert "Params4bit" in weights
    assert qlora.result["adapter"] == "qlora"
    assert qlora.result["num_parameters"] == 1_223_424
    assert loss(qlora, model) == pytest.approx(qlora.metrics["eval_loss"], abs=1e-5)
    # Some processors compute four bits in bfloat16 where nothing is trained.
    assert qlora.metrics["eval_loss"] == pytest.approx(trained_eval_loss(qlora), abs=1e-3)
    assert "quantization_config=in_4bit" in (qlora.final / "README.md").read_text()


@NEEDS_BITSANDBYTES
def test_qlora_is_merged_into_the_unquantized_base(qlora: Finished, tmp_path: Path) -> None:
    merged = loaded(qlora.final.with_name("final-merged"))
    assert {str(p.dtype) for p in merged.parameters()} == {"torch.float32"}
    beside_whole = logits(loaded(qlora.final))
    assert (logits(merged) - beside_whole).abs().max() < 1e-4
    done = lamina("export", qlora.folder, "--output", "out", "--form", "merged", cwd=tmp_path)
    assert (done.code, done.refusal) == (0, "")
    assert (logits(loaded(tmp_path / "out")) - beside_whole).abs().max() < 1e-4
    measured = loss(qlora, loaded(tmp_path / "out"))
    assert measured == pytest.approx(loss(qlora, merged), abs=1e-6)
    assert " on its 4-bit base; " in done.output
    done = lamina("export", qlora.folder, "--output", "same", "--form", "adapter", cwd=tmp_path)
    assert done.code == 0, done.errors


@NEEDS_BITSANDBYTES
def test_qlora_resumes_with_the_same_losses(qlora: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    healed(folder, "adapter=qlora", "max_steps=3", "evaluation=none")
    done = healed(folder, "adapter=qlora")
    assert [entry["step"] for entry in done.result["history"]] == [1, 2, 3, 4, 5, 6]
    assert trained_eval_loss(done) == trained_eval_loss(qlora)
    assert done.metrics["eval_loss"] == qlora.metrics["eval_loss"]


@NEEDS_BITSANDBYTES
def test_a_dry_run_of_qlora_counts_four_bits(tmp_path: Path) -> None:
    done = train(tmp_path / "run", *SHORT, "adapter=qlora", "dry_run=true")
    assert done.code == 0, done.errors
    report = json.loads((tmp_path / "run" / "dry_run.json").read_text())
    linear, others = 1_179_648, 1_223_424 - 1_179_648
    adapter = 262_144 * 4
    assert report["trainable_parameters"] == 262_144
    # Half a byte a weight, one a block of 64, and 4 for 256 blocks.
    in_4bit = linear // 2 + linear // 64 + linear // (64 * 256) * 4
    assert report["footprint"]["weights"] == in_4bit + others * 4 + adapter
