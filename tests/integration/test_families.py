"""Current families with the real commands: cut, scan, heal, export, and reload as a user would."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.architectures import MULTIMODAL, save
from tests.conftest import REFERENCE, SHORT, Finished, lamina, train
from tests.depth.test_architectures import generated, logits, logits_with_blocks_skipped
from tests.depth.test_text_part import whole_model

FAMILIES = [*MULTIMODAL, "mamba2", "falcon_h1", "mpt"]
LAYERS = ("model=layers", "model.drop=[1,4]")
KEPT = (0, 2, 3, 5)
LEFT_OUT = "left out: the vision part"


@dataclass(frozen=True)
class Family:
    """A tiny random model of a family, with the reference model's tokenizer."""

    model_type: str
    folder: Path

    @property
    def name(self) -> str:
        return f"model_name={self.folder}"


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = save(request.param, tmp_path_factory.mktemp(request.param) / "model", vocab_size=321)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(REFERENCE / name, folder)
    return Family(request.param, folder)


@pytest.fixture(scope="module")
def healed(family: Family) -> Finished:
    steps = ("max_steps=3", "eval_steps=3", "save_steps=3", "packing=false", "max_seq_length=64")
    given = (*SHORT, family.name, *LAYERS, *steps, "evaluation.num_samples=0")
    done = train(family.folder.parent / "run", *given)
    assert done.code == 0, done.errors
    return done


def loaded(folder: Path) -> PreTrainedModel:
    """Load a folder with plain transformers; every tensor has its place."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.num_hidden_layers == len(KEPT)
    return model.eval()


def test_a_cut_is_the_whole_model_without_those_blocks(family: Family, tmp_path: Path) -> None:
    done = lamina("cut", family.name, *LAYERS, "output=out", cwd=tmp_path)
    assert done.code == 0, done.errors
    assert (LEFT_OUT in done.output.splitlines()) == (family.model_type in MULTIMODAL)
    model = loaded(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text().splitlines()
    assert (f"- {LEFT_OUT}" in card) == (family.model_type in MULTIMODAL)
    if family.model_type in MULTIMODAL:
        expected = logits(whole_model(family.folder, KEPT))
    else:
        expected = logits_with_blocks_skipped(family.folder, KEPT)
    assert torch.equal(logits(model), expected)
    assert generated(model, cached=True) == generated(model, cached=False)


def test_a_scan_scores_every_layer(family: Family, tmp_path: Path) -> None:
    text = ("experiment=quickstart", "scan.rows=joined", "generator.train_rows=50")
    given = (family.name, "model=original", *text, "max_seq_length=64", "scan.tokens=256")
    done = lamina("scan", *given, "hydra.run.dir=scan", cwd=tmp_path)
    assert done.code == 0, done.errors
    found = json.loads((tmp_path / "scan" / "scan.json").read_text())
    assert len(found["leave_one_out"]["loss"]) == found["num_layers"] == 6


def test_a_healed_model_is_exported_and_reloaded(
    family: Family, healed: Finished, tmp_path: Path
) -> None:
    assert (LEFT_OUT in healed.errors) == (family.model_type in MULTIMODAL)
    assert healed.metrics["eval_loss"] != healed.metrics["reduced_eval_loss"]
    done = lamina("export", healed.folder, "--output", "out", cwd=tmp_path)
    assert done.code == 0, done.errors
    model = loaded(tmp_path / "out")
    notes = json.loads((tmp_path / "out" / "lamina.json").read_text())["notes"]
    assert (LEFT_OUT in notes) == (family.model_type in MULTIMODAL)
    if family.model_type == "qwen3_5":
        done = lamina("export", healed.folder, "--output", "no", "--form", "adapter", cwd=tmp_path)
        assert done.refusal == (
            "error: --form adapter: transformers would load the adapter onto the whole multimodal "
            "model; choose --form merged\n"
        )
    final = logits(loaded(healed.final))
    if (healed.final / "adapter_config.json").exists():  # merging an adapter rounds its weights
        torch.testing.assert_close(logits(model), final, rtol=0, atol=1e-5)
    else:
        assert torch.equal(logits(model), final)
    assert generated(model, cached=True) == generated(model, cached=False)
