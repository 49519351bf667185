"""eval_loss does not depend on batches, and packed documents do not see each other."""

from importlib.metadata import version
from itertools import islice
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from packaging.version import Version
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_outputs import CausalLMOutputWithPast
from trl import SFTConfig

from lamina.data.splits import Split
from lamina.data.synthetic import generate
from lamina.data.tokenization import Tokenization
from lamina.heal.trainer import TokenLossTrainer
from lamina.measure.evaluate import row_losses
from tests.conftest import REFERENCE


@pytest.fixture(scope="module")
def rows() -> Dataset:
    tokenizer = AutoTokenizer.from_pretrained(REFERENCE)
    split = Split(Dataset.from_list(list(islice(generate("eval", 5), 60))), "synthetic eval")
    return Tokenization(tokenizer, "auto", 128, split)(split).rows


@pytest.fixture
def model() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(REFERENCE, dtype=torch.float32)


def trainer_loss(model: torch.nn.Module, rows: Dataset, folder: Path, **options: object) -> float:
    arguments = SFTConfig(
        output_dir=str(folder), report_to="none", bf16=False, max_length=128, **options
    )
    trainer = TokenLossTrainer(
        model=model,
        args=arguments,
        processing_class=AutoTokenizer.from_pretrained(REFERENCE),
        train_dataset=rows,
        eval_dataset=rows,
    )
    return trainer.evaluate()["eval_loss"]


@pytest.mark.parametrize("packing", [(False, False), (True, True), (True, False)])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_trainers_loss_is_the_sum_over_tokens(
    model: torch.nn.Module,
    rows: Dataset,
    tmp_path: Path,
    batch_size: int,
    packing: tuple[bool, bool],
) -> None:
    expected = row_losses(model, list(rows), max_tokens=1).mean()
    options = dict(zip(("packing", "eval_packing"), packing, strict=True))
    loss = trainer_loss(model, rows, tmp_path, per_device_eval_batch_size=batch_size, **options)
    assert loss == pytest.approx(expected, abs=1e-5)


class Fused(torch.nn.Module):
    """liger-kernel's forward pass: its loss, no logits, and tokens weighed where it is asked."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.plain, self.asked = model.forward, []

    def forward(
        self,
        *,
        skip_logits: bool,
        return_token_accuracy: bool,
        use_token_scaling: bool,
        num_items_in_batch: torch.Tensor | None = None,
        **inputs: torch.Tensor,
    ) -> CausalLMOutputWithPast:
        self.asked.append((skip_logits, use_token_scaling, num_items_in_batch))
        loss = self.plain(**inputs).loss
        output = CausalLMOutputWithPast(loss=loss / 2 if use_token_scaling else loss)
        output.token_accuracy = torch.tensor(0.5) if return_token_accuracy else None
        return output


@pytest.mark.parametrize("kind", ["nll", "dft"])
def test_the_liger_loss_is_evaluated_unweighted_and_without_logits(
    model: torch.nn.Module, rows: Dataset, tmp_path: Path, kind: str
) -> None:
    expected = row_losses(model, list(rows), max_tokens=1).mean()
    fused = Fused(model)
    model.forward = fused.forward
    options = {"use_liger_kernel": True, "loss_type": kind, "per_device_eval_batch_size": 8}
    assert trainer_loss(model, rows, tmp_path, **options) == pytest.approx(expected, abs=1e-5)
    # TRL 1.16 computes the loss itself, and leaves only the layers to liger-kernel.
    assert len(fused.asked) == (8 if Version(version("trl")) < Version("1.16") else 0)
    assert all((skipped, scaled) == (True, False) for skipped, scaled, _ in fused.asked)


@pytest.mark.parametrize("max_tokens", [1, 100, 10_000])
def test_a_rows_loss_does_not_depend_on_its_batch(
    model: torch.nn.Module, rows: Dataset, max_tokens: int
) -> None:
    alone = row_losses(model, list(rows), max_tokens=1)
    together = row_losses(model, list(rows), max_tokens=max_tokens)
    assert together.tokens == alone.tokens
    assert together.nll == pytest.approx(alone.nll, abs=1e-4)


def test_a_row_loss_is_what_transformers_computes(model: torch.nn.Module, rows: Dataset) -> None:
    losses = row_losses(model, list(rows), max_tokens=1)
    for index, row in enumerate(rows.select(range(5))):
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        expected = model(input_ids=ids, labels=labels).loss.item()
        assert losses.nll[index] / losses.tokens[index] == pytest.approx(expected, abs=1e-5)


def test_packed_documents_do_not_see_each_other(
    model: torch.nn.Module, rows: Dataset, tmp_path: Path
) -> None:
    arguments = SFTConfig(
        output_dir=str(tmp_path), report_to="none", bf16=False, max_length=128, packing=True
    )
    trainer = TokenLossTrainer(
        model=model,
        args=arguments,
        processing_class=AutoTokenizer.from_pretrained(REFERENCE),
        train_dataset=rows,
    )
    batch = trainer.data_collator([trainer.train_dataset[0]])
    assert "attention_mask" not in batch
    starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
    assert len(starts) > 2
    first, second = starts[1], starts[2]
    inputs = {key: batch[key] for key in ("input_ids", "position_ids")}
    with torch.no_grad():
        together = model(**inputs, use_cache=False).logits[0, first:second]
        alone = model(batch["input_ids"][:, first:second], use_cache=False).logits[0]
        changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
        changed["input_ids"][0, :first] = 7
        after = model(**changed, use_cache=False).logits[0, first:second]
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.equal(together, after)
