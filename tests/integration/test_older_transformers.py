"""final/ and the result of lamina cut, as transformers 4.57 reads them: `make test-older`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.architectures import save
from tests.conftest import REFERENCE, SHORT, environment, lamina, train

OLDER = os.environ.get("LAMINA_OLDER")
"""Folder of transformers 4.57 and the packages that it needs in other versions."""

pytestmark = pytest.mark.skipif(not OLDER, reason="needs transformers 4.57: make test-older")

READ = """
import json, sys, torch, transformers
assert transformers.__version__.startswith("4.57."), transformers.__version__
folder, ids = sys.argv[1], json.loads(sys.argv[2])
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
with torch.no_grad():
    logits = model(torch.tensor([ids])).logits[0]
text = tokenizer.apply_chat_template([{"role": "user", "content": "sort 3 1"}], tokenize=False)
print(json.dumps([logits.tolist(), tokenizer("sort 3 1")["input_ids"], text]))
"""

IDS = list(range(3, 43))


def source(family: str, folder: Path) -> Path:
    """A tiny model in the form of transformers 4, with the reference tokenizer."""
    save(family, folder, vocab_size=321, max_position_embeddings=2048)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["rope_parameters"]
    config |= {"rope_theta": 50000.0, "torch_dtype": config.pop("dtype")}
    path.write_text(json.dumps({**config, "transformers_version": "4.51.3"}))
    for name in ("tokenizer.json", "chat_template.jinja"):
        shutil.copy(REFERENCE / name, folder)
    tokens = json.loads((REFERENCE / "tokenizer_config.json").read_text())
    del tokens["backend"]
    tokens["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    return folder


@pytest.mark.parametrize("family", ["qwen3", "llama", "mistral"])
def test_transformers_4_57_reads_what_was_written(family: str, tmp_path: Path) -> None:
    model = f"model_name={source(family, tmp_path / 'source')}"
    dropped = (model, "model=dropped", "model.layer_to_drop=2")
    assert lamina("cut", *dropped, "output=cut", cwd=tmp_path).code == 0
    done = train(tmp_path / "run", *SHORT, *dropped, "adapter=full", "packing=false")
    assert done.code == 0, done.errors
    merged = train(tmp_path / "merged", *SHORT, *dropped, "packing=false", "export.form=merged")
    assert merged.code == 0, merged.errors
    for folder in (tmp_path / "cut", done.final, merged.final):
        read = subprocess.run(
            [sys.executable, "-c", READ, str(folder), json.dumps(IDS)],
            capture_output=True,
            text=True,
            env=environment(PYTHONPATH=str(OLDER)),
            check=False,
        )
        assert read.returncode == 0, read.stderr
        logits, ids, text = json.loads(read.stdout.splitlines()[-1])
        ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            expected = ours(torch.tensor([IDS])).logits[0]
        assert (torch.tensor(logits) - expected).abs().max() < 1e-5
        assert ids == AutoTokenizer.from_pretrained(REFERENCE)("sort 3 1")["input_ids"]
        assert "sort 3 1" in text
