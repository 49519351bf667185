"""The real command on chats: a template from a file, a real model whose template marks nothing."""

import json
import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lamina.data.byte_tokenizer import CHAT_TEMPLATE
from tests.conftest import ROOT, train

SAMPLE = ROOT / "tests/data/chat/dolly/sample.jsonl"
SHORT = ("logger=none", "evaluation=none", "data=jsonl", f"data.train={SAMPLE}")
PLAIN = CHAT_TEMPLATE.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")


def test_the_template_of_a_file_is_trained_with_and_saved(tmp_path: Path) -> None:
    own = tmp_path / "own.jinja"
    own.write_text("{{- 'Be brief. ' -}}" + PLAIN)
    steps = ("experiment=quickstart", "max_steps=1", "eval_steps=1", "save_steps=1")
    given = (*steps, *SHORT, "data.max_train_samples=20", "data.eval_fraction=0.1")
    done = train(tmp_path / "run", *given, f"data.chat_template={own}", "max_seq_length=1024")
    assert done.code == 0, done.errors
    tokenizer = AutoTokenizer.from_pretrained(done.final)
    assert tokenizer.chat_template == own.read_text()
    row = json.loads((done.folder / "eval.jsonl").read_text().splitlines()[0])
    assert tokenizer.decode(row["input_ids"]).startswith("Be brief. <|im_start|>user\n")
    answers = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if i == label]
    assert tokenizer.decode(answers).endswith("<|im_end|>")


@pytest.mark.skipif(
    "LAMINA_SMOLLM2" not in os.environ,
    reason="LAMINA_SMOLLM2 does not name the folder of SmolLM2-135M-Instruct "
    "(HuggingFaceTB/SmolLM2-135M-Instruct on the hub); set it to train 20 steps",
)
def test_a_real_model_trains_on_real_chats(tmp_path: Path) -> None:
    model = os.environ["LAMINA_SMOLLM2"]
    steps = ("max_steps=20", "eval_steps=20", "save_steps=20", "logging_steps=1")
    batch = ("per_device_train_batch_size=1", "gradient_accumulation_steps=1", "bf16=false")
    given = (f"model_name={model}", "experiment=original_lora", *steps, *batch, *SHORT)
    done = train(tmp_path / "run", *given, "max_seq_length=512", "evaluation.baseline=true")
    assert done.code == 0, done.errors
    losses = [entry["loss"] for entry in done.result["history"] if "loss" in entry]
    assert len(losses) == 20
    # Rows differ by more than 20 steps change: only the same rows can be compared.
    assert done.metrics["eval_loss"] < done.metrics["baseline_eval_loss"]
