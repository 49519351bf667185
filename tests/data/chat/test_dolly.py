"""Real rows under the template of SmolLM2, which marks nothing; dolly/LICENSE names the sources."""

import json

from datasets import Dataset
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from lamina.data.splits import Split
from lamina.data.tokenization import IGNORED, Tokenization
from tests.conftest import ROOT

FOLDER = ROOT / "tests/data/chat"
GOLDEN = json.loads((FOLDER / "dolly/golden.json").read_text())


def test_the_ids_and_labels_of_real_rows() -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(FOLDER / "dolly/tokenizer.json")),
        eos_token="<|im_end|>",
        chat_template=(FOLDER / "templates/smollm2.jinja").read_text(),
    )
    lines = (FOLDER / "dolly/sample.jsonl").read_text().splitlines()
    rows = Dataset.from_list([json.loads(line) for line in lines[: len(GOLDEN)]])
    split = Split(rows, "sample.jsonl")
    done = Tokenization(tokenizer, "assistant", 2048, split)(split)
    assert len(done.rows) == 5
    for row, golden in zip(done.rows, GOLDEN, strict=True):
        labels = [IGNORED] * len(golden["input_ids"])
        for start, stop in golden["trained"]:
            labels[start:stop] = golden["input_ids"][start:stop]
        assert row == {"input_ids": golden["input_ids"], "labels": labels}
